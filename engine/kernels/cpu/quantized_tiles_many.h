// Multiply more than 16 rows of x by a panel of W: codes of a piece of the panel become numbers, which stay in the first cache,
// and all tiles of x are multiplied by them.
//
// Sums of groups must get from tiles to vectors, which add them to the totals. Tiles and vectors work side by side only if
// their instructions are mixed finely, because a core looks at some 500 of them ahead. So, while the tiles multiply a group,
//
//   its first operands are loaded before the sums of the group before are stored: a store waits for its tile;
//   the sums that were stored before that one are added to the totals, a unit of 8 rows after each few products.
//
// With groups of one step a tile stores as much as it multiplies, and the totals are what else goes through the first cache:
// they are read and written for several groups at once.
#pragma once
#include "quantized_tiles.h"

#if defined(__AMX_BF16__)

constexpr int64_t PIECE = 256;                                  // places whose numbers are kept
constexpr int64_t GROUPS = 4;                                   // of a piece, at most
constexpr int64_t UNIT_ROWS = 8, UNITS = 2 * TILE / UNIT_ROWS;  // of a tile of x, both halves of a panel

// Hold what a thread computes with.
struct Room {
    std::vector<vec> totals, open;  // [tiles of x][16][2]; sums of a group that isn't complete: [tiles of x][2][16]
    char* x;              // tiles in order: [pieces][pairs of tiles][steps][2 tiles], or [pieces][tiles][steps]
    bool stored = false;  // whether they are there
    bool away;            // whether y goes past the caches
    int64_t panel = -1;   // whose totals are there, or -1
    Room(int64_t tiles, char* x, bool away) : totals(tiles * 2 * TILE), open(tiles * 2 * TILE), x(x), away(away) {}
};
constexpr int64_t PLACE = 2 * TILE * sizeof(bf16);  // bytes of one place of two tiles of x

// Return the first row of tile t of x. The last tile overlaps the one before it where m is no multiple of 16: the rows they
// share are computed twice, with equal results. With less than 16 rows the tiles themselves are smaller.
static INLINE int64_t first_row(int64_t t, int64_t m) { return t * TILE + TILE <= m || m < TILE ? t * TILE : m - TILE; }

// Describe a piece of a panel: several whole groups, or a part of one.
struct Piece {
    int64_t groups, steps;  // steps of each, here
    bool begins, ends;      // whether it has a group's first place, and its last
};

// Say where tiles of x lie: bytes from one row to the next, and from one step to the next.
struct XTiles {
    const char* at[2];
    int64_t row, step;
    char* store;  // where they are stored in order
    int64_t store_step;
};

// Add sums that wait to totals, a unit at a time; ONE: of one group each.
template <bool SHIFTED, bool OFFSETS, bool ONE>
struct Units {
    const Groups* of;  // of one or two tiles of x
    int64_t next, count;
    INLINE void some(int64_t n) {
        for (; n > 0 && next < count; n--, next++)
            finish_rows<UNIT_ROWS, SHIFTED, OFFSETS, ONE>(of[next / UNITS], next % UNITS / 2 * UNIT_ROWS, next % 2);
    }
};

// Say how codes of a kind become numbers.
template <int64_t STEP>
struct Expansion {
    int64_t places;  // in a word of codes
    float unit;
    void (*expand)(const QuantizedArgs& a, const char* at, int64_t ahead, int64_t steps, Numbers<STEP>* to);
};
template <class Source, int64_t STEP>
static void expand_steps(const QuantizedArgs& a, const char* at, int64_t ahead, int64_t steps, Numbers<STEP>* to) {
    const Source codes(a.table);
    for (int64_t i = 0; i < steps; i++) at = expand<Source, STEP>(codes, at, ahead, to[i]);
}

// Multiply one or two tiles of x by a group, or by a part of one. Tiles 0 to 3 are the sums, 4 and 5 x, 6 and 7 W. What the
// sums were before goes to `before`.
template <int TILES, bool STORES, int64_t STEP, class Units>
static INLINE void multiply(const XTiles& x, const Numbers<STEP>* w, const Piece& p, const float* open, float* before,
                            Units units) {
    constexpr int64_t ROW = STEP * sizeof(bf16), WHOLE = TILE * ROW;
    const int64_t each = (units.count + p.steps - 1) / p.steps;
#define STORE_AND_START(TILE_OF_SUMS)                                    \
    if (i == 0) {                                                        \
        _tile_stored(TILE_OF_SUMS, before + TILE_OF_SUMS * SUMS, LINE);  \
        if (p.begins)                                                    \
            _tile_zero(TILE_OF_SUMS);                                    \
        else                                                             \
            _tile_loadd(TILE_OF_SUMS, open + TILE_OF_SUMS * SUMS, LINE); \
    }
    for (int64_t i = 0; i < p.steps; i++) {
        _tile_loadd(4, x.at[0] + i * x.step, x.row);
        if (STORES) _tile_stored(4, x.store + i * x.store_step, ROW);
        _tile_loadd(6, w[i].pairs[0], LINE);
        STORE_AND_START(0)
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w[i].pairs[1], LINE);
        STORE_AND_START(1)
        _tile_dpbf16ps(1, 4, 7);
        units.some((each + 1) / 2);
        if (TILES == 2) {
            _tile_loadd(5, x.at[1] + i * x.step, x.row);
            if (STORES) _tile_stored(5, x.store + i * x.store_step + WHOLE, ROW);
        }
        STORE_AND_START(2)
        if (TILES == 2) _tile_dpbf16ps(2, 5, 6);
        STORE_AND_START(3)
        if (TILES == 2) _tile_dpbf16ps(3, 5, 7);
        units.some(each / 2);
    }
    units.some(2 * UNITS);
