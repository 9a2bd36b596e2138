// Compute y = x W^T + bias with quantized weights and activations in 8 bits on matrix tiles (AMX), for several rows of x:
// int8_rows.h says what is computed, tiles.h how tiles lie. With bytes a tile of W has four places of 16 outputs in a row:
// codes of 8 bits lie so in memory (quantized.h), those of 4 bits are spread over two such rows.
//
// A tile of sums holds one group of 16 rows of x and 16 outputs, whole numbers. It goes through the first cache to the vector
// registers, which scale it and add it to the totals while the tiles multiply the next groups.
#include "int8_rows.h"
#include "quantized_tiles.h"

#if defined(__AMX_INT8__)

constexpr int64_t LONGEST = 256;  // places of a group: int8_activations.py
constexpr int64_t PIECE = 128;    // places of a panel that all rows are multiplied by at once, where groups are shorter
constexpr int64_t GROUPS = PIECE / 16;  // of a piece, at most
constexpr int64_t TOGETHER = 2;         // groups that become totals at once
constexpr int64_t CACHED = 1 << 19;     // bytes of x that are worked on at once: a quarter of a core's second cache

// Describe where the tiles of W lie, in bytes: rows of a tile, the other half's tile, the tiles of the next step.
struct Pitches {
    int64_t row, half, step;
};

// Multiply one or two tiles of x by a group. Tiles 0 to 3 are the sums, 4 and 5 x, 6 and 7 W.
template <int TILES, int64_t STEP>
static INLINE void multiply(const int8_t* const (&x)[2], int64_t stride, const char* w, const Pitches& p, int64_t steps,
                            int32_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    if (TILES == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < steps; i++, w += p.step) {
        _tile_loadd(4, x[0] + i * STEP, stride);
        _tile_loadd(6, w, p.row);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, w + p.half, p.row);
        _tile_dpbssd(1, 4, 7);
        if (TILES == 2) {
            _tile_loadd(5, x[1] + i * STEP, stride);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + SUMS, LINE);
    if (TILES == 2) {
        _tile_stored(2, sums + 2 * SUMS, LINE);
        _tile_stored(3, sums + 3 * SUMS, LINE);
    }
}

// Describe sums of groups, which become totals of rows.
struct Waiting {
    vec* totals;                  // [rows][2]
    const int32_t* sums;          // of the first group and half: [16 rows][16]; 4 tiles to the next group
    const Int8Parts (*parts)[2];  // of each group and half
    int64_t groups;
    int rows;
    const float *scales, *of_x, *scaled;  // of the first group and row: Int8Rows'
    int64_t pitch;                        // from group to group
};

template <int ROWS, bool SHIFTED, bool OFFSETS>
static INLINE void finish_rows(const Waiting& f, int row, int h) {
    vec total[ROWS];
    for (int i = 0; i < ROWS; i++) total[i] = f.totals[2 * (row + i) + h];
    const int32_t* sums = f.sums + h * SUMS + row * TILE;
    const float *scales = f.scales + row, *of_x = f.of_x + row, *scaled = f.scaled + row;
    for (int64_t g = 0; g < f.groups; g++) {
        const Int8Parts& parts = f.parts[g][h];
        const vec scale = parts.scale, minus_zero = parts.minus_zero, offset = parts.offset;
        for (int i = 0; i < ROWS; i++) {
            vec values = (vec)_mm512_cvtepi32_ps(_mm512_load_si512(sums + i * TILE));
            if (SHIFTED) values = fused(minus_zero, vec{} + of_x[i], values);
            total[i] = fused(scale * scales[i], values, total[i]);
            if (OFFSETS) total[i] = fused(offset, vec{} + scaled[i], total[i]);
        }
        sums += 4 * SUMS, scales += f.pitch, of_x += f.pitch, scaled += f.pitch;
    }
    for (int i = 0; i < ROWS; i++) f.totals[2 * (row + i) + h] = total[i];
}
template <bool SHIFTED, bool OFFSETS>
__attribute__((noinline)) static void finish(const Waiting& f) {
    int row = 0;
    for (; row + 8 <= f.rows; row += 8)
        for (int h = 0; h < 2; h++) finish_rows<8, SHIFTED, OFFSETS>(f, row, h);
    for (; row < f.rows; row++)
        for (int h = 0; h < 2; h++) finish_rows<1, SHIFTED, OFFSETS>(f, row, h);
}

// Spread a step's codes of 4 bits over the rows of tiles, less the zero that all groups share.
template <int64_t STEP>
static INLINE void spread(const char* at, int64_t ahead, uvec zero, char* to) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < STEP / 8; i++, at += WORDS, to += 2 * LINE)
        for (int h = 0; h < 2; h++) {
            const char* here = at + h * (WORDS / 2);
            __builtin_prefetch(here + ahead);
            const uvec words = load_words(here);
            char* row = to + h * (STEP / 4 * LINE);
            _mm512_store_si512(row, _mm512_sub_epi8((__m512i)(words & 0x0f0f0f0fu), (__m512i)zero));
            _mm512_store_si512(row + LINE, _mm512_sub_epi8((__m512i)(words >> 4 & 0x0f0f0f0fu), (__m512i)zero));
        }
}

