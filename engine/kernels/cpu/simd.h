// Define what all kernels use: a vector of floats, bfloat16, and conversions between them.
//
// The same source is compiled once for each kind of CPU (see build.py); only the width of `vec` differs: 16 floats with
// AVX-512, 8 with AVX2, 4 elsewhere (NEON of 64-bit ARM among them). The compiler turns `a * b + c` on vectors into one fused multiply-add.
// Everything is computed in fp32; bf16 is only the format in memory.
#pragma once
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int VEC = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int VEC = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int VEC = 4, REGISTERS = 32;
#else
constexpr int VEC = 4, REGISTERS = 16;
#endif
typedef float vec __attribute__((vector_size(VEC * 4)));
typedef int32_t ivec __attribute__((vector_size(VEC * 4)));
typedef uint32_t uvec __attribute__((vector_size(VEC * 4)));
typedef uint16_t hvec __attribute__((vector_size(VEC * 2)));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

// bfloat16 is the upper half of an fp32: same exponent, 8 bits of mantissa.
struct bf16 {
    uint16_t bits;
};
enum Type : int64_t { F32 = 0, BF16 = 1 };  // as Python passes it

INLINE float to_float(float x) { return x; }
INLINE float to_float(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE vec load(const float* p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
// Widen 16 bits to 32, and narrow back. The compiler's general form takes five instructions, these take one.
INLINE uvec widen(hvec h) {
#if defined(__AVX512F__)
    return (uvec)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
    return (uvec)_mm256_cvtepu16_epi32((__m128i)h);
#else
    return __builtin_convertvector(h, uvec);
#endif
}
INLINE hvec narrow(uvec v) {
#if defined(__AVX512F__)
    return (hvec)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
    const __m256i halves =
        _mm256_packus_epi32((__m256i)v, (__m256i)v);  // numbers below 65,536; each half of v by itself
    return (hvec)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08));
#else
    return __builtin_convertvector(v, hvec);
#endif
}
INLINE vec load(const bf16* p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(widen(h) << 16);
}
// Set every lane. (Subtracting zero changes no number, so it costs nothing; adding it makes 0 of -0, and is done.)
INLINE vec every(float x) { return x - vec{}; }
INLINE void store(float* p, vec v) { memcpy(p, &v, sizeof v); }
// Round to nearest, ties to even: add just under half of the last kept bit, plus that bit. NaN stays NaN.
INLINE hvec to_bf16(vec v) {
    uvec bits = (uvec)v;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return narrow(v == v ? rounded : (bits >> 16) | 0x40);
}
INLINE void store(bf16* p, vec v) {
    hvec h = to_bf16(v);
    memcpy(p, &h, sizeof h);
}
// Load and store the last `n` < VEC elements of a row: never touch memory beyond them.
template <class T>
INLINE vec load_part(const T* p, int64_t n) {
    T lanes[VEC] = {};
    for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
}
template <class T>
INLINE void store_part(T* p, vec v, int64_t n) {
    T lanes[VEC];
    store(lanes, v);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}
INLINE void store(float* p, float x) { *p = x; }
INLINE void store(bf16* p, float x) { p->bits = to_bf16(vec{} + x)[0]; }
INLINE float round_like(float x, const float*) { return x; }
INLINE vec round_like(vec x, const float*) { return x; }
INLINE vec round_like(vec x, const bf16*) { return (vec)(widen(to_bf16(x)) << 16); }

