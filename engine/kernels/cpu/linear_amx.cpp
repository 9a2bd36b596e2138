// Compute y = x W^T + bias in bf16 for any number of rows, on the matrix tiles (AMX) of newer Xeons.
//
// A tile instruction multiplies 16 rows of x, unchanged, with 16 columns of W^T over 32 places of k (tiles.h). The columns
// must be transposed, in pairs. torch transposes W in every call, which costs more than reading it; here W is transposed once,
// when a model is loaded (pack_weight in linear_ops.py), in the order in which it is read:
//
//   W packed: [n / 32 blocks][k / 32 steps][2 tiles][16 pairs of places][16 outputs][2]
//
// so that W is read in address order, 2 KiB a step. That is the whole cost up to some 32 rows: a step's four
// multiplications take 64 cycles, its 2 KiB take 250 and more to arrive. With hundreds of rows arithmetic takes longer, and
// what counts is how x, W and y lie in the caches:
//
//   x  stays in the second one (CACHED), tile after tile: the first block of W that meets its tiles stores them in this order.
//      Rows whose length is a power of 2 would push one another out of the first cache.
//   W  the part at work stays in the first one (SLAB)
//   y  goes past them to memory, in whole lines (goes_past_caches). A gated block has half a line, which waits for the next
//      block's half.
#include "tiles.h"

#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>

constexpr int64_t TILE = 16, PLACES = 32;          // rows of a tile; places of k in one step
constexpr int64_t OUTPUTS = 2 * TILE;              // of a block of W
constexpr int64_t STEP = OUTPUTS * PLACES * 2;     // bytes of W in one step
constexpr int64_t LINE = 64, LINES = STEP / LINE;  // what the memory returns at once
constexpr int64_t NEAR = 4 * STEP;                 // how far ahead to prefetch, where W is read once
constexpr int64_t CACHED = 1 << 20;       // bytes of x that are worked on at once: half of a core's second cache
constexpr int64_t SLAB = 9, SLABBED = 4;  // steps that stay in the first cache, at most; with that many passes and more
constexpr int64_t SUMS = TILE * TILE;     // numbers in a tile of sums

struct AmxLinearArgs {
    const bf16 *x, *w, *bias;  // [m, k], packed, [n] or null; k and n multiples of 32
    void* y;                   // [m, n], or [m, n / 2]
    int64_t m, n, k, x_stride, y_stride;
    int64_t x_type, w_type, y_type;  // x and W in bf16; y too, or in fp32
    int64_t gated;                   // y = silu(gate) * up: of each block, the first tile is of gate, the second of up
};

