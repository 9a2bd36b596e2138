// y = x W^T + bias for any number of rows, on CPUs whose vectors multiply fp32 only (AVX2): most laptops.
//
// There torch converts bf16 number by number, and even in fp32 packs W anew in every call. Here W is laid out once, when a
// model is loaded (pack_weight in linear_ops.py), in panels of 16 outputs (two vectors), and read in one long walk:
//
//   W packed: [n / 16 panels][k places][16 outputs]
//
//   for each panel:                          each thread takes some panels as it gets free
//     for 6 rows of x at a time:
//       for each place: load 16 weights; for each row: two sums += x * weights
//       add the bias, round, write
//
// 6 x 16 sums fill 12 of the 16 registers; two hold the weights, one a number of x on all lanes. So there are 12 multiply-adds
// for 8 loads, and the multipliers, two a cycle, are what limits it. In bf16 a panel's place is one load: the lower halves of
// its words are outputs 0 to 7, the upper halves 8 to 15, and a shift and a mask make fp32 of them while the multipliers work.
//
// Up to some 8 rows the memory is slower than the multipliers, and must be asked ahead. With fewer than 4 rows one panel has too
// few sums to keep the multipliers busy (each waits 4 cycles for the one before it), so several panels go side by side.
//
// Each sum runs over k from first to last, whatever the number of rows: a row's result doesn't depend on its company.
#include <vector>

#include "simd.h"

struct PanelArgs {
    const void *x, *w, *bias;  // [m, k], packed, [n] or null; bias has the type of w
    void* y;                   // [m, n], of x's type
    int64_t m, n, k, x_stride, y_stride;  // n a multiple of PANEL; strides of rows, in elements
    int64_t x_type, w_type;
};

constexpr int64_t PANEL = 2 * VEC, ROWS = 6;
constexpr int64_t AT_ONCE = 16 * ROWS;  // rows of x that a panel meets before the next one comes
constexpr int64_t NEAR = 2048;          // bytes: how far ahead the memory is asked for W

struct Two {
    vec a, b;
};
static INLINE Two weights(const float* p) { return {load(p), load(p + VEC)}; }
static INLINE Two weights(const bf16* p) {
    uvec words;
    memcpy(&words, p, sizeof words);
    return {(vec)(words << 16), (vec)(words & 0xffff0000u)};
}

// M rows of x (fp32, `stride` apart) times P panels of W. y: where row 0 meets the first panel. ahead: what the memory is asked
// for meanwhile, `every` bytes for each place, and the same of each panel.
template <int M, int P, class W, class Y>
static INLINE void tile(const float* x, int64_t stride, const W* w, const W* bias, Y* y, const PanelArgs& a, const char* ahead, int64_t every) {
    const int64_t panel = a.k * PANEL;
    vec sums[M][P][2] = {};
    for (int64_t k = 0; k < a.k; k++)
        for (int p = 0; p < P; p++) {
            __builtin_prefetch(ahead + p * panel * sizeof(W) + k * every);
            Two two = weights(w + p * panel + k * PANEL);
            for (int i = 0; i < M; i++) {
                sums[i][p][0] += x[i * stride + k] * two.a;
                sums[i][p][1] += x[i * stride + k] * two.b;
            }
        }
    for (int p = 0; p < P; p++)
        for (int h = 0; h < 2; h++) {
            const int64_t column = p * PANEL + h * VEC;
            vec add = bias ? load(bias + column) : vec{};
            for (int i = 0; i < M; i++) store(y + i * a.y_stride + column, sums[i][p][h] + add);
        }
}

// Panels [first, last) with all of `rows` rows: as few passes over a panel as there can be, all of nearly the same height.
// Where W goes by once, a little of it is asked ahead; else each pass asks for its share of the next panel.
template <class W, class Y>
static void panels(const float* x, int64_t stride, Y* y, int64_t rows, int64_t first, int64_t last, const PanelArgs& a) {
    const int64_t passes = (rows + ROWS - 1) / ROWS, place = PANEL * sizeof(W), every = (place + passes - 1) / passes;
    for (int64_t n = first; n < last;) {
        const W *w = (const W*)a.w + n * a.k * PANEL, *bias = a.bias ? (const W*)a.bias + n * PANEL : nullptr;
        const char *near = (const char*)w + NEAR, *next = (const char*)(w + a.k * PANEL);
        Y* out = y + n * PANEL;
        if (rows == 1 && n + 4 <= last) {
            tile<1, 4>(x, stride, w, bias, out, a, near, place), n += 4;
        } else if (rows == 2 && n + 2 <= last) {
            tile<2, 2>(x, stride, w, bias, out, a, near, place), n += 2;
        } else if (rows == 3 && n + 2 <= last) {
            tile<3, 2>(x, stride, w, bias, out, a, near, place), n += 2;
        } else {
            for (int64_t i = 0, pass = 0, height; pass < passes; i += height, pass++) {
                height = (rows - i + passes - pass - 1) / (passes - pass);
                const float* some = x + i * stride;
                Y* to = out + i * a.y_stride;
                const char* ahead = passes == 1 ? near : next + pass * every * a.k;
                switch (height) {
                    case 1: tile<1, 1>(some, stride, w, bias, to, a, ahead, every); break;
                    case 2: tile<2, 1>(some, stride, w, bias, to, a, ahead, every); break;
                    case 3: tile<3, 1>(some, stride, w, bias, to, a, ahead, every); break;
                    case 4: tile<4, 1>(some, stride, w, bias, to, a, ahead, every); break;
                    case 5: tile<5, 1>(some, stride, w, bias, to, a, ahead, every); break;
                    default: tile<6, 1>(some, stride, w, bias, to, a, ahead, every);
                }
            }
            n++;
        }
    }
}

// `rows` rows of x as fp32: as they are, or widened into this thread's own memory.
static const float* as_floats(const float* x, int64_t, int64_t& , const PanelArgs&) { return x; }
__attribute__((noinline)) static const float* as_floats(const bf16* x, int64_t rows, int64_t& stride, const PanelArgs& a) {
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

template <class X, class W>
static void linear(const PanelArgs& a) {
    const int64_t count = a.n / PANEL, share = count / (4 * omp_get_max_threads());
    const int64_t run = share < 4 ? 4 : share / 4 * 4;  // panels that a thread takes at once
#pragma omp parallel if (a.n * a.k > 16384)
    for (int64_t from = 0; from < a.m; from += AT_ONCE) {
        const int64_t rows = a.m - from < AT_ONCE ? a.m - from : AT_ONCE;
        int64_t stride = a.x_stride;
        const float* x = as_floats((const X*)a.x + from * stride, rows, stride, a);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t first = 0; first < count; first += run)
            panels<W>(x, stride, (X*)a.y + from * a.y_stride, rows, first, first + run < count ? first + run : count, a);
    }
}

EXPORT void glasshouse_linear_panels(const PanelArgs* a) {
    if (a->x_type == BF16) {
        linear<bf16, bf16>(*a);
    } else if (a->w_type == BF16) {
        linear<float, bf16>(*a);
    } else {
        linear<float, float>(*a);
    }
}
