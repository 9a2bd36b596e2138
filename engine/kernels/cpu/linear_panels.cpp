// Compute y = x W^T + bias for any number of rows, on CPUs without matrix tiles: vectors of 8 numbers (AVX2) or 16 (AVX512).
//
// W is laid out once, when a model is loaded (pack_weight in linear_ops.py), in panels of two vectors of outputs, and read in
// address order:
//
//   W packed: [n / PANEL panels][k / STEP][2 vectors][VEC outputs][STEP places]
//
//   for each panel:                          each thread takes some panels as it becomes free
//     for ROWS rows of x at a time:
//       for each step of k: load the two vectors of weights; for each row: two sums += x * weights
//       add the bias, round, write
//
// The sums fill three quarters of the registers; two hold the weights, one a number of x on all lanes. So there are more
// multiply-adds than loads, and the multipliers, two a cycle, are the limit. How numbers are multiplied is a `Product`:
//
//   fp32         one place a step. Of bf16 weights a step is one load: the lower halves of its words are one vector of outputs,
//                the upper halves the other; a shift and a mask make fp32 of them while the multipliers work.
//   AVX512-BF16  two places a step: an instruction multiplies pairs of bf16 and adds both products to an fp32 sum.
//
// Up to some 8 rows the memory is slower than the multipliers, and is prefetched. With few rows one panel has too few sums to
// keep the multipliers busy (each waits 4 cycles for the one before it), so several panels are computed together: more is under
// way then than the first cache can ask for, so the second one is asked for what is far, the first for what is near. With many
// rows the next panel is asked for, which the first cache couldn't keep.
//
// Each sum runs over k from first to last, whatever the number of rows: a row's result doesn't depend on the other rows.
#include <vector>

#include "simd.h"

struct PanelArgs {
    const void *x, *w, *bias;             // [m, k], packed, [n] or null; bias has the type of w
    void* y;                              // [m, n], or [m, n / 2]
    int64_t m, n, k, x_stride, y_stride;  // n a multiple of PANEL, k of STEP; strides of rows, in elements
    int64_t x_type, w_type, y_type;       // y: of x's type, or fp32
    int64_t gated;  // y = silu(gate) * up: of each panel, the first vector is of gate, the second of up
};

constexpr int64_t PANEL = 2 * VEC, ROWS = REGISTERS * 3 / 8;
constexpr int64_t AT_ONCE = 16 * ROWS;  // rows of x that a panel multiplies before the next panel
constexpr int64_t FAR = 2048;           // bytes: how far ahead W is prefetched
constexpr int64_t NEAR = 512;           // the same, to the first cache, if what is far goes to the second

// Multiply rows of type X by weights of type W. number: the form in which x is multiplied.
template <class X, class W>
struct Product {
    static constexpr int64_t STEP = 1;
    typedef float number;
    typedef vec operand;
    static INLINE void weights(const float* p, vec* two) { two[0] = load(p), two[1] = load(p + VEC); }
    static INLINE void weights(const bf16* p, vec* two) {
        uvec words;
        memcpy(&words, p, sizeof words);
        two[0] = (vec)(words << 16), two[1] = (vec)(words & 0xffff0000u);
    }
    static INLINE vec add(vec sum, const float* x, vec w) { return sum + *x * w; }
};
#if defined(__AVX512BF16__)
template <>
struct Product<bf16, bf16> {
    static constexpr int64_t STEP = 2;
    typedef bf16 number;
    typedef __m512bh operand;
    static INLINE void weights(const bf16* p, operand* two) {
        two[0] = (operand)_mm512_loadu_si512(p), two[1] = (operand)_mm512_loadu_si512(p + PANEL);
    }
    static INLINE vec add(vec sum, const bf16* x, operand w) {
        int32_t pair;
        memcpy(&pair, x, sizeof pair);
        return _mm512_dpbf16_ps(sum, (operand)_mm512_set1_epi32(pair), w);
    }
};
template <>
struct Product<float, bf16> {  // the same order of weights; each half of a pair by itself
    static constexpr int64_t STEP = 2;
    typedef float number;
    struct operand {
        vec even, odd;
    };
    static INLINE void weights(const bf16* p, operand* two) {
        for (int h = 0; h < 2; h++) {
            uvec words;
            memcpy(&words, p + h * PANEL, sizeof words);
            two[h] = {(vec)(words << 16), (vec)(words & 0xffff0000u)};
        }
    }
    static INLINE vec add(vec sum, const float* x, operand w) { return (sum + x[0] * w.even) + x[1] * w.odd; }
};
#endif