// Ask Linux for the tiles' 8 KiB of registers, which a process gets only on request. Return 0 if it grants them.
EXPORT int64_t glasshouse_allow_amx() {
    const long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

// Describe one pass over `steps` of a block of W: which rows of x it multiplies, and what it prefetches.
struct Pass {
    int64_t column, rows[2];  // first output; first row of each tile of x
    const char* w;
    int64_t from, steps;  // in k
    char* x;              // for its tiles in the order in which they are multiplied: [steps][2][16 rows][32 places]
    bf16* halves[2];      // of the lines of y, for each tile
    float* sums;          // of this pass, 4 tiles: kept between the slabs of a block
    bool first, last;     // slab of the block
    const char* ahead;
    int64_t lines, every;  // prefetched in each step: every n-th of so many lines
};

static INLINE __m512 widened(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}

// Write 64 bytes, a whole line if they go past the caches.
template <bool AWAY>
static INLINE void store_line(void* y, __m512i line) {
    AWAY ? _mm512_stream_si512((__m512i*)y, line) : _mm512_storeu_si512(y, line);
}
template <bool AWAY>
static INLINE void store_pair(bf16* y, __m512 a, __m512 b) {
    store_line<AWAY>(y, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}
template <bool AWAY>
static INLINE void store_pair(float* y, __m512 a, __m512 b) {
    store_line<AWAY>(y, _mm512_castps_si512(a));
    store_line<AWAY>(y + TILE, _mm512_castps_si512(b));
}
// Write two tiles of sums, side by side, with their bias to y.
template <bool AWAY, class Y>
static INLINE void put(const float* sums, const bf16* bias, Y* y, int64_t rows, int64_t stride) {
    const __m512 low = bias ? widened(bias) : _mm512_setzero_ps(),
                 high = bias ? widened(bias + TILE) : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; i++) {
        __m512 a = _mm512_add_ps(_mm512_load_ps(sums + i * TILE), low);
        __m512 b = _mm512_add_ps(_mm512_load_ps(sums + (TILE + i) * TILE), high);
        store_pair<AWAY>(y + i * stride, a, b);
    }
}

// Call store(row, silu(first tile) * second tile), each with its bias, for each row.
template <class Store>
static INLINE void gate(const float* sums, const bf16* bias, int64_t rows, Store store) {
    const vec gate_bias = bias ? load(bias) : vec{}, up_bias = bias ? load(bias + TILE) : vec{};
    for (int64_t i = 0; i < rows; i++) {
        const vec gate = load(sums + i * TILE) + gate_bias, up = load(sums + (TILE + i) * TILE) + up_bias;
        store(i, silu(gate) * up);
    }
}
// Write a gated block past the caches: keep the first half of each line, write the line with the second one.
static INLINE void put_gated_lines(const float* sums, const bf16* bias, bf16* y, bf16* halves, bool second,
                                   int64_t stride) {
    if (second)
        gate(sums, bias, TILE, [&](int64_t i, vec now) INLINE_LAMBDA {
            const __m512i half = _mm512_castsi256_si512(_mm256_load_si256((const __m256i*)(halves + i * TILE)));
            store_line<true>(y - TILE + i * stride, _mm512_inserti64x4(half, rounded(now), 1));
        });
    else
        gate(sums, bias, TILE, [&](int64_t i, vec now) INLINE_LAMBDA { store_rounded(halves + i * TILE, now); });
}

// Write the sums of a pass to y. AWAY: past the caches.
template <int TILES, bool AWAY>
static INLINE void put_pass(const AmxLinearArgs& a, const Pass& p, const float* sums) {
    const bf16* bias = a.bias ? a.bias + p.column : nullptr;
    const int64_t rows = a.m < TILE ? a.m : TILE;
    for (int t = 0; t < TILES; t++, sums += 2 * SUMS) {
        const int64_t at = p.rows[t] * a.y_stride + (a.gated ? p.column / 2 : p.column);
        if (!a.gated) {
            WITH_TYPE(a.y_type, Y, (put<AWAY>(sums, bias, (Y*)a.y + at, rows, a.y_stride)));
        } else if (AWAY) {
            put_gated_lines(sums, bias, (bf16*)a.y + at, p.halves[t], p.column % (2 * OUTPUTS) != 0, a.y_stride);
        } else {
            WITH_TYPE(a.y_type, Y, gate(sums, bias, rows, [&](int64_t i, vec now) INLINE_LAMBDA {
                          store_rounded((Y*)a.y + at + i * a.y_stride, now);
                      }));
        }
    }
}

// Say how tiles of x are loaded: from its rows; from there, and stored in order; from where they were stored.
enum Source { ROWS, ROWS_TO_TILES, STORED_TILES };

// Compute 32 outputs of one or two tiles of x. Tiles 0 to 3 are the sums, 4 and 5 x, 6 and 7 W.
template <int TILES, Source SOURCE, bool AWAY>
static INLINE void walk(const AmxLinearArgs& a, const Pass& p) {
    const bf16 *upper = a.x + p.rows[0] * a.x_stride + p.from * PLACES,
               *lower = a.x + p.rows[1] * a.x_stride + p.from * PLACES;
    const int64_t stride = a.x_stride * sizeof(bf16);
    if (p.first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, p.sums, LINE);
        _tile_loadd(1, p.sums + SUMS, LINE);
        if (TILES == 2) {
            _tile_loadd(2, p.sums + 2 * SUMS, LINE);
            _tile_loadd(3, p.sums + 3 * SUMS, LINE);
        }
    }
    for (int64_t i = 0; i < p.steps; i++) {
        for (int64_t l = 0; l < p.lines; l += p.every) __builtin_prefetch(p.ahead + (i * p.lines + l) * LINE, 0, 2);
        char* const tiles = p.x + i * STEP;
        if (SOURCE == STORED_TILES)
            _tile_loadd(4, tiles, LINE);
        else
            _tile_loadd(4, upper + i * PLACES, stride);
        if (SOURCE == ROWS_TO_TILES) _tile_stored(4, tiles, LINE);
        _tile_loadd(6, p.w + i * STEP, LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, p.w + i * STEP + STEP / 2, LINE);
        _tile_dpbf16ps(1, 4, 7);
        if (TILES == 2) {
            if (SOURCE == STORED_TILES)
                _tile_loadd(5, tiles + STEP / 2, LINE);
            else
                _tile_loadd(5, lower + i * PLACES, stride);
            if (SOURCE == ROWS_TO_TILES) _tile_stored(5, tiles + STEP / 2, LINE);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float here[4 * SUMS];
    float* sums = p.last ? here : p.sums;
    _tile_stored(0, sums, LINE);
    _tile_stored(1, sums + SUMS, LINE);
    if (TILES == 2) {
        _tile_stored(2, sums + 2 * SUMS, LINE);
        _tile_stored(3, sums + 3 * SUMS, LINE);
    }
    if (p.last) put_pass<TILES, AWAY>(a, p, here);
}

// Return the rows of tile t. The last tile of x overlaps the one before it where m is no multiple of 16: the rows they share
// are computed twice, with equal results. With less than 16 rows the tiles themselves are smaller.
static INLINE int64_t first_row(int64_t t, int64_t m) { return t * TILE + TILE <= m || m < TILE ? t * TILE : m - TILE; }

// Hold what a thread keeps while it multiplies the tiles `from` to `to` of x.
struct Room {
    int64_t from, to;
    float* sums;   // [passes][4 tiles]
    bf16* halves;  // [tiles][16 rows][16]
    char* x;       // [slabs][passes][steps][2 tiles]
    Source source;
};

// Multiply one block of W by a room's tiles of x, two at a time.
template <Source SOURCE, bool AWAY>
static void block(const AmxLinearArgs& a, int64_t b, const Room& room) {
    const int64_t steps = a.k / PLACES, passes = (room.to - room.from + 1) / 2,
                  slabs = passes < SLABBED ? 1 : (steps + SLAB - 1) / SLAB, slab = (steps + slabs - 1) / slabs;
    const char* w = (const char*)a.w + b * steps * STEP;
    for (int64_t s = 0; s < steps; s += slab) {
        const int64_t length = s + slab < steps ? slab : steps - s;
        for (int64_t pass = 0; pass < passes; pass++) {
            const int64_t t = room.from + 2 * pass;
            bf16* halves = room.halves + 2 * pass * SUMS;
            Pass p = {b * OUTPUTS,
                      {first_row(t, a.m), first_row(t + 1, a.m)},
                      w + s * STEP,
                      s,
                      length,
                      room.x + (s * passes + pass * length) * STEP,
                      {halves, halves + SUMS},
                      room.sums + pass * 4 * SUMS,
                      s == 0,
                      s + length == steps,
                      w + s * STEP + NEAR,
                      LINES,
                      1};
            // Where W is read once: prefetch a little ahead. With one tile of x to compute, every fourth line: the CPU's own
            // prefetcher finds the others, and more loads than it can keep open only wait. Else each pass prefetches its
            // share of the next slab.
            if (passes > 1) {
                p.lines = (LINES + passes - 1) / passes;
                p.ahead = w + (s + length) * STEP + pass * p.lines * LINE * length;
            }
            if (t + 1 < room.to) {
                walk<2, SOURCE, AWAY>(a, p);
            } else {
                if (passes == 1) p.every = 4;
                walk<1, SOURCE, AWAY>(a, p);
            }
        }
    }
}
template <bool AWAY>
static void block(const AmxLinearArgs& a, int64_t b, Room& room) {
    if (room.source == ROWS) return block<ROWS, AWAY>(a, b, room);
    if (room.source == STORED_TILES) return block<STORED_TILES, AWAY>(a, b, room);
    block<ROWS_TO_TILES, AWAY>(a, b, room);
    room.source = STORED_TILES;
}

EXPORT void glasshouse_linear_amx(const AmxLinearArgs* args) {
    const AmxLinearArgs& a = *args;
    if (!a.m) return;
    const int64_t tiles = (a.m + TILE - 1) / TILE, blocks = a.n / OUTPUTS;
    // As many tiles of x at once as stay in a core's cache while W is read; then W is read again for the next ones.
    const int64_t most = CACHED / (TILE * a.k * int64_t(sizeof(bf16))),
                  rounds = most < 4 ? (tiles + 3) / 4 : (tiles + most - 1) / most;
    const int64_t at_once = ((tiles + rounds - 1) / rounds + 1) / 2 * 2;
    // Two blocks at least, that share lines of y, if each is half of one.
    const int64_t least = a.gated ? 2 : 1, share = blocks / (4 * omp_get_max_threads() * least),
                  run = (share < 1 ? 1 : share) * least;
    // Of fp32 a gated block writes whole lines, but nobody asks for it.
    const bool away = a.m >= TILE && (!a.gated || a.y_type == BF16) &&
                      goes_past_caches(a.y, a.m, a.y_stride * (a.y_type == BF16 ? sizeof(bf16) : sizeof(float))),
               stored = at_once >= 2 * SLABBED;
#pragma omp parallel if (a.n * a.k > 16384)
    {
        static thread_local KeptMemory memory;
        configure_tiles(a.m < TILE ? a.m : TILE);
        const int64_t sums = at_once / 2 * 4 * SUMS * sizeof(float), halves = at_once * SUMS * sizeof(bf16),
                      x = stored ? at_once * TILE * a.k * int64_t(sizeof(bf16)) : 0;
        char* here = memory.of(sums + halves + x);
        for (int64_t from = 0; from < tiles; from += at_once) {
            Room room = {from,
                         from + at_once < tiles ? from + at_once : tiles,
                         (float*)here,
                         (bf16*)(here + sums),
                         here + sums + halves,
                         stored ? ROWS_TO_TILES : ROWS};
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < blocks; start += run)
                for (int64_t b = start; b < start + run && b < blocks; b++)
                    away ? block<true>(a, b, room) : block<false>(a, b, room);
        }
        _mm_sfence();  // what went past the caches may be read by other threads now
        _tile_release();
    }
}
#endif
