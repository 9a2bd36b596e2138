// Compute y = x W^T + bias with quantized weights on matrix tiles (AMX), for any number of rows of x in bf16.
//
// W lies in panels (quantized.h). A panel's codes become numbers in bf16, exact ones, in the order of a tile of W (tiles.h):
// `PairCodes` gives a pair of places of 16 outputs, which is a row of such a tile. A tile of sums holds one group at a time,
//
//   for each group:  C = x W over the group's places;  total += scale * (C - zero * sum of x) + offset * sum of x
//
// because each group has scales of its own. C goes through the first cache to the vector registers, which add it to the totals
// while the tiles multiply the next groups.
//
// One tile of x (up to 16 rows): codes become numbers a few steps before they are multiplied, so that both overlap with reading.
// More tiles: the numbers of a piece of the panel stay in the first cache, and all rows are multiplied by them. As without
// codes (linear_amx.cpp) the first panel stores the tiles of x in the order in which they are read, and y goes past the caches.
//
// One row of whole numbers of 8 bits: making bf16 of them would take longer than reading, so vectors multiply it (`one`).
//
// A tile adds in an order of its own: even and odd places apart. All ways add the same products in this order: a row's result
// depends neither on the number of rows nor on the other rows.
#include "quantized_tiles_few.h"

#if defined(__AMX_BF16__)

constexpr int64_t PIECE = 256;          // places whose numbers are kept
constexpr int64_t GROUPS = PIECE / 16;  // of a piece, at most
constexpr int64_t TOGETHER = 2;         // groups that become totals at once
constexpr int64_t CACHED = 1 << 20;     // bytes of x that are worked on at once: half of a core's second cache

