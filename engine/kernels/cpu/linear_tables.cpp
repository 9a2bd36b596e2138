// Compute y = x W^T + bias with quantized weights whose rows each have a table of their own: w[n, k] = table[n][code[n, k]].
//
// In a panel, as linear_quantized.cpp has it, a vector holds codes of many outputs, and each lane would need another table. So
// here a vector holds codes of one output, at neighbouring inputs, and that output's table fills a register or two. Row n of W:
//
//   [k / (8 VEC) blocks][VEC words]      the code at place p of word l belongs to input 8 VEC block + p VEC + l;
//                                        codes.h says where in a word a place is. Codes beyond k are 0
//
// A place's numbers are multiplied by VEC neighbours of x, and the lanes are added up at the end. All of it is in fp32, x in bf16
// is widened first. A row's result depends neither on the number of rows nor on the other rows.
#include <vector>

#include "codes.h"

struct TablesArgs {
    const void* x;       // [m, k]
    const char* w;       // packed
    const float* table;  // [n, ENTRIES]
    const void* bias;    // [n] or null
    void* y;             // [m, n]
    int64_t m, n, k, x_stride, y_stride;
    int64_t x_type, bias_type, y_type;
};

constexpr int64_t BLOCK = 8 * VEC;     // inputs whose codes fill a vector of words
constexpr int64_t ROWS = 8;            // of x, for which a number is used before the next is read
constexpr int64_t AT_ONCE = 8 * ROWS;  // rows of x that are widened at once
constexpr int64_t AHEAD = 2048;        // bytes: how far ahead W is prefetched
constexpr int64_t BYTES = BLOCK / 2;   // of a block

// Multiply M rows of x by one row of W.
template <int M>
static INLINE void row_by(const float* x, int64_t stride, const char* w, const Codes<TABLE4>& codes, int64_t blocks,
                          float* sums) {
    vec now[M] = {};
    for (int64_t b = 0; b < blocks; b++, w += BYTES, x += BLOCK) {
        __builtin_prefetch(w + AHEAD);
        const uvec words = load_words(w);
        each<8>([&](auto p) INLINE_LAMBDA {
            const vec number = codes.template number<p()>(words);
            for (int m = 0; m < M; m++) now[m] = fused(number, load(x + m * stride + p() * VEC), now[m]);
        });
    }
    for (int m = 0; m < M; m++) sums[m] = sum(now[m]);
}
template <int M = ROWS>
static INLINE void rows_by(int64_t count, const float* x, int64_t stride, const char* w, const Codes<TABLE4>& codes,
                           int64_t blocks, float* sums) {
    if constexpr (M > 1) {
        if (count < M) return rows_by<M - 1>(count, x, stride, w, codes, blocks, sums);
    }
    row_by<M>(x, stride, w, codes, blocks, sums);
}

// Return rows of x in fp32, followed by zeros to the end of their last block: in this thread's own memory.
template <class X>
static const float* widened(const X* x, int64_t count, int64_t pitch, const TablesArgs& a) {
    static thread_local std::vector<float> memory;
    if (int64_t(memory.size()) < count * pitch) memory.resize(count * pitch);
    for (int64_t i = 0; i < count; i++) {
        const X* from = x + i * a.x_stride;
        float* to = memory.data() + i * pitch;
        int64_t k = 0;
        for (; k + VEC <= a.k; k += VEC) store(to + k, load(from + k));
        for (; k < a.k; k++) to[k] = to_float(from[k]);
        for (; k < pitch; k++) to[k] = 0;
    }
    return memory.data();
}

EXPORT void glasshouse_linear_tables(const TablesArgs* args) {
    const TablesArgs& a = *args;
    const int64_t blocks = (a.k + BLOCK - 1) / BLOCK, pitch = blocks * BLOCK;
#pragma omp parallel if (a.n * a.k > 16384)
    for (int64_t first = 0; first < a.m; first += AT_ONCE) {
        const int64_t count = a.m - first < AT_ONCE ? a.m - first : AT_ONCE;
        const float* x = nullptr;
        WITH_TYPE(a.x_type, X, x = widened((const X*)a.x + first * a.x_stride, count, pitch, a));
#pragma omp for schedule(dynamic, 32) nowait
        for (int64_t n = 0; n < a.n; n++) {
            const Codes<TABLE4> codes(a.table + n * ENTRIES);
            float bias = 0, sums[ROWS];
            WITH_TYPE(a.bias_type, B, if (a.bias) bias = to_float(((const B*)a.bias)[n]));
            for (int64_t i = 0; i < count; i += ROWS) {
                const int64_t some = count - i < ROWS ? count - i : ROWS;
                rows_by(some, x + i * pitch, pitch, a.w + n * blocks * BYTES, codes, blocks, sums);
                WITH_TYPE(a.y_type, Y,
                          for (int64_t j = 0; j < some; j++)
                              store((Y*)a.y + (first + i + j) * a.y_stride + n, sums[j] + bias));
            }
        }
    }
}