// Write silu(gate) * up of `panels` panels, `rows` rows of each: pairs of vectors.
template <class Y>
static __attribute__((noinline)) void put_gated(const vec* sums, int64_t panels, int64_t rows, Y* y, int64_t stride) {
    for (int64_t p = 0; p < panels; p++)
        for (int64_t i = 0; i < rows; i++, sums += 2) store(y + i * stride + p * VEC, silu(sums[0]) * sums[1]);
}

// Multiply M rows of x (`stride` apart) by P panels of W. y: the result of row 0 and the first panel. ahead: what to prefetch
// meanwhile, `every` bytes for each step, and the same of each panel; NEXT: of the next panel.
template <class D, int M, int P, bool NEXT, class W, class Y>
static INLINE void tile(const typename D::number* x, int64_t stride, const W* w, const W* bias, Y* y,
                        const PanelArgs& a, const char* ahead, int64_t every) {
    const int64_t panel = a.k * PANEL, steps = a.k / D::STEP;
    vec sums[M][P][2] = {};
    for (int64_t k = 0; k < steps; k++)
        for (int p = 0; p < P; p++) {
            const char* line = ahead + p * panel * sizeof(W) + k * every;
            const W* here = w + p * panel + k * PANEL * D::STEP;
            for (int64_t b = 0; b < int64_t(PANEL * D::STEP * sizeof(W)); b += 64) {
                if (P > 1) __builtin_prefetch((const char*)here + NEAR + b);
                if (b < every) NEXT || P > 1 ? __builtin_prefetch(line + b, 0, 2) : __builtin_prefetch(line + b);
            }
            typename D::operand two[2];
            D::weights(here, two);
            for (int i = 0; i < M; i++)
                for (int h = 0; h < 2; h++) sums[i][p][h] = D::add(sums[i][p][h], x + i * stride + k * D::STEP, two[h]);
        }
    vec kept[P][M][2];
    for (int p = 0; p < P; p++)
        for (int h = 0; h < 2; h++) {
            const int64_t column = p * PANEL + h * VEC;
            vec add = bias ? load(bias + column) : vec{};
            if (a.gated) {
                for (int i = 0; i < M; i++) kept[p][i][h] = sums[i][p][h] + add;
            } else {
                for (int i = 0; i < M; i++) store(y + i * a.y_stride + column, sums[i][p][h] + add);
            }
        }
    if (a.gated) put_gated(kept[0][0], P, M, y, a.y_stride);
}

// Choose the tile of `height` rows, M or fewer.
template <class D, int M, bool NEXT, class W, class Y, class... Rest>
static INLINE void tile_of(int64_t height, const typename D::number* x, int64_t stride, const W* w, const W* bias, Y* y,
                           Rest&&... rest) {
    if constexpr (M > 1) {
        if (height < M) return tile_of<D, M - 1, NEXT>(height, x, stride, w, bias, y, rest...);
    }
    tile<D, M, 1, NEXT>(x, stride, w, bias, y, rest...);
}