#undef STORE_AND_START
}

// Multiply a tile of x by groups of one step. Their sums go to `sums`; those of the last one stay in tiles 2 and 3, as what is
// there goes to `before`: return where they belong.
template <bool STORES, int64_t STEP, class Units>
static INLINE float* multiply_short(const XTiles& x, const Numbers<STEP>* w, int64_t groups, float* sums, float* before,
                                    float* nowhere, Units units) {
    constexpr int64_t ROW = STEP * sizeof(bf16);
    const int64_t each = (units.count + groups - 1) / groups;
    for (int64_t g = 0; g < groups; g += 2, sums += 4 * SUMS) {
        _tile_loadd(4, x.at[0] + g * x.step, x.row);
        if (STORES) _tile_stored(4, x.store + g * x.store_step, ROW);
        _tile_loadd(6, w[g].pairs[0], LINE);
        _tile_stored(2, before, LINE);
        _tile_zero(0);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w[g].pairs[1], LINE);
        _tile_stored(3, before + SUMS, LINE);
        _tile_zero(1);
        _tile_dpbf16ps(1, 4, 7);
        units.some(each);
        if (g + 1 == groups) {
            _tile_stored(0, sums, LINE);
            _tile_stored(1, sums + SUMS, LINE);
            units.some(UNITS);
            return nowhere;
        }
        _tile_loadd(5, x.at[0] + (g + 1) * x.step, x.row);
        if (STORES) _tile_stored(5, x.store + (g + 1) * x.store_step, ROW);
        _tile_loadd(6, w[g + 1].pairs[0], LINE);
        _tile_stored(0, sums, LINE);
        _tile_zero(2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, w[g + 1].pairs[1], LINE);
        _tile_stored(1, sums + SUMS, LINE);
        _tile_zero(3);
        _tile_dpbf16ps(3, 5, 7);
        units.some(each);
        before = sums + 2 * SUMS;
    }
    units.some(UNITS);
    return before;
}

// Write the outputs of tile t, and begin those of another panel.
static INLINE void put_tile(const Block& b, Room& room, int64_t t, const QuantizedArgs& a) {
    vec* const totals = room.totals.data() + t * 2 * TILE;
    if (room.panel >= 0) {
        const int64_t row = first_row(b.from + t, a.m), column = room.panel * PANEL;
        room.away&& column + PANEL <= a.n ? put_away(a, row, column, totals) : put(a, row, TILE, column, totals);
    }
    each<2 * TILE>([&](auto i) INLINE_LAMBDA { totals[i()] = vec{}; });
}

