// Compute the tile instructions that the kernels use in software: the sources of the variant "amx" run without AMX then.
//
// software_tiles.py puts this header before each source (-include), for tests only. It defines the intrinsics by the operation
// sections of Intel's manual (SDM, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBF16PS, TDPBSSD).
//
// The same as in hardware: every bit of every result. Products of bf16 are fused with their sums, those of even places and those
// of odd ones each by themselves and in order; then both are added up, then to C. That is rounded to nearest, subnormal numbers
// are taken for zeros and become zeros, whatever MXCSR says. Sums of int8 are exact, and wrap. Loading fills up with zeros.
// What the hardware refuses (a configuration, a product of shapes that don't fit) ends the process here, too.
//
// Not the same: the speed, and what follows from it (prefetching does nothing of use); Linux grants the tiles' registers without
// being asked; a signal or another library in the thread doesn't disturb them, for they are memory; the payload of a NaN that
// comes of two others. Nor is anything shown of the compiler's own tile intrinsics: those compile in test_native_build.py.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace software_tiles {

constexpr int TILES = 8, ROWS = 16, ROW_BYTES = 64, WORD = 4;  // of palette 1

struct alignas(64) Row {
    uint8_t bytes[ROW_BYTES];
};
struct State {  // of a thread
    bool configured;
    uint8_t rows[TILES];
    uint16_t row_bytes[TILES];
    Row data[TILES][ROWS];
};
inline thread_local State state = {};

inline void require(bool holds) {
    if (!holds) __builtin_trap();  // the hardware: #GP or #UD
}
// Return the state. Tiles aren't used before they are configured, nor after they were released.
inline State& configured() {
    require(state.configured);
    return state;
}

inline void release() { state = {}; }

inline void load_config(const void* from) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config;
    static_assert(sizeof config == 64);
    memcpy(&config, from, sizeof config);
    require(config.palette == 1 && config.start_row == 0);
    for (uint8_t byte : config.reserved) require(byte == 0);
    release();
    for (int t = 0; t < 16; t++) {
        require(config.rows[t] <= (t < TILES ? ROWS : 0) && config.row_bytes[t] <= (t < TILES ? ROW_BYTES : 0));
        require((config.rows[t] == 0) == (config.row_bytes[t] == 0));
        if (t < TILES) state.rows[t] = config.rows[t], state.row_bytes[t] = config.row_bytes[t];
    }
    state.configured = true;
}

// Return a tile that has a size.
inline Row* tile(int t) {
    State& s = configured();
    require(s.rows[t] > 0);
    return s.data[t];
}

inline void zero(int t) { memset(tile(t), 0, sizeof state.data[t]); }

inline void load(int t, const void* from, int64_t stride) {
    zero(t);
    for (int i = 0; i < state.rows[t]; i++)
        memcpy(state.data[t][i].bytes, (const char*)from + i * stride, state.row_bytes[t]);
}

inline void store(int t, void* to, int64_t stride) {
    const Row* rows = tile(t);
    for (int i = 0; i < state.rows[t]; i++) memcpy((char*)to + i * stride, rows[i].bytes, state.row_bytes[t]);
}

// Check that C, A and B have the shapes of a product, and hold its sizes: rows of C, words of a row of A, columns of C.
struct Product {
    int rows, steps, columns;
    Product(int c, int a, int b) {
        const int all[] = {c, a, b};
        for (int t : all) require(tile(t) && state.row_bytes[t] % WORD == 0);
        require(c != a && a != b && c != b);
        rows = state.rows[c], steps = state.rows[b], columns = state.row_bytes[c] / WORD;
        require(state.rows[a] == rows && state.row_bytes[a] == WORD * steps && state.row_bytes[b] == WORD * columns);
    }
    __mmask16 mask() const { return __mmask16((1u << columns) - 1); }
};
inline __m512i word_of_a(int a, int row, int step) {  // on all lanes
    int32_t word;
    memcpy(&word, state.data[a][row].bytes + WORD * step, WORD);
    return _mm512_set1_epi32(word);
}
inline __m512i row_of_b(int b, int step) { return _mm512_load_si512(state.data[b][step].bytes); }

// Compute with fp32 as tile instructions do while an object of this lives.
struct TileArithmetic {
    const unsigned before = _mm_getcsr();
    TileArithmetic() {
        _mm_setcsr((before & ~unsigned(_MM_ROUND_MASK)) | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
        asm volatile("" ::: "memory");  // the operands are read after this, so that they are added up after it
    }
    ~TileArithmetic() {
        asm volatile("" ::: "memory");  // the results are written before this
        _mm_setcsr(before);
    }
};

// C [rows, columns] fp32 += A [rows, steps, 2] bf16 x B [steps, columns, 2] bf16. A vector has a number of each column.
__attribute__((noinline)) inline void multiply_bf16(int c, int a, int b) {
    const Product product(c, a, b);
    const __m512i odd_half = _mm512_set1_epi32(int(0xffff0000u));
    const auto even = [](__m512i words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); };
    const auto odd = [=](__m512i words) { return _mm512_castsi512_ps(_mm512_and_si512(words, odd_half)); };
    const TileArithmetic arithmetic;
    for (int m = 0; m < product.rows; m++) {
        __m512 evens = _mm512_setzero_ps(), odds = _mm512_setzero_ps();
        for (int k = 0; k < product.steps; k++) {
            const __m512i x = word_of_a(a, m, k), w = row_of_b(b, k);
            evens = _mm512_fmadd_ps(even(x), even(w), evens);
            odds = _mm512_fmadd_ps(odd(x), odd(w), odds);
        }
        uint8_t* sums = state.data[c][m].bytes;
        const __m512 now = _mm512_add_ps(_mm512_load_ps(sums), _mm512_add_ps(evens, odds));
        _mm512_mask_store_ps(sums, product.mask(), now);
    }
}

// C [rows, columns] int32 += A [rows, steps, 4] int8 x B [steps, columns, 4] int8.
__attribute__((noinline)) inline void multiply_int8(int c, int a, int b) {
    const Product product(c, a, b);
    const auto byte = [](__m512i words, int i) {  // with its sign
        return _mm512_srai_epi32(_mm512_sllv_epi32(words, _mm512_set1_epi32(24 - 8 * i)), 24);
    };
    for (int m = 0; m < product.rows; m++) {
        uint8_t* to = state.data[c][m].bytes;
        __m512i sums = _mm512_load_si512(to);
        for (int k = 0; k < product.steps; k++) {
            const __m512i x = word_of_a(a, m, k), w = row_of_b(b, k);
            for (int i = 0; i < 4; i++) sums = _mm512_add_epi32(sums, _mm512_mullo_epi32(byte(x, i), byte(w, i)));
        }
        _mm512_mask_store_epi32(to, product.mask(), sums);
    }
}

}  // namespace software_tiles

// Some of these are macros of <immintrin.h>, others its functions.
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(from) software_tiles::load_config(from)
#define _tile_release() software_tiles::release()
#define _tile_zero(t) software_tiles::zero(t)
#define _tile_loadd(t, from, stride) software_tiles::load(t, from, stride)
#define _tile_stored(t, to, stride) software_tiles::store(t, to, stride)
#define _tile_dpbf16ps(c, a, b) software_tiles::multiply_bf16(c, a, b)
#define _tile_dpbssd(c, a, b) software_tiles::multiply_int8(c, a, b)
// The kernels ask Linux for one thing only, the tiles' registers (glasshouse_allow_amx): it is granted.
#define syscall(...) 0L
