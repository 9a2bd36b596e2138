// Multiply up to 16 rows of x by panels of W: a unit's codes become numbers while the tiles multiply the unit before, in turns
// of some instructions each, because a core looks only some hundreds of them ahead.
#pragma once
#include "expanded.h"

#if defined(__AMX_BF16__)

// Say where rows of x lie as second operands: [k / 32][16 pairs of places][rows]. One row lies so by itself.
struct FewRows {
    const char* at;
    int64_t row, tile;  // bytes
};

// Write the sums of a panel: [2 halves][16 outputs][16 rows], or [2 halves][16 outputs] of one row.
static INLINE void put_few(const ExpandedArgs& args, int64_t n, const float (&sums)[2][SUMS]) {
    const QuantizedArgs& a = args.w;
    vec rows[TILE][2], of[TILE];
    for (int64_t h = 0; h < 2; h++) {
        if (a.m == 1) {
            rows[0][h] = load(sums[h]);
        } else {
            for (int64_t i = 0; i < TILE; i++) of[i] = load(sums[h] + i * TILE);
            transpose(of);
            for (int64_t i = 0; i < a.m; i++) rows[i][h] = of[i];
        }
    }
    if (!a.gated) return put(a, 0, a.m, n * PANEL, rows[0]);
    for (int64_t i = 0; i < a.m; i++) put_gated_row(a, i, n * TILE, rows[i]);
}

// Multiply tile J of a unit's half H by the rows. Tiles 0 and 1 are the halves' sums, 2 and 3 W, 4 to 7 x, which the second
// half finds there. (Instructions have the numbers of their tiles written in them.)
template <int H, int J>
static INLINE void multiply(const char* x, const FewRows& rows, const char* w) {
    x += J * rows.tile;
    w += J * TILE_BYTES;
#define WITH_TILES(j, of_w, of_x)                             \
    if constexpr (J == j) {                                   \
        if constexpr (H == 0) _tile_loadd(of_x, x, rows.row); \
        _tile_loadd(of_w, w, LINE);                           \
        if constexpr (H == 0) _tile_dpbf16ps(0, of_w, of_x);  \
        if constexpr (H == 1) _tile_dpbf16ps(1, of_w, of_x);  \
    }
    WITH_TILES(0, 2, 4)
    WITH_TILES(1, 3, 5)
    WITH_TILES(2, 2, 6)
    WITH_TILES(3, 3, 7)
#undef WITH_TILES
}

// Multiply the rows by the panels [first, last). The sums of both halves grow in turn: an instruction that adds to a tile
// waits for the one before that does.
template <int64_t UNIT, bool ZEROS>
static void few(const FewRows& x, int64_t first, int64_t last, const ExpandedArgs& args) {
    constexpr int TILES = UNIT / STEP, ROWS = TILE / TILES;  // rows that are expanded for each tile that is multiplied
    constexpr int64_t FAR = 4096;                            // bytes: how far ahead codes are prefetched
    const QuantizedArgs& a = args.w;
    const ExpandedSizes s(args);
    const __m512 table = (__m512)load(a.table);
    alignas(LINE) char numbers[2][TILES * TILE_BYTES];  // of each half
    alignas(LINE) float sums[2][SUMS];
    UnitParts<ZEROS> parts;
    const int64_t pitch = a.m == 1 ? sizeof(float) : LINE;
    const char* panel = a.w + first * s.panel;
    const auto make = [&](auto j, int64_t h, int64_t u) INLINE_LAMBDA {
        if (j() == 0) {
            const char* group = panel + u * UNIT / a.group * s.group;
            if (h == 0) __builtin_prefetch(group + s.panel);
            parts.read(group, h, a);
        }
        expand<UNIT, ZEROS, ROWS, TILE_BYTES, FAR>(parts, table, panel + s.parts + u * s.codes + h * (s.codes / 2),
                                                   j() * ROWS, numbers[h]);
    };
    each<TILES>([&](auto j) INLINE_LAMBDA { make(j, 0, 0); });
    for (int64_t n = first; n < last; n++) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t u = 0; u < s.units; u++) {
            const char* at = x.at + u * TILES * x.tile;
            each<TILES>([&](auto j) INLINE_LAMBDA {
                multiply<0, j()>(at, x, numbers[0]);
                make(j, 1, u);
            });
            int64_t next = u + 1;
            if (next == s.units) next = 0, panel += s.panel;
            const bool more = next || n + 1 < last;
            each<TILES>([&](auto j) INLINE_LAMBDA {
                multiply<1, j()>(at, x, numbers[1]);
                if (more) make(j, 0, next);
            });
        }
        _tile_stored(0, sums[0], pitch);
        _tile_stored(1, sums[1], pitch);
        put_few(args, n, sums);
    }
}
#endif
