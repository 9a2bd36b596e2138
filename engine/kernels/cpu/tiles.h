// Use the matrix tiles (AMX) of newer Xeons: eight registers of 16 rows x 64 bytes, and an instruction that adds to a tile C
// the products of A and B in bf16, 8,192 of them:
//
//   A: 16 rows x 32 places                one below the other, as matrices lie in memory
//   B: 16 pairs of places x 16 columns    a column's two neighbouring places side by side: transposed
//   C: 16 rows x 16 columns               fp32
#pragma once
#include "simd.h"

#if defined(__AMX_BF16__)
#include <stdlib.h>
#include <sys/mman.h>

// Configure the eight registers: rows, and bytes of a row. The setting belongs to the thread: release it after use, because
// torch makes its own.
static INLINE void configure_tiles(const uint8_t (&rows)[8], const uint16_t (&bytes)[8]) {
    struct alignas(64) {
        uint8_t palette, start, unused[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } all = {};
    all.palette = 1;
    for (int i = 0; i < 8; i++) all.row_bytes[i] = bytes[i], all.rows[i] = rows[i];
    asm volatile(""
                 :
                 : "r"(&all)
                 : "memory");  // GCC believes that the next line reads 8 bytes only, and may drop the rest
    _tile_loadconfig(&all);
}
// At their full size, or with less than 16 rows those of x (4 and 5) and of their sums (0 to 3).
static INLINE void configure_tiles(int64_t rows = 16) {
    const uint8_t m = uint8_t(rows);
    configure_tiles({m, m, m, m, m, m, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
}

// Round as the products on tiles do, to nearest: subnormal numbers become zeros, which `store` of simd.h would keep.
static INLINE __m256i rounded(vec now) { return (__m256i)_mm512_cvtneps_pbh((__m512)now); }
static INLINE void store_rounded(bf16* y, vec now) { _mm256_storeu_si256((__m256i*)y, rounded(now)); }
static INLINE void store_rounded(float* y, vec now) { store(y, now); }

// Return whether `rows` of y, `pitch` bytes apart, are more than a core's caches hold, and lie in whole lines. Then they are
// written past the caches: a block of W makes a few bytes of each row, and a cache would read each line before it is written.
static INLINE bool goes_past_caches(const void* y, int64_t rows, int64_t pitch) {
    constexpr int64_t CACHE = 2 << 20, LINE_BYTES = 64;
    return rows * pitch > CACHE && pitch % LINE_BYTES == 0 && (uintptr_t)y % LINE_BYTES == 0;
}

// Keep a thread's memory from product to product, in pages of 2 MB where the system has them.
struct KeptMemory {
    char* start = nullptr;
    int64_t size = 0;
    char* of(int64_t bytes) {
        constexpr int64_t PAGE = 2 << 20;
        if (bytes > size) {
            free(start);
            size = (bytes + PAGE - 1) / PAGE * PAGE;
            start = (char*)aligned_alloc(PAGE, size);
            madvise(start, size, MADV_HUGEPAGE);
        }
        return start;
    }
    ~KeptMemory() { free(start); }
};
#endif
