// Compute y = x W^T + bias with quantized weights and activations in 8 bits, by vectors: int8_rows.h says what is computed.
//
// Codes are multiplied as they lie in memory (quantized.h): a word has four bytes of one output, or eight halves of bytes, which
// two instructions spread over two words. So one row reads W at the speed of memory, and several share what is read.
#include "int8_rows.h"

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
constexpr int64_t MOST = 6;                       // rows at once
#else
constexpr int64_t MOST = 3;
#endif
constexpr int64_t FAR = 4096;        // bytes: how far ahead W is prefetched
constexpr int64_t ALONE = 2;         // rows that each thread rounds for itself: waiting for others would take longer
constexpr int64_t CACHED = 1 << 19;  // bytes of x that are worked on at once
constexpr int64_t LEAST = 64;        // rows of it, at least

// Multiply M rows by one panel.
template <int BITS, int M>
__attribute__((noinline)) static void rows_by_panel(const Int8Rows& rows, int64_t row, int64_t panel,
                                                    const Int8Args& args) {
    constexpr int PLACES = 32 / BITS;
    const QuantizedArgs& a = args.w;
    const Sizes s(a, PLACES);
    const char* at = a.w + panel * s.panel;
    const int8_t* x = rows.codes + row * rows.stride;
    vec totals[M][2] = {};
    for (int64_t k = 0, at_row = row; k < a.k;) {
        Int8Parts parts[2];
        for (int h = 0; h < 2; h++) parts[h].read(at, h, a);
        at += s.head;
        const int64_t group_end = k + a.group < a.k ? k + a.group : a.k;
        for (; k < group_end; at_row += rows.count) {
            ivec sums[M][2];
            for (int m = 0; m < M; m++) sums[m][0] = sums[m][1] = all(rows.begin[at_row + m]);
            const int64_t end = k + args.x_group < group_end ? k + args.x_group : group_end;
            for (; k < end; k += PLACES, x += PLACES, at += WORDS) {
                uvec lower[2], upper[2];
                for (int h = 0; h < 2; h++) {
                    const char* here = at + h * (WORDS / 2);
                    if (h == 0 || WORDS > 64) __builtin_prefetch(here + FAR);
                    const uvec words = load_words(here);
                    if (BITS == 8) {
                        lower[h] = for_dot(words);
                    } else {
#if defined(__AVX512F__)
                        lower[h] = words & 0x0f0f0f0fu, upper[h] = words >> 4 & 0x0f0f0f0fu;
#else  // two's complement: made whole numbers from 0 on
                        const uvec raised = words ^ 0x88888888u;
                        lower[h] = raised & 0x0f0f0f0fu, upper[h] = raised >> 4 & 0x0f0f0f0fu;
#endif
                    }
                }
                for (int m = 0; m < M; m++) {
                    int32_t four[PLACES / 4];
                    memcpy(four, x + m * rows.stride, sizeof four);
                    for (int h = 0; h < 2; h++) {
                        if (BITS == 8) {
                            sums[m][h] = dot(sums[m][h], lower[h], four[0]);
                        } else {
                            sums[m][h] = dot_small(sums[m][h], lower[h], four[0]);
                            sums[m][h] = dot_small(sums[m][h], upper[h], four[PLACES / 4 - 1]);
                        }
                    }
                }
            }
            for (int m = 0; m < M; m++) {
                const int64_t i = at_row + m;
                const vec scale = vec{} + rows.scales[i];
                for (int h = 0; h < 2; h++) {
                    vec values = __builtin_convertvector(sums[m][h], vec);
                    if (a.zeros) values = fused(parts[h].minus_zero, vec{} + rows.sums[i], values);
                    totals[m][h] = fused(parts[h].scale * scale, values, totals[m][h]);
                    if (a.offsets) totals[m][h] = fused(parts[h].offset, vec{} + rows.scaled[i], totals[m][h]);
                }
            }
        }
    }
    for (int m = 0; m < M; m++) put(a, row + m, 1, panel * PANEL, totals[m]);
}

// Multiply rows [row, end) by one panel: as many at once as there are registers for.
template <int BITS, int M = MOST>
static void panel_by(const Int8Rows& rows, int64_t row, int64_t end, int64_t panel, const Int8Args& a) {
    for (; end - row >= M; row += M) rows_by_panel<BITS, M>(rows, row, panel, a);
    if constexpr (M > 1) {
        if (row < end) panel_by<BITS, M - 1>(rows, row, end, panel, a);
    }
}

template <int BITS>
static void linear(const Int8Args& args) {
    const QuantizedArgs& a = args.w;
    const int64_t panels = (a.n + PANEL - 1) / PANEL, share = panels / (4 * omp_get_max_threads()),
                  run = share < 1 ? 1 : share,  // panels that a thread takes at once
        most = CACHED / a.k, at_once = most < LEAST ? LEAST : most;
    static thread_local Int8Memory memory;
    const bool alone = a.m <= ALONE;
    const Int8Rows shared = alone ? Int8Rows{} : place_int8(memory, args);
#pragma omp parallel if (a.n * a.k > 16384)
    {
        Int8Rows x = shared;
        if (alone) {
            x = place_int8(memory, args);
            for (int64_t i = 0; i < a.m; i++) round_row<BITS, true>(i, x, args);
        } else {
            round_rows<BITS, true>(x, args);
        }
        for (int64_t from = 0; from < a.m; from += at_once) {
            const int64_t to = from + at_once < a.m ? from + at_once : a.m;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++) panel_by<BITS>(x, from, to, n, args);
        }
    }
}

EXPORT void glasshouse_linear_int8(const Int8Args* args) {
    args->w.kind == SIGNED8 ? linear<8>(*args) : linear<4>(*args);
}