// Multiply several tiles of x by a panel, a piece of it at a time. Its outputs stay in `room`: those of the panel before are
// written meanwhile, because memory takes them slowly.
template <int64_t STEP, bool SHIFTED, bool OFFSETS>
static void many(const Block& b, int64_t panel, Room& room, const QuantizedArgs& a, const Expansion<STEP>& codes) {
    constexpr int64_t ROW = STEP * sizeof(bf16), WHOLE = TILE * ROW;
    const Sizes s(a, codes.places);
    Numbers<STEP> numbers[PIECE / STEP];
    GroupParts parts[3][GROUPS];  // of this piece and of those whose sums wait
    alignas(LINE) float sums[2][GROUPS * 2 * SUMS], nowhere[4 * SUMS];
    const int64_t whole = a.k / a.group, tiles = b.to - b.from;
    const bool short_groups = a.group == STEP;
    // Of the sums in tiles, and of those that wait. Not copied: that would wait for earlier stores of tiles.
    Groups described[3][2];
    int64_t next = 0;  // units of the sums in tiles
    int64_t waiting_units = 0;
    int turn = 0, now = 0, waits = 0;
    float* before = nowhere;  // where these belong
    for (int64_t k = 0, piece = 0; k < a.k; piece = (piece + 1) % 3) {
        const int64_t g = k / a.group, within = k % a.group,
                      left = a.k - k < a.group - within ? a.k - k : a.group - within;
        Piece p = {1, (left < PIECE ? left : PIECE) / STEP, within == 0, left <= PIECE};
        if (a.group <= PIECE && g < whole) {
            const int64_t most = short_groups || a.group * GROUPS < PIECE ? GROUPS : PIECE / a.group;
            p.groups = most < whole - g ? most : whole - g;
        }
        const char* group = a.w + panel * s.panel + g * s.record;
        const int64_t bytes = p.groups * p.steps * STEP / codes.places * WORDS;
        for (int64_t i = 0; i < p.groups; i++, group += s.record) {
            codes.expand(a, group + s.head + within / codes.places * WORDS, bytes, p.steps, numbers + i * p.steps);
            if (p.ends) parts[piece][i].read(group, codes.unit, a);
        }
        const char* first = (const char*)(b.rows.x + k);
        const int64_t stride = b.rows.stride * sizeof(bf16), places = p.groups * p.steps * STEP;
        char* const x_piece = room.x + k * ((tiles + 1) / 2) * PLACE;
        const auto waiting = [&](int64_t t, int64_t row, const float* at, int64_t pitch, int64_t i,
                                 int64_t groups) INLINE_LAMBDA {
            return Groups{room.totals.data() + t * 2 * TILE,    at,      pitch, parts[piece] + i, groups, TILE,
                          b.rows.sums + row * s.groups + g + i, s.groups};
        };
        if (short_groups) {
            for (int64_t t = 0; t < tiles; t++, turn ^= 1) {
                const int64_t row = first_row(b.from + t, a.m) - b.first;
                char* const tile = x_piece + t * places * PLACE / 2;
                if (k == 0) put_tile(b, room, t, a);
                const Units<SHIFTED, OFFSETS, false> units = {described[now], 0, next};
                float* const to = sums[turn];
                if (room.stored)
                    before = multiply_short<false, STEP>({{tile}, ROW, WHOLE, nullptr, 0}, numbers, p.groups, to,
                                                         before, nowhere, units);
                else
                    before = multiply_short<true, STEP>({{first + row * stride}, stride, ROW, tile, WHOLE}, numbers,
                                                        p.groups, to, before, nowhere, units);
                now ^= 1;
                next = UNITS, described[now][0] = waiting(t, row, to, 2 * SUMS, 0, p.groups);
            }
        } else {
            for (int64_t t = 0; t < tiles; t += 2) {
                const int64_t row[2] = {first_row(b.from + t, a.m) - b.first, first_row(b.from + t + 1, a.m) - b.first};
                const int both = t + 1 < tiles;
                float* open = (float*)(room.open.data() + t * 2 * TILE);
                if (k == 0)
                    for (int64_t j = t; j <= t + both; j++) put_tile(b, room, j, a);
                for (int64_t i = 0; i < p.groups; i++, turn ^= 1) {
                    const int64_t step = i * p.steps, at = step * ROW;
                    const Units<SHIFTED, OFFSETS, true> units = {described[waits], 0, waiting_units};
                    char* const tile = x_piece + (t / 2 * places + step * STEP) * PLACE;
                    if (room.stored) {
                        const XTiles x = {{tile, tile + WHOLE}, ROW, 2 * WHOLE, nullptr, 0};
                        both ? multiply<2, false, STEP>(x, numbers + step, p, open, before, units)
                             : multiply<1, false, STEP>(x, numbers + step, p, open, before, units);
                    } else {
                        const XTiles x = {
                            {first + row[0] * stride + at, first + row[1] * stride + at}, stride, ROW, tile, 2 * WHOLE};
                        both ? multiply<2, true, STEP>(x, numbers + step, p, open, before, units)
                             : multiply<1, true, STEP>(x, numbers + step, p, open, before, units);
                    }
                    waits = now, waiting_units = next;
                    now = now == 2 ? 0 : now + 1;
                    before = p.ends ? sums[turn] : open;
                    next = p.ends ? (1 + both) * UNITS : 0;
                    for (int j = 0; p.ends && j <= both; j++)
                        described[now][j] = waiting(t + j, row[j], before + 2 * j * SUMS, 0, i, 1);
                }
            }
        }
        k += places;
    }
    Units<SHIFTED, OFFSETS, false>{described[waits], 0, waiting_units}.some(2 * UNITS);
    _tile_stored(2, short_groups ? before : before + 2 * SUMS, LINE);
    _tile_stored(3, short_groups ? before + SUMS : before + 3 * SUMS, LINE);
    if (!short_groups) {
        _tile_stored(0, before, LINE);
        _tile_stored(1, before + SUMS, LINE);
    }
    Units<SHIFTED, OFFSETS, false>{described[now], 0, next}.some(2 * UNITS);
    room.stored = true, room.panel = panel;
}
#endif
