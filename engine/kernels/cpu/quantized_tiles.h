// Define what quantized products on matrix tiles have in common: how codes become tiles of W, and how sums of groups become
// totals of rows.
#pragma once
#include "quantized.h"
#include "tiles.h"

#if defined(__AMX_BF16__)

constexpr int64_t TILE = 16, LINE = 64;
constexpr int64_t SUMS = TILE * TILE;  // numbers in a tile of sums

// Hold the numbers of one step of a panel: two tiles of W.
template <int64_t STEP>
struct alignas(LINE) Numbers {
    __m512bh pairs[2][STEP / 2];
};

// Read the numbers of one word of each output of a panel, of word `i` of a step; prefetch what lies `ahead` bytes behind.
template <class Source, int64_t STEP>
static INLINE void expand_words(const Source& codes, const char* at, int64_t i, int64_t ahead, Numbers<STEP>& to) {
    constexpr int64_t PAIRS = Source::PLACES / 2;
    for (int h = 0; h < 2; h++) {
        const char* here = at + i * WORDS + h * (WORDS / 2);
        __builtin_prefetch(here + ahead);
        const uvec words = load_words(here);
        each<PAIRS>([&](auto j) INLINE_LAMBDA { to.pairs[h][i * PAIRS + j()] = codes.template pair<j()>(words); });
    }
}

// Read the numbers of one step. Return where the next codes are.
template <class Source, int64_t STEP>
static INLINE const char* expand(const Source& codes, const char* at, int64_t ahead, Numbers<STEP>& to) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < STEP / Source::PLACES; i++) expand_words(codes, at, i, ahead, to);
    return at + STEP / Source::PLACES * WORDS;
}

// Hold the parts of a group as they are added to totals: of both halves of a panel, for values that are multiples of UNIT.
struct GroupParts {
    vec scale[2], minus_zero[2], offset[2];
    INLINE void read(const char* p, float unit, const QuantizedArgs& a) {
        for (int h = 0; h < 2; h++) {
            const Parts parts(p, h, unit, a);
            scale[h] = parts.scale, minus_zero[h] = parts.zero * (-1 / unit), offset[h] = parts.offset;
        }
    }
};

// Describe sums of groups, which become totals of rows.
struct Groups {
    vec* totals;        // [rows][2]
    const float* sums;  // of the first group and half: [16 rows][16]
    int64_t pitch;      // from one group's sums to the next
    const GroupParts* parts;
    int64_t groups;
    int rows;
    const float* of_x;  // of the first row and group
    int64_t x_pitch;    // from one row to the next
};

// Add groups to the totals of some rows, of half `h` of a panel; ONE: of a single group. (Indices that are known when
// compiled keep the totals in registers; with a loop over rows, GCC writes them to memory as well. And `vec{} + x` would
// be an addition.)
template <int ROWS, bool SHIFTED, bool OFFSETS, bool ONE = false>
static INLINE void finish_rows(const Groups& f, int row, int h) {
    vec total[ROWS];
    vec* const totals = f.totals + 2 * row + h;
    each<ROWS>([&](auto i) INLINE_LAMBDA { total[i()] = totals[2 * i()]; });
    const float *sums = f.sums + h * SUMS + row * TILE, *of_x = f.of_x + row * f.x_pitch;
    for (int64_t g = 0; g < (ONE ? 1 : f.groups); g++, sums += f.pitch, of_x++) {
        const vec scale = f.parts[g].scale[h], minus_zero = f.parts[g].minus_zero[h], offset = f.parts[g].offset[h];
        each<ROWS>([&](auto i) INLINE_LAMBDA {
            vec values = load(sums + i() * TILE), of_row = {};
            if (SHIFTED || OFFSETS) of_row = every(of_x[i() * f.x_pitch]);
            if (SHIFTED) values = fused(minus_zero, of_row, values);
            total[i()] = fused(scale, values, total[i()]);
            if (OFFSETS) total[i()] = fused(offset, of_row, total[i()]);
        });
    }
    each<ROWS>([&](auto i) INLINE_LAMBDA { totals[2 * i()] = total[i()]; });
}
template <bool SHIFTED, bool OFFSETS>
__attribute__((noinline)) static void finish(const Groups& f) {
    int row = 0;
    for (; row + 8 <= f.rows; row += 8)
        for (int h = 0; h < 2; h++) finish_rows<8, SHIFTED, OFFSETS>(f, row, h);
    for (; row < f.rows; row++)
        for (int h = 0; h < 2; h++) finish_rows<1, SHIFTED, OFFSETS>(f, row, h);
}
// Add groups to totals of rows, one after another.
static INLINE void finish(const Groups& f, const QuantizedArgs& a) {
    if (a.offsets)
        shifted(a) ? finish<true, true>(f) : finish<false, true>(f);
    else
        shifted(a) ? finish<true, false>(f) : finish<false, false>(f);
}

// Add one group of one row.
static INLINE void add_group(vec* totals, const vec* values, const GroupParts& parts, const float* of_x,
                             const QuantizedArgs& a) {
    for (int h = 0; h < 2; h++) {
        vec now = values[h];
        if (shifted(a)) now = fused(parts.minus_zero[h], every(*of_x), now);
        totals[h] = fused(parts.scale[h], now, totals[h]);
        if (a.offsets) totals[h] = fused(parts.offset[h], every(*of_x), totals[h]);
    }
}

// Write a tile's rows of a whole panel past the caches.
static void put_away(const QuantizedArgs& a, int64_t row, int64_t column, const vec* sums) {
    vec bias[2] = {};
    for (int h = 0; a.bias && h < 2; h++)
        WITH_TYPE(a.bias_type, B, bias[h] = load((const B*)a.bias + column + h * VEC));
    const vec factor = every(float(a.factor));
    for (int64_t i = 0; i < TILE; i++, sums += 2) {
        const int64_t at = (row + i) * a.y_stride + column;
        const __m512 low = (__m512)fused(sums[0], factor, bias[0]), high = (__m512)fused(sums[1], factor, bias[1]);
        if (a.y_type == BF16) {
            _mm512_stream_si512((__m512i*)((bf16*)a.y + at), (__m512i)_mm512_cvtne2ps_pbh(high, low));
        } else {
            _mm512_stream_ps((float*)a.y + at, low);
            _mm512_stream_ps((float*)a.y + at + VEC, high);
        }
    }
}

// Hold some rows of x.
struct Block {
    Rows<bf16> rows;
    int64_t first, from, to;  // the first of them in x; tiles of x
};

// Take subnormal numbers for zeros until the end of a block, as tiles do: vectors must give the same sums.
struct Flushing {
    const unsigned before = _mm_getcsr();
    explicit Flushing(bool on) {
        if (on) _mm_setcsr(before | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    }
    ~Flushing() { _mm_setcsr(before); }
};
#endif