// Multiply panels [first, last) by all of `rows` rows: as few passes over a panel as possible, all of nearly the same height.
// Where W is read once, a little of it is prefetched; else each pass prefetches its share of the next panel.
template <class D, class W, class Y>
static void panels(const typename D::number* x, int64_t stride, Y* y, int64_t rows, int64_t first, int64_t last,
                   const PanelArgs& a) {
    const int64_t passes = (rows + ROWS - 1) / ROWS, place = PANEL * D::STEP * sizeof(W),
                  every = (place + passes - 1) / passes;
    for (int64_t n = first; n < last;) {
        const W *w = (const W*)a.w + n * a.k * PANEL, *bias = a.bias ? (const W*)a.bias + n * PANEL : nullptr;
        const char *far = (const char*)w + FAR, *next = (const char*)(w + a.k * PANEL);
        Y* out = y + n * (a.gated ? VEC : PANEL);
        if (rows == 1 && n + 4 <= last) {
            tile<D, 1, 4, false>(x, stride, w, bias, out, a, far, place), n += 4;
        } else if (rows == 2 && n + 2 <= last) {
            tile<D, 2, 2, false>(x, stride, w, bias, out, a, far, place), n += 2;
        } else if (rows == 3 && n + 2 <= last) {
            tile<D, 3, 2, false>(x, stride, w, bias, out, a, far, place), n += 2;
        } else if (passes == 1) {
            tile_of<D, int(ROWS), false>(rows, x, stride, w, bias, out, a, far, place), n++;
        } else {
            for (int64_t i = 0, pass = 0, height; pass < passes; i += height, pass++) {
                height = (rows - i + passes - pass - 1) / (passes - pass);
                const char* ahead = next + pass * every * (a.k / D::STEP);
                tile_of<D, int(ROWS), true>(height, x + i * stride, stride, w, bias, out + i * a.y_stride, a, ahead,
                                            every);
            }
            n++;
        }
    }
}

// Return `rows` rows of x as the products take them: unchanged, or widened to fp32 in this thread's own memory.
template <class T>
static const T* as_numbers(const T* x, int64_t, int64_t&, const PanelArgs&, const T*) {
    return x;
}
[[maybe_unused]] __attribute__((noinline)) static const float* as_numbers(const bf16* x, int64_t rows, int64_t& stride,
                                                                          const PanelArgs& a, const float*) {
    static thread_local std::vector<float> memory;
    const int64_t pitch = (a.k + VEC - 1) / VEC * VEC + VEC;
    if (int64_t(memory.size()) < rows * pitch) memory.resize(rows * pitch);
    for (int64_t i = 0; i < rows; i++) {
        const bf16* from = x + i * stride;
        float* to = memory.data() + i * pitch;
        int64_t k = 0;
        for (; k + VEC <= a.k; k += VEC) store(to + k, load(from + k));
        for (; k < a.k; k++) to[k] = to_float(from[k]);
    }
    stride = pitch;
    return memory.data();
}

template <class X, class W, class Y>
static void linear(const PanelArgs& a) {
    typedef Product<X, W> D;
    typedef typename D::number number;
    const int64_t count = a.n / PANEL, share = count / (4 * omp_get_max_threads());
    const int64_t run = share < 4 ? 4 : share / 4 * 4;  // panels that a thread takes at once
#pragma omp parallel if (a.n * a.k > 16384)
    for (int64_t from = 0; from < a.m; from += AT_ONCE) {
        const int64_t rows = a.m - from < AT_ONCE ? a.m - from : AT_ONCE;
        int64_t stride = a.x_stride;
        const number* x = as_numbers((const X*)a.x + from * stride, rows, stride, a, (const number*)nullptr);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t first = 0; first < count; first += run)
            panels<D, W>(x, stride, (Y*)a.y + from * a.y_stride, rows, first, first + run < count ? first + run : count,
                         a);
    }
}

EXPORT void glasshouse_linear_panels(const PanelArgs* a) {
    if (a->x_type == BF16) {
        WITH_TYPE(a->y_type, Y, linear<bf16, bf16, Y>(*a));
    } else if (a->w_type == BF16) {
        linear<float, bf16, float>(*a);
    } else {
        linear<float, float, float>(*a);
    }
}