// Hold the tiles of x that a panel is multiplied by, [from, to), and what a thread computes with.
struct Work {
    const Int8Rows& x;
    int64_t from, to;
    std::vector<vec>& totals;  // [tiles of x][16][2]
    bool away;                 // whether y goes past the caches
};

// Return the first row of tile t of x. The last tile overlaps the one before it where m is no multiple of 16: the rows they
// share are computed twice, with equal results. With less than 16 rows the tiles themselves are smaller.
static INLINE int64_t first_row(int64_t t, int64_t m) { return t * TILE + TILE <= m || m < TILE ? t * TILE : m - TILE; }

// Hold a piece of a panel as it is multiplied: some groups, and their codes where they had to be spread.
template <int BITS>
struct Piece {
    alignas(LINE) char spread[BITS == 8 ? LINE : LONGEST * PANEL];
    Int8Parts parts[GROUPS][2];
    const char* codes[GROUPS];
    int64_t steps[GROUPS];
};

// Prepare group g of a panel as group i of a piece.
template <int BITS, int64_t STEP, bool SHIFTED>
static INLINE void prepare(Piece<BITS>& to, int64_t i, int64_t g, const char* panel, const Sizes& s, uvec zero,
                           const Int8Args& args) {
    constexpr int PLACES = 32 / BITS;
    const QuantizedArgs& a = args.w;
    const int64_t k = g * args.x_group, left = a.k - k < args.x_group ? a.k - k : args.x_group;
    const char* group = panel + k / a.group * s.record;
    const char* at = group + s.head + k % a.group / PLACES * WORDS;
    to.steps[i] = left / STEP;
    for (int h = 0; h < 2; h++) {
        to.parts[i][h].read(group, h, a);
        if (BITS == 8 && SHIFTED) to.parts[i][h].minus_zero = to.parts[i][h].minus_zero - float(a.zero);
    }
    if (BITS == 8) {
        to.codes[i] = at;
        for (int64_t line = 0; line < left * PANEL; line += LINE) __builtin_prefetch(at + LONGEST * PANEL + line);
    } else {
        char* codes = to.spread + i * args.x_group * PANEL;
        to.codes[i] = codes;
        for (int64_t j = 0; j < to.steps[i]; j++)
            spread<STEP>(at + j * STEP / PLACES * WORDS, LONGEST / PLACES * WORDS, zero, codes + j * STEP * PANEL);
    }
}

// Multiply the tiles of x by a panel, a piece of it at a time. The next piece is prepared while the first tiles of x are
// multiplied by this one: vectors and tiles work side by side, and tiles can't be loaded from what was just written.
template <int BITS, int64_t STEP, bool SHIFTED, bool OFFSETS>
static void panel_by(const Work& work, int64_t panel, const Int8Args& args) {
    const QuantizedArgs& a = args.w;
    const Int8Rows& x = work.x;
    const Sizes s(a, 32 / BITS);
    const Pitches pitches =
        BITS == 8 ? Pitches{WORDS, LINE, STEP / 4 * WORDS} : Pitches{LINE, STEP / 4 * LINE, 2 * (STEP / 4 * LINE)};
    const uvec zero = uvec{} + uint32_t(shift_of(a) & 0xff) * 0x01010101u;
    const char* w = a.w + panel * s.panel;
    Piece<BITS> pieces[2];
    alignas(LINE) int32_t sums[2][TOGETHER * 4 * SUMS];  // of the groups now, and of those before
    const int64_t tiles = work.to - work.from, in_piece = args.x_group < PIECE ? PIECE / args.x_group : 1;
    const int rows = int(a.m < TILE ? a.m : TILE);
    vec* totals = work.totals.data();
    for (int64_t i = 0; i < tiles * 2 * TILE; i++) totals[i] = vec{};
    for (int64_t i = 0; i < in_piece && i < x.groups; i++)
        prepare<BITS, STEP, SHIFTED>(pieces[0], i, i, w, s, zero, args);
    int64_t now = 0;  // which of the pieces
    for (int64_t g = 0; g < x.groups; g += in_piece, now ^= 1) {
        const int64_t count = x.groups - g < in_piece ? x.groups - g : in_piece;
        const Piece<BITS>& piece = pieces[now];
        Waiting last[2];  // sums that wait: vectors add them while the tiles multiply the next
        int before = 0, turn = 0;
        for (int64_t t = 0; t < tiles; t += 2) {
            const int64_t row[2] = {first_row(work.from + t, a.m), first_row(work.from + t + 1, a.m)};
            const int both = t + 1 < tiles;
            for (int64_t i = 0; i < count; i += TOGETHER, turn ^= 1) {
                const int64_t some = count - i < TOGETHER ? count - i : TOGETHER;
                for (int64_t j = i; j < i + some; j++) {
                    const int64_t k = (g + j) * args.x_group;
                    const int8_t* const at[2] = {x.codes + row[0] * x.stride + k, x.codes + row[1] * x.stride + k};
                    int32_t* to = sums[turn] + (j - i) * 4 * SUMS;
                    if (both)
                        multiply<2, STEP>(at, x.stride, piece.codes[j], pitches, piece.steps[j], to);
                    else
                        multiply<1, STEP>(at, x.stride, piece.codes[j], pitches, piece.steps[j], to);
                    if (t == 0 && g + in_piece + j < x.groups)
                        prepare<BITS, STEP, SHIFTED>(pieces[now ^ 1], j, g + in_piece + j, w, s, zero, args);
                }
                for (int j = 0; j < before; j++) finish<SHIFTED, OFFSETS>(last[j]);
                before = 1 + both;
                for (int j = 0; j < before; j++) {
                    const int64_t at = (g + i) * x.count + row[j];
                    last[j] = {totals + (t + j) * 2 * TILE,
                               sums[turn] + 2 * j * SUMS,
                               piece.parts + i,
                               some,
                               rows,
                               x.scales + at,
                               x.sums + at,
                               x.scaled + at,
                               x.count};
                }
            }
        }
        for (int j = 0; j < before; j++) finish<SHIFTED, OFFSETS>(last[j]);
    }
    const int64_t column = panel * PANEL;
    const bool away = work.away && rows == TILE && column + PANEL <= a.n;
    for (int64_t t = 0; t < tiles; t++, totals += 2 * TILE) {
        const int64_t row = first_row(work.from + t, a.m);
        away ? put_away(a, row, column, totals) : put(a, row, rows, column, totals);
    }
}