// Compute a * b + c, rounded once where the CPU can. The compiler would do so as well, but not everywhere: say it where two
// pieces of code must give the same bits.
INLINE vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
INLINE float fused(float a, float b, float c) {
#if defined(__AVX2__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

template <class V>
INLINE V vmax(V a, V b) {
    return a > b ? a : b;
}
// Reorder lanes of two vectors: numbers below VEC choose from `a`, the others from `b`.
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
typedef std::make_integer_sequence<int, VEC> Lanes;

// Set every lane to the sum (the largest) of all: add the vector to itself with halves swapped, then quarters, and so on.
template <int H, class V, int... L>
INLINE V swapped(V v, std::integer_sequence<int, L...>) {
    return PICK(v, v, (L ^ H)...);
}
template <int H = VEC / 2, class V>
INLINE V sum_of(V v) {
    v = v + swapped<H>(v, Lanes());
    if constexpr (H > 1) v = sum_of<H / 2>(v);
    return v;
}
template <int H = VEC / 2, class V>
INLINE V largest_of(V v) {
    v = vmax(v, swapped<H>(v, Lanes()));
    if constexpr (H > 1) v = largest_of<H / 2>(v);
    return v;
}
INLINE float sum(vec v) { return sum_of(v)[0]; }
INLINE int32_t sum(ivec v) { return sum_of(v)[0]; }
INLINE float largest(vec v) { return largest_of(v)[0]; }
INLINE int32_t largest(ivec v) { return largest_of(v)[0]; }

// Add up VEC vectors at once: lane i of v[0] becomes the sum of v[i]. Each round adds the halves of two vectors and puts the
// two results into one, so there are VEC - 1 additions instead of VEC * log2(VEC):
//   [a0 a1 a2 a3] [b0 b1 b2 b3]  ->  [a0+a2 a1+a3 | b0+b2 b1+b3]
template <int H>
constexpr int lane(int l) {
    return (l / H / 2) * 2 * H + l % H + (l / H % 2) * VEC;
}
template <int H, int... L>
INLINE vec fold(vec a, vec b, std::integer_sequence<int, L...>) {
    return PICK(a, b, lane<H>(L)...) + PICK(a, b, (lane<H>(L) + H)...);
}
template <int H = VEC / 2>
INLINE void sums(vec* v) {
    for (int i = 0; i < H; i++) v[i] = fold<H>(v[i], v[i + H], Lanes());
    if constexpr (H > 1) sums<H / 2>(v);
}

// Transpose VEC vectors: lane i of v[j] becomes lane j of v[i]. Each round swaps the off-diagonal halves of smaller squares.
template <int H, int... L>
INLINE void swap_halves(vec& a, vec& b, std::integer_sequence<int, L...>) {
    const vec upper = PICK(a, b, (L & H ? (L ^ H) + VEC : L)...);
    b = PICK(a, b, (L & H ? L + VEC : (L ^ H))...);
    a = upper;
}
template <int H = VEC / 2>
INLINE void transpose(vec* v) {
    for (int i = 0; i < VEC; i++)
        if (!(i & H)) swap_halves<H>(v[i], v[i + H], Lanes());
    if constexpr (H > 1) transpose<H / 2>(v);
}

#if defined(__AVX512F__)
// Transpose 16 rows of 16 pairs in registers: out[p][i] = rows[i][p]; rows of out are `pitch` words apart.
INLINE void turn(__m512i r[16], uint32_t* out, int64_t pitch = 16) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int h = 0; h < 16; h += 8)
        for (int i = 0; i < 4; i++) {
            t[h + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0x88);
            t[h + 4 + i] = _mm512_shuffle_i32x4(r[h + i], r[h + 4 + i], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        _mm512_store_si512(out + i * pitch, _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88));
        _mm512_store_si512(out + (8 + i) * pitch, _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd));
    }
}
#endif

// Compute e^x to 1e-7 of its value: x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r. e^r is its Taylor polynomial of
// degree 7 (next term < 5e-9); 2^n is written into the exponent's bits. ln 2 is split into two parts, the first short enough
// for n * it to be exact. Below -87 the result would be subnormal: it is 0. The bounds are n's only, as r is made of x itself:
// NaN stays NaN, and what is too large for a float becomes infinite.
INLINE vec exp(vec x) {
    vec bounded = vmax(x < 88.0f ? x : vec{} + 88.0f, vec{} - 87.0f);
    vec t = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
    ivec n = (ivec)t - 0x4b400000;
    vec whole = t - 12582912.0f;
    vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec e = r * (1 / 5040.0f) + 1 / 720.0f;
    e = e * r + 1 / 120.0f;
    e = e * r + 1 / 24.0f;
    e = e * r + 1 / 6.0f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    vec power = (vec)((n + 127) << 23);
    return x < -87.0f ? vec{} : e * power;
}
INLINE vec silu(vec x) { return x / (1.0f + exp(-x)); }

// Call `body` with pointers of the right type, for each combination of dtypes that a kernel is built for.
#define WITH_TYPE(code, T, ...) \
    if ((code) == BF16) {       \
        typedef bf16 T;         \
        __VA_ARGS__;            \
    } else {                    \
        typedef float T;        \
        __VA_ARGS__;            \
    }
