// Compute y = x W^T + bias for few rows of x, which takes most of a decode step's time.
//
// Each weight is read once and used M times, so for M <= 16 the time is that of reading W: N * K * 2 bytes in bf16. torch's
// GEMM repacks W into its own tiles first; here nothing is repacked. W lies row by row, as the checkpoint stores it: one
// row is one output, and an output is a dot product of two contiguous rows.
//
//   for a few rows n of W (R of them):       each thread takes blocks of rows as it becomes free
//     for k in steps of one vector:
//       prefetch the same place of the R rows that come next
//       load R vectors of W, M vectors of x; M * R accumulators += x * w
//     add up the lanes of each accumulator
//
// Prefetching gains more than everything else together: otherwise the memory would be idle while the arithmetic of one tile
// runs, and the time would be the sum of both instead of the larger one (measured: 2.4x at M = 4).
// The tile M x R is as large as the registers hold: with M rows a vector of W is used M times, a vector of x R times.
#include "simd.h"

struct LinearArgs {
    const void *x, *w, *bias;             // [m, k], [n, k], [n] or null; bias has the type of w
    void* y;                              // [m, n]
    int64_t m, n, k, x_stride, y_stride;  // strides of rows, in elements
    int64_t x_type, w_type, y_type;       // y: of x's type, or fp32
};

// State one step of many dot products: how a vector of each operand is loaded, and acc += x * w.
template <class X, class W>
struct Dot {
    static constexpr int STEP = VEC;
    typedef vec operand;
    template <class T>
    static INLINE vec get(const T* p) {
        return load(p);
    }
    template <class T>
    static INLINE vec get_part(const T* p, int64_t n) {
        return load_part(p, n);
    }
    static INLINE vec add(vec acc, vec x, vec w) { return fused(x, w, acc); }
};
#if defined(__AVX512BF16__)
// One instruction multiplies 32 pairs of bf16 and adds them, two by two, to 16 fp32: half the loads, no conversion.
template <>
struct Dot<bf16, bf16> {
    static constexpr int STEP = 32;
    typedef __m512bh operand;
    static INLINE operand get(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static INLINE operand get_part(const bf16* p, int64_t n) {
        return (__m512bh)_mm512_maskz_loadu_epi16(__mmask32((1ull << n) - 1), p);
    }
    static INLINE vec add(vec acc, operand x, operand w) { return _mm512_dpbf16_ps(acc, x, w); }
};
#endif

// Multiply M rows of x by R rows of W.
template <int M, int R, class X, class W, class Y>
static INLINE void tile(const X* x, const W* w, const W* bias, Y* y, const LinearArgs& a) {
    typedef Dot<X, W> D;
    constexpr int GROUPS = (M * R + VEC - 1) / VEC;  // accumulators are added up VEC at a time
    vec acc[GROUPS * VEC] = {};
    auto step = [&](auto get, int64_t k) INLINE_LAMBDA {
        typename D::operand wk[R];
        for (int r = 0; r < R; r++) {
            __builtin_prefetch(w + (R + r) * a.k + k);
            wk[r] = get(w + r * a.k + k);
        }
        for (int m = 0; m < M; m++) {
            typename D::operand xk = get(x + m * a.x_stride + k);
            for (int r = 0; r < R; r++) acc[m * R + r] = D::add(acc[m * R + r], xk, wk[r]);
        }
    };
    int64_t whole = a.k / D::STEP * D::STEP, rest = a.k - whole;
    for (int64_t k = 0; k < whole; k += D::STEP) step([](auto* p) INLINE_LAMBDA { return D::get(p); }, k);
    if (rest) step([=](auto* p) INLINE_LAMBDA { return D::get_part(p, rest); }, whole);
    float out[GROUPS * VEC];
    for (int g = 0; g < GROUPS; g++) {
        sums(acc + g * VEC);
        store(out + g * VEC, acc[g * VEC]);
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < R; r++) store(y + m * a.y_stride + r, out[m * R + r] + (bias ? to_float(bias[r]) : 0.0f));
}

// Multiply rows [first, last) of W by M rows of x, R at a time.
template <int M, class X, class W, class Y>
static void rows(const X* x, Y* y, int64_t first, int64_t last, const LinearArgs& a) {
    constexpr int R = M == 1 ? VEC : M * 8 <= REGISTERS * 3 / 4 ? 8 : REGISTERS * 3 / 4 / M;
    const W *w = (const W*)a.w, *bias = (const W*)a.bias;
    int64_t n = first;
    for (; n + R <= last; n += R) tile<M, R>(x, w + n * a.k, bias ? bias + n : nullptr, y + n, a);
    for (; n < last; n++) tile<M, 1>(x, w + n * a.k, bias ? bias + n : nullptr, y + n, a);
}

template <class X, class W, class Y>
static void linear(const LinearArgs& a) {
    // A thread takes a block of W, and the next when it is done, so that an interrupted thread doesn't delay the others. A
    // few blocks for each thread are enough, because the start of a block isn't prefetched. But where several groups of rows
    // of x go over a block, it must stay in the first cache meanwhile: 32 KiB.
    constexpr int64_t GROUP = REGISTERS / 4, UNIT = 48;  // UNIT: whole tiles of any height but 5 and 7
#if defined(__AVX512F__) || defined(__aarch64__)         // 32 registers
    static_assert(GROUP == 8, "the cases below are those of fewer rows");
#else
    static_assert(GROUP == 4, "the cases below are those of fewer rows");
#endif
    int64_t block = a.m > GROUP ? 32768 / (a.k * int64_t(sizeof(W))) : a.n / (4 * omp_get_max_threads());
    block = block < UNIT ? UNIT : block / UNIT * UNIT;
    int64_t blocks = (a.n + block - 1) / block;
#pragma omp parallel for schedule(dynamic, 1) if (a.n * a.k > 16384)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * block, last = first + block < a.n ? first + block : a.n;
        for (int64_t m = 0; m < a.m; m += GROUP) {
            const X* x = (const X*)a.x + m * a.x_stride;
            Y* y = (Y*)a.y + m * a.y_stride;
            switch (a.m - m) {
                case 1:
                    rows<1, X, W, Y>(x, y, first, last, a);
                    break;
                case 2:
                    rows<2, X, W, Y>(x, y, first, last, a);
                    break;
                case 3:
                    rows<3, X, W, Y>(x, y, first, last, a);
                    break;
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
                case 4:
                    rows<4, X, W, Y>(x, y, first, last, a);
                    break;
                case 5:
                    rows<5, X, W, Y>(x, y, first, last, a);
                    break;
                case 6:
                    rows<6, X, W, Y>(x, y, first, last, a);
                    break;
                case 7:
                    rows<7, X, W, Y>(x, y, first, last, a);
                    break;
#endif
                default:
                    rows<int(GROUP), X, W, Y>(x, y, first, last, a);
            }
        }
    }
}

EXPORT void glasshouse_linear(const LinearArgs* a) {
    if (a->x_type == BF16) {
        WITH_TYPE(a->y_type, Y, linear<bf16, bf16, Y>(*a));
    } else if (a->w_type == BF16) {
        linear<float, bf16, float>(*a);
    } else {
        linear<float, float, float>(*a);
    }
}