template <int BITS, int64_t STEP, bool SHIFTED, bool OFFSETS>
static void linear(const Int8Args& args) {
    const QuantizedArgs& a = args.w;
    const int64_t panels = (a.n + PANEL - 1) / PANEL, share = panels / (4 * omp_get_max_threads()),
                  run = share < 1 ? 1 : share;  // panels that a thread takes at once
    // As many tiles of x at once as stay in a core's cache while W is read; then W is read again for the next ones.
    const int64_t tiles = (a.m + TILE - 1) / TILE, most = CACHED / (TILE * a.k),
                  rounds = most < 4 ? (tiles + 3) / 4 : (tiles + most - 1) / most,
                  at_once = ((tiles + rounds - 1) / rounds + 1) / 2 * 2;
    static thread_local Int8Memory memory;
    const Int8Rows x = place_int8(memory, args);
#pragma omp parallel if (a.n * a.k > 16384)
    {
        const uint8_t rows = uint8_t(a.m < TILE ? a.m : TILE), quarter = STEP / 4;
        configure_tiles({rows, rows, rows, rows, rows, rows, quarter, quarter},
                        {LINE, LINE, LINE, LINE, STEP, STEP, LINE, LINE});
        std::vector<vec> totals(at_once * 2 * TILE);
        const int64_t pitch = a.y_stride * (a.y_type == BF16 ? sizeof(bf16) : sizeof(float));
        const bool away = !a.gated && goes_past_caches(a.y, a.m, pitch);  // a gated panel has half of a line
        round_rows<BITS, SHIFTED || OFFSETS>(x, args);
        for (int64_t from = 0; from < tiles; from += at_once) {
            const Work work = {x, from, from + at_once < tiles ? from + at_once : tiles, totals, away};
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++)
                    panel_by<BITS, STEP, SHIFTED, OFFSETS>(work, n, args);
        }
        _mm_sfence();  // what went past the caches may be read by other threads now
        _tile_release();
    }
}

template <int BITS, int64_t STEP>
static void by_parts(const Int8Args& a) {
    const bool shifted = a.w.zeros || (BITS == 8 && a.w.zero != 0);
    if (a.w.offsets)
        shifted ? linear<BITS, STEP, true, true>(a) : linear<BITS, STEP, false, true>(a);
    else
        shifted ? linear<BITS, STEP, true, false>(a) : linear<BITS, STEP, false, false>(a);
}
template <int BITS>
static void by_steps(const Int8Args& a) {
    if (a.x_group % 64 == 0 && a.w.k % 64 == 0)
        by_parts<BITS, 64>(a);
    else if (a.x_group % 32 == 0 && a.w.k % 32 == 0)
        by_parts<BITS, 32>(a);
    else
        by_parts<BITS, 16>(a);
}

EXPORT void glasshouse_linear_int8_amx(const Int8Args* args) {
    if (!args->w.m) return;
    args->w.kind == SIGNED8 ? by_steps<8>(*args) : by_steps<4>(*args);
}
#endif
