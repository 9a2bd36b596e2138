// Define how weights of 4 bits with groups of 64 places and more lie in memory for matrix tiles, and turn them into tiles of
// numbers in bf16.
//
//   W packed: [n / PANEL panels] of
//     parts  [groups] of scales [PANEL], zeros [PANEL] or none     in fp32, bf16 or fp16
//     codes  [k / unit][2 halves][16 outputs][unit / 2 bytes]
//
// A unit has 64 or 128 places: place p of an output lies in nibble p / W of word p % W, of W = unit / 4 words of 16 bits.
//
// Each weight becomes the number that it stands for, rounded to bf16, as those of a checkpoint do that is expanded when it is
// loaded. In a group an output has 16 different ones at most: these are computed and rounded, and an instruction looks 32
// codes up among them. 16 outputs x 32 places are a tile, the first operand of a product, and x is the second one (tiles.h).
// Sums are added up in the order of linear_amx.cpp, so a result is the same to the bit as that of the expanded weights, for any
// number of rows.
//
// With smaller groups, or 8 bits, making these numbers would take longer than reading the codes (linear_quantized_amx.cpp).
#pragma once
#include "quantized_tiles.h"

#if defined(__AMX_BF16__)

constexpr int64_t STEP = 32, TILE_BYTES = TILE * LINE;  // places of a tile

struct ExpandedArgs {
    QuantizedArgs w;  // x in bf16; `w.w` as above
    int64_t unit;
};

// Hold sizes in memory that all panels have in common, in bytes.
struct ExpandedSizes {
    int64_t units, group, parts, codes, panel;  // units of a panel; a group's parts, a panel's, a unit's codes, a panel
    ExpandedSizes(const ExpandedArgs& args) {
        const QuantizedArgs& a = args.w;
        units = (a.k + args.unit - 1) / args.unit;
        group = PANEL * part_size(a) * (1 + (a.zeros != 0));
        parts = (a.k + a.group - 1) / a.group * group;
        codes = PANEL * args.unit / 2;
        panel = parts + units * codes;
    }
};

// Hold what turns values into weights, of half a panel: (value - zero) * scale.
template <bool ZEROS>
struct alignas(LINE) UnitParts {
    float scale[TILE], zero[ZEROS ? TILE : 1];
    INLINE void read(const char* of_group, int64_t half, const QuantizedArgs& a) {
        store(scale, load_part_of(of_group, a.part_type, half * TILE));
        if (ZEROS) store(zero, load_part_of(of_group + PANEL * part_size(a), a.part_type, half * TILE));
    }
    // Return the weights of output o that the table's entries stand for, twice.
    INLINE __m512i weights(__m512 table, int64_t o) const {
        if (ZEROS) table = _mm512_sub_ps(table, _mm512_set1_ps(zero[o]));
        const __m512 now = _mm512_mul_ps(table, _mm512_set1_ps(scale[o]));
        return (__m512i)_mm512_cvtne2ps_pbh(now, now);
    }
};

// Write 16 outputs of a gated row: silu(gate) * up, rounded as those of linear_amx.cpp are, whatever the number of rows.
static INLINE void put_gated_row(const QuantizedArgs& a, int64_t row, int64_t column, const vec (&sums)[2]) {
    WITH_TYPE(a.y_type, Y, store_rounded((Y*)a.y + row * a.y_stride + column, silu(sums[0]) * sums[1]));
}

// Write rows `first` to `first + ROWS` of half a unit's tiles. codes: of the half. to: the first tile; PITCH bytes behind it
// the next one. AHEAD: how many bytes ahead codes are prefetched, 0: they aren't.
template <int64_t UNIT, bool ZEROS, int ROWS, int64_t PITCH, int64_t AHEAD>
INLINE void expand(const UnitParts<ZEROS>& parts, __m512 table, const char* codes, int64_t first, char* to) {
    constexpr int64_t BYTES = UNIT / 2;
    codes += first * BYTES;
    to += first * LINE;
#pragma GCC unroll 16
    for (int64_t o = first; o < first + ROWS; o++, codes += BYTES, to += LINE) {
        const __m512i weights = parts.weights(table, o);
        if (AHEAD && (UNIT == 128 || o % 2 == 0)) __builtin_prefetch(codes + AHEAD);
        if constexpr (UNIT == 128) {
            const __m512i words = _mm512_loadu_si512(codes);
            // The permutation reads 5 bits of an index: the fifth chooses between equal halves.
            each<4>([&](auto j) INLINE_LAMBDA {
                _mm512_store_si512(to + j() * PITCH,
                                   _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * j()), weights));
            });
        } else {
            const __m512i words = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)codes));
            each<2>([&](auto j) INLINE_LAMBDA {  // the upper half of a row has the next nibble
                const __m512i shifts =
                    _mm512_inserti64x4(_mm512_set1_epi16(8 * j()), _mm256_set1_epi16(8 * j() + 4), 1);
                _mm512_store_si512(to + j() * PITCH,
                                   _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, shifts), weights));
            });
        }
    }
}
#endif