// Hold what a thread computes with.
struct Room {
    std::vector<vec> totals, open;  // [tiles of x][16][2]; sums of a group that isn't complete: [tiles of x][2][16]
    char* x;                        // tiles in order: [pieces][pairs of tiles][steps][2 tiles]
    bool stored = false;            // whether they are there
    bool away;                      // whether y goes past the caches
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

// Say where two tiles of x lie: bytes from one row to the next, and from one step to the next.
struct XTiles {
    const char* at[2];
    int64_t row, step;
    char* store;  // where they are stored in order
};

// Multiply one or two tiles of x by groups of a piece. Tiles 0 to 3 are the sums, 4 and 5 x, 6 and 7 W.
template <int TILES, bool STORES, int64_t STEP>
static INLINE void multiply(const XTiles& x, const Numbers<STEP>* w, int64_t groups, const Piece& p, float* open,
                            float* sums) {
    constexpr int64_t ROW = STEP * sizeof(bf16), WHOLE = TILE * ROW;
    for (int64_t g = 0, i = 0; g < groups; g++, sums += 4 * SUMS) {
        if (p.begins) {
            _tile_zero(0);
            _tile_zero(1);
            if (TILES == 2) {
                _tile_zero(2);
                _tile_zero(3);
            }
        } else {
            _tile_loadd(0, open, LINE);
            _tile_loadd(1, open + SUMS, LINE);
            if (TILES == 2) {
                _tile_loadd(2, open + 2 * SUMS, LINE);
                _tile_loadd(3, open + 3 * SUMS, LINE);
            }
        }
        for (int64_t end = i + p.steps; i < end; i++) {
            _tile_loadd(4, x.at[0] + i * x.step, x.row);
            if (STORES) _tile_stored(4, x.store + i * 2 * WHOLE, ROW);
            _tile_loadd(6, w[i].pairs[0], LINE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w[i].pairs[1], LINE);
            _tile_dpbf16ps(1, 4, 7);
            if (TILES == 2) {
                _tile_loadd(5, x.at[1] + i * x.step, x.row);
                if (STORES) _tile_stored(5, x.store + i * 2 * WHOLE + WHOLE, ROW);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        float* to = p.ends ? sums : open;
        _tile_stored(0, to, LINE);
        _tile_stored(1, to + SUMS, LINE);
        if (TILES == 2) {
            _tile_stored(2, to + 2 * SUMS, LINE);
            _tile_stored(3, to + 3 * SUMS, LINE);
        }
    }
}

// Multiply several tiles of x by a panel, a piece of it at a time.
template <class Source, int64_t STEP>
static void many(const Block& b, int64_t panel, Room& room, const QuantizedArgs& a) {
    const Sizes s(a, Source::PLACES);
    const Source codes(a.table);
    Numbers<STEP> numbers[PIECE / STEP];
    GroupParts parts[GROUPS];
    alignas(LINE) float sums[2][TOGETHER * 4 * SUMS];  // of the groups now, and of those before
    const int64_t whole = a.k / a.group, tiles = b.to - b.from;
    for (int64_t i = 0; i < tiles * 2 * TILE; i++) room.totals[i] = vec{};
    for (int64_t k = 0; k < a.k;) {
        const int64_t g = k / a.group, within = k % a.group,
                      left = a.k - k < a.group - within ? a.k - k : a.group - within;
        Piece p = {1, (left < PIECE ? left : PIECE) / STEP, within == 0, left <= PIECE};
        if (a.group <= PIECE && g < whole) p.groups = PIECE / a.group < whole - g ? PIECE / a.group : whole - g;
        const char* group = a.w + panel * s.panel + g * s.record;
        const int64_t bytes = p.groups * p.steps * STEP / Source::PLACES * WORDS;
        for (int64_t i = 0; i < p.groups; i++, group += s.record) {
            const char* at = group + s.head + within / Source::PLACES * WORDS;
            for (int64_t j = 0; j < p.steps; j++) at = expand<Source, STEP>(codes, at, bytes, numbers[i * p.steps + j]);
            if (p.ends) parts[i].read(group, Source::UNIT, a);
        }
        const char* first = (const char*)(b.rows.x + k);
        const int64_t stride = b.rows.stride * sizeof(bf16), places = p.groups * p.steps * STEP;
        Groups last[2];  // whose sums wait: vectors add them while the tiles multiply the next
        int before = 0, turn = 0;
        for (int64_t t = 0; t < tiles; t += 2) {
            const int64_t row[2] = {first_row(b.from + t, a.m) - b.first, first_row(b.from + t + 1, a.m) - b.first};
            const int both = t + 1 < tiles;
            float* open = (float*)(room.open.data() + t * 2 * TILE);
            for (int64_t i = 0; i < p.groups; i += TOGETHER, turn ^= 1) {
                const int64_t groups = p.groups - i < TOGETHER ? p.groups - i : TOGETHER, step = i * p.steps;
                const int64_t at = step * STEP * sizeof(bf16), row_bytes = STEP * sizeof(bf16);
                char* const tile = room.x + (k * ((tiles + 1) / 2) + t / 2 * places + step * STEP) * PLACE;
                float* to = sums[turn];
                if (room.stored) {
                    const XTiles x = {{tile, tile + STEP * PLACE / 2}, row_bytes, STEP * PLACE, nullptr};
                    both ? multiply<2, false, STEP>(x, numbers + step, groups, p, open, to)
                         : multiply<1, false, STEP>(x, numbers + step, groups, p, open, to);
                } else {
                    const XTiles x = {
                        {first + row[0] * stride + at, first + row[1] * stride + at}, stride, row_bytes, tile};
                    both ? multiply<2, true, STEP>(x, numbers + step, groups, p, open, to)
                         : multiply<1, true, STEP>(x, numbers + step, groups, p, open, to);
                }
                for (int j = 0; j < before; j++) finish(last[j], a);
                before = p.ends ? 1 + both : 0;
                for (int j = 0; j < before; j++)
                    last[j] = {room.totals.data() + (t + j) * 2 * TILE,
                               sums[turn] + 2 * j * SUMS,
                               4 * SUMS,
                               parts + i,
                               groups,
                               TILE,
                               b.rows.sums + row[j] * s.groups + g + i,
                               s.groups};
            }
        }
        for (int j = 0; j < before; j++) finish(last[j], a);
        k += places;
    }
    room.stored = true;
    const int64_t column = panel * PANEL;
    const bool away = room.away && column + PANEL <= a.n;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t row = first_row(b.from + t, a.m);
        const vec* totals = room.totals.data() + t * 2 * TILE;
        away ? put_away(a, row, column, totals) : put(a, row, TILE, column, totals);
    }
}

template <int64_t KIND, int64_t STEP>
static void linear(const QuantizedArgs& a) {
    typedef PairCodes<KIND> Source;
    const int64_t panels = (a.n + PANEL - 1) / PANEL, share = panels / (4 * omp_get_max_threads()),
                  run = share < 1 ? 1 : share;  // panels that a thread takes at once
    // As many tiles of x at once as stay in a core's cache while W is read; then W is read again for the next ones.
    const int64_t tiles = (a.m + TILE - 1) / TILE, most = CACHED / (TILE * a.k * int64_t(sizeof(bf16))),
                  rounds = most < 4 ? (tiles + 3) / 4 : (tiles + most - 1) / most,
                  at_once = ((tiles + rounds - 1) / rounds + 1) / 2 * 2;
    static thread_local RowsMemory<bf16> memory;
    RowsMemory<bf16>& shared = memory;
#pragma omp parallel if (a.n * a.k > 16384)
    {
        const uint8_t rows = uint8_t(a.m < TILE ? a.m : TILE), pairs = STEP / 2;
        configure_tiles({rows, rows, rows, rows, rows, rows, pairs, pairs},
                        {LINE, LINE, LINE, LINE, 2 * STEP, 2 * STEP, LINE, LINE});
        const Flushing flushing(KIND == SIGNED8);  // numbers of FLOAT8 are made of subnormal ones
        if (KIND == SIGNED8 && a.m == 1) {
            const Rows<float> numbers = rows_of<float>((const bf16*)a.x, 1, a);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++) one<KIND, STEP>(numbers, n, a);
        } else if (a.m <= TILE) {
            const Block b = {rows_of<bf16>((const bf16*)a.x, a.m, a), 0, 0, 1};
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++) few<Source, STEP>(b, a.m, n, a);
        } else {
            static thread_local KeptMemory kept;
            const int64_t pitch = a.y_stride * (a.y_type == BF16 ? sizeof(bf16) : sizeof(float));
            Room room(at_once, kept.of(at_once / 2 * a.k * PLACE), goes_past_caches(a.y, a.m, pitch));
            for (int64_t from = 0; from < tiles; from += at_once) {
                const int64_t to = from + at_once < tiles ? from + at_once : tiles, first = first_row(from, a.m),
                              count = first_row(to - 1, a.m) + TILE - first;
                const bf16* x = (const bf16*)a.x + first * a.x_stride;
                Block b = {{}, first, from, to};
                room.stored = false;
#pragma omp single copyprivate(b)
                b.rows = place_rows(x, count, shared, a);
                if (b.rows.sums || b.rows.x == shared.numbers.data()) {
#pragma omp for schedule(static)
                    for (int64_t i = 0; i < count; i++) fill_row(x, i, b.rows, a);
                }
#pragma omp for schedule(dynamic, 1)
                for (int64_t start = 0; start < panels; start += run)
                    for (int64_t n = start; n < start + run && n < panels; n++) many<Source, STEP>(b, n, room, a);
            }
        }
        _mm_sfence();  // what went past the caches may be read by other threads now
        _tile_release();
    }
}

EXPORT void glasshouse_linear_quantized_amx(const QuantizedArgs* args) {
    const QuantizedArgs& a = *args;
    if (!a.m) return;
    with_kind(a.kind, [&](auto kind) {
        if (a.group % 32 || a.k % 32)
            linear<kind(), 16>(a);
        else
            linear<kind(), 32>(a);
    });
}
#endif
