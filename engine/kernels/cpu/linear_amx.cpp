// y = x W^T + bias in bf16 for 1 to 256 rows, on the matrix tiles (AMX) of newer Xeons.
//
// One tile instruction adds the products of 16 rows of W with 16 rows of x over 32 places of k: 8,192 multiplications,
// so that reading W is the whole cost again, up to some 64 rows. It wants its operands in two shapes:
//
//   A: 16 rows x 32 places, row by row       W lies so already: a tile is loaded from where the checkpoint put it
//   B: 16 pairs of places x 16 columns       x, turned; it is small, and turned once a call
//   C: 16 x 16 sums in fp32                  y, turned back when it is stored
//
// (torch does it the other way round and repacks W in every call, which costs more than reading it.)
// While one block of W is computed with, the memory is asked for what comes, evenly over the passes that x takes.
#include "tiles.h"

#if defined(__AMX_BF16__)
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

constexpr int64_t TILE = 16, PLACES = 32;  // rows of a tile; places of k in one step
constexpr int64_t ROWS = 2 * TILE;         // rows of W that a block takes
constexpr int64_t NEAR = 256;              // places; 256 and 512 are alike within noise, 768 is slower
constexpr int64_t CACHED = 1 << 20;        // bytes of x that are worked on at once: half of a core's L2

struct AmxLinearArgs {
    const bf16 *x, *w, *bias;  // [m, k], [n, k], [n] or null; k a multiple of 32, n at least 32
    bf16* y;                   // [m, n]
    int64_t m, n, k, x_stride, y_stride;
    int64_t x_type, w_type;  // both BF16
};

// Linux keeps the tiles' 8 KiB of registers from a process until it asks for them. 0 if it gives them.
EXPORT int64_t glasshouse_allow_amx() {
    const long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

// Up to 16 rows of x as B tiles: [k / 2 pairs][16 columns]; missing rows are zeros.
static void turn_rows(const bf16* x, int64_t m, int64_t k, int64_t stride, uint32_t* out) {
    for (int64_t p = 0; p < k / 2; p += TILE) {
        __m512i rows[16];
        for (int i = 0; i < 16; i++)
            rows[i] = i < m ? _mm512_loadu_si512(x + i * stride + 2 * p) : _mm512_setzero_si512();
        turn(rows, out + p * TILE);
    }
}

// Tile C, 16 outputs x m rows of x, with its bias to y.
static INLINE void put(const float* c, const bf16* bias, bf16* y, int64_t m, int64_t y_stride) {
    const __m512i column = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(TILE));
    __m512 add = _mm512_setzero_ps();
    if (bias) {
        __m256i narrow = _mm256_loadu_si256((const __m256i*)bias);
        add = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    for (int64_t i = 0; i < m; i++) {
        __m512 sums = _mm512_add_ps(_mm512_i32gather_ps(column, c + i, 4), add);
        _mm256_storeu_si256((__m256i*)(y + i * y_stride), (__m256i)_mm512_cvtneps_pbh(sums));
    }
}

// What a pass over a block's rows asks the memory for, at each step of k: the place `far` further in the rows from `low` to
// below `high`; beyond their end, of the rows that come 32 later if there are `more`.
struct Ahead {
    int64_t low, high, far;
    bool more;
};

// 32 rows of W with 16 (one column of tiles) or 32 rows of x.
template <int COLUMNS>
static INLINE void block(const AmxLinearArgs& a, int64_t row, const uint32_t* x, int64_t first, Ahead soon) {
    const int64_t k = a.k, width = k / 2 * TILE;  // width: of one column of B tiles, in pairs
    const bf16* w = a.w + row * k;
    _tile_zero(0);
    _tile_zero(1);
    if (COLUMNS == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < k; i += PLACES) {
        int64_t at = i + soon.far;
        if (at >= k) at = soon.more ? at - k + ROWS * k : -1;
        for (int64_t r = soon.low; r < soon.high && at >= 0; r++) __builtin_prefetch(w + r * k + at);
        _tile_loadd(6, x + i / 2 * TILE, 64);
        _tile_loadd(4, w + i, k * sizeof(bf16));
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + TILE * k + i, k * sizeof(bf16));
        _tile_dpbf16ps(1, 5, 6);
        if (COLUMNS == 2) {
            _tile_loadd(7, x + width + i / 2 * TILE, 64);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    alignas(64) float c[TILE * TILE];
    const bf16 *low = a.bias ? a.bias + row : nullptr, *high = a.bias ? low + TILE : nullptr;
    int64_t left = a.m - first, m = left < TILE ? left : TILE;
    bf16* y = a.y + first * a.y_stride + row;
    _tile_stored(0, c, 64);
    put(c, low, y, m, a.y_stride);
    _tile_stored(1, c, 64);
    put(c, high, y + TILE, m, a.y_stride);
    if (COLUMNS == 2) {
        m = left - TILE < TILE ? left - TILE : TILE, y += TILE * a.y_stride;
        _tile_stored(2, c, 64);
        put(c, low, y, m, a.y_stride);
        _tile_stored(3, c, 64);
        put(c, high, y + TILE, m, a.y_stride);
    }
}

EXPORT void glasshouse_linear_amx(const AmxLinearArgs* args) {
    const AmxLinearArgs& a = *args;
    const int64_t columns = (a.m + TILE - 1) / TILE, width = a.k / 2 * TILE;
    // As many columns at once as stay in a core's cache while W goes by; then W goes by again for the next ones.
    int64_t at_once = CACHED / (width * int64_t(sizeof(uint32_t))) / 2 * 2;
    at_once = at_once < 4 ? 4 : at_once;
    uint32_t* x = (uint32_t*)aligned_alloc(64, columns * width * sizeof(uint32_t));
    // Where n is no multiple of 32 the last block overlaps the one before it: what they share is computed twice, alike.
    const int64_t blocks = (a.n + ROWS - 1) / ROWS, share = blocks / (4 * omp_get_max_threads()), run = share < 1 ? 1 : share;
#pragma omp parallel if (a.n * a.k > 16384)
    {
        configure_tiles();
#pragma omp for schedule(static)
        for (int64_t c = 0; c < columns; c++) {
            int64_t left = a.m - c * TILE;
            turn_rows(a.x + c * TILE * a.x_stride, left < TILE ? left : TILE, a.k, a.x_stride, x + c * width);
        }
        for (int64_t from = 0; from < columns; from += at_once) {
            const int64_t to = from + at_once < columns ? from + at_once : columns, passes = (to - from + 1) / 2;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < blocks; start += run) {
                const int64_t end = start + run < blocks ? start + run : blocks;
                for (int64_t b = start; b < end; b++) {
                    int64_t row = b * ROWS + ROWS <= a.n ? b * ROWS : a.n - ROWS;
                    for (int64_t pass = 0; pass < passes; pass++) {
                        // Of the next block each pass asks for a share, so that the memory never rests. A single pass, and
                        // the first one over a run's first block, must ask for what they need themselves.
                        bool more = b + 1 < end && row + 2 * ROWS <= a.n, near = passes == 1 || (b == start && !pass);
                        Ahead soon = {pass * ROWS / passes, (pass + 1) * ROWS / passes, a.k, more};
                        if (near) soon = {0, ROWS, NEAR, more};
                        int64_t c = from + 2 * pass;
                        if (c + 1 < columns)
                            block<2>(a, row, x + c * width, c * TILE, soon);
                        else
                            block<1>(a, row, x + c * width, c * TILE, soon);
                    }
                }
            }
        }
        _tile_release();
    }
    free(x);
}
#endif
