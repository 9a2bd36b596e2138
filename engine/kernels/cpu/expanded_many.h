// Multiply more than 16 rows of x by a panel of W: the numbers of a slab of units stay in the first cache, and all tiles of x,
// which stay in the second one, are multiplied by them.
#pragma once
#include "expanded.h"

#if defined(__AMX_BF16__)

constexpr int64_t SLAB = 8;  // tiles of each half of a panel whose numbers are kept

// Turn slab `slab` of a panel into numbers: [tiles][2 halves][16 outputs][32 places]. Return how many tiles a half has.
typedef int64_t ExpandSlab(const ExpandedArgs& args, const ExpandedSizes& s, const char* panel, int64_t slab, char* to);

template <int64_t UNIT, bool ZEROS>
static int64_t expand_slab(const ExpandedArgs& args, const ExpandedSizes& s, const char* panel, int64_t slab,
                           char* to) {
    constexpr int64_t TILES = UNIT / STEP, UNITS = SLAB / TILES;
    const __m512 table = (__m512)load(args.w.table);
    const int64_t first = slab * UNITS, last = first + UNITS < s.units ? first + UNITS : s.units;
    UnitParts<ZEROS> parts;
    for (int64_t u = first; u < last; u++)
        for (int64_t h = 0; h < 2; h++) {
            parts.read(panel + u * UNIT / args.w.group * s.group, h, args.w);
            expand<UNIT, ZEROS, TILE, 2 * TILE_BYTES, 0>(parts, table,
                                                         panel + s.parts + u * s.codes + h * (s.codes / 2), 0,
                                                         to + ((u - first) * TILES * 2 + h) * TILE_BYTES);
        }
    return (last - first) * TILES;
}

// Hold what a thread computes with.
struct ExpandedRoom {
    const char* x;  // tiles of x as second operands: [pairs of tiles][steps][2][16 pairs of places][16 rows]
    float* sums;    // of each pair of tiles of x: [2][2 halves][16 outputs][16 rows]
    int64_t from;   // the first row
    int64_t tiles, steps;
    bool away;     // whether y goes past the caches
    bf16* halves;  // of lines of gated y, which wait for the next panel's: [tiles of x][16 rows][16]
};

// Write gated rows of panel n, which are half a line each: past the caches, the first half waits for the second.
static INLINE void put_gated(const ExpandedArgs& args, int64_t row, int64_t count, int64_t n,
                             const vec (&rows)[TILE][2], bool away, bf16* halves) {
    const QuantizedArgs& a = args.w;
    if (!away) {
        for (int64_t i = 0; i < count; i++) put_gated_row(a, row + i, n * TILE, rows[i]);
        return;
    }
    for (int64_t i = 0; i < TILE; i++, halves += TILE) {
        const __m256i now = rounded(silu(rows[i][0]) * rows[i][1]);
        if (n % 2 == 0) {
            _mm256_storeu_si256((__m256i*)halves, now);
        } else {
            const __m256i first = _mm256_loadu_si256((const __m256i*)halves);
            _mm512_stream_si512((__m512i*)((bf16*)a.y + (row + i) * a.y_stride + (n - 1) * TILE),
                                _mm512_inserti64x4(_mm512_castsi256_si512(first), now, 1));
        }
    }
}

// Write the sums of one or two tiles of x, a part at a time: vectors do it while the tiles multiply the next ones.
struct Writing {
    const ExpandedArgs& args;
    const ExpandedRoom& room;
    // Of the tiles that are written, and of the next ones: [2][2 halves][16 outputs][16 rows].
    alignas(LINE) float sums[2][4 * SUMS];
    vec rows[TILE][2];
    int64_t tile = 0, panel = 0;  // of x, the first; of W
    int64_t part = 0, parts = 0;  // of each tile: a half is transposed, the other one, rows are written
    int now = 0;                  // whose turn it is of the sums
    Writing(const ExpandedArgs& args, const ExpandedRoom& room) : args(args), room(room) {}
    float* next() { return sums[now ^ 1]; }
    void begin(int64_t of_x, int64_t tiles, int64_t n) {
        rest();
        now ^= 1, tile = of_x, panel = n, part = 0, parts = 3 * tiles;
    }
    INLINE void some() {
        if (part == parts) return;
        const int64_t t = part / 3, h = part % 3;
        if (h < 2) {
            const float* from = sums[now] + (2 * t + h) * SUMS;
            vec of[TILE];
            for (int64_t i = 0; i < TILE; i++) of[i] = load(from + i * TILE);
            transpose(of);
            for (int64_t i = 0; i < TILE; i++) rows[i][h] = of[i];
        } else {
            write(tile + t);
        }
        part++;
    }
    void rest() {
        while (part < parts) some();
    }
    INLINE void write(int64_t t) const {
        const QuantizedArgs& a = args.w;
        const int64_t row = room.from + t * TILE, count = a.m - row < TILE ? a.m - row : TILE;
        const bool away = room.away && count == TILE;
        if (a.gated)
            put_gated(args, row, count, panel, rows, away, room.halves + t * SUMS);
        else if (away && (panel + 1) * PANEL <= a.n)
            put_away(a, row, panel * PANEL, rows[0]);
        else
            put(a, row, count, panel * PANEL, rows[0]);
    }
};

// Multiply one or two tiles of x by `steps` tiles of each half. Tiles 0 to 3 are the sums, 4 and 5 W, 6 and 7 x.
template <int TILES>
static INLINE void multiply_slab(const char* x, const char* w, int64_t steps, bool begins, const float* before,
                                 float* after, Writing& writing) {
    if (begins) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, before, LINE);
        _tile_loadd(1, before + SUMS, LINE);
        if (TILES == 2) {
            _tile_loadd(2, before + 2 * SUMS, LINE);
            _tile_loadd(3, before + 3 * SUMS, LINE);
        }
    }
    for (int64_t i = 0; i < steps; i++, x += 2 * TILE_BYTES, w += 2 * TILE_BYTES) {
        _tile_loadd(6, x, LINE);
        _tile_loadd(4, w, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + TILE_BYTES, LINE);
        _tile_dpbf16ps(1, 5, 6);
        if (TILES == 2) {
            _tile_loadd(7, x + TILE_BYTES, LINE);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        writing.some();
    }
    _tile_stored(0, after, LINE);
    _tile_stored(1, after + SUMS, LINE);
    if (TILES == 2) {
        _tile_stored(2, after + 2 * SUMS, LINE);
        _tile_stored(3, after + 3 * SUMS, LINE);
    }
}

// Multiply a room's rows by panel n. The last sums may still have to be written then.
static void many(const ExpandedArgs& args, const ExpandedSizes& s, int64_t n, const ExpandedRoom& room,
                 ExpandSlab* expand_slab, Writing& writing) {
    alignas(LINE) char w[2 * SLAB * TILE_BYTES];
    const char* panel = args.w.w + n * s.panel;
    for (int64_t slab = 0, first = 0; first < room.steps; slab++) {
        const int64_t steps = expand_slab(args, s, panel, slab, w);
        const bool last = first + steps == room.steps;
        // Each pass prefetches its share of the codes that are expanded next, behind the next panel's parts if need be.
        const char* ahead = panel + s.parts + (first + steps) / (args.unit / STEP) * s.codes + (last ? s.parts : 0);
        const int64_t share = (SLAB * 2 * TILE_BYTES / 4 / LINE) / ((room.tiles + 1) / 2) + 1;
        for (int64_t t = 0; t < room.tiles; t += 2) {
            for (int64_t l = 0; l < share; l++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
            const char* x = room.x + (t * room.steps + 2 * first) * TILE_BYTES;
            float *sums = room.sums + 2 * t * SUMS, *after = last ? writing.next() : sums;
            const bool both = t + 1 < room.tiles;
            both ? multiply_slab<2>(x, w, steps, first == 0, sums, after, writing)
                 : multiply_slab<1>(x, w, steps, first == 0, sums, after, writing);
            if (last) writing.begin(t, 1 + both, n);
        }
        first += steps;
    }
}
#endif
