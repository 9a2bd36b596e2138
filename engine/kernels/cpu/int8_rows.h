// Round rows of x to 8 bits, as products with quantized weights take them where activations are quantized.
//
// A row is cut into groups of inputs, parts of the groups of its weights or the same:
//
//   scale = largest |x| / 127        code = x * (127 / largest), to the nearest whole number, ties to even
//
// The sum of code * code of W over a group is a whole number: exact in any order, so alike for any number of rows, of threads,
// and on any kind of CPU. Then sums become parts of a total, group after group:
//
//   total = total + (scale of W * scale of x) * (sum - zero * sum of x's codes)
//   total = total + offset * (scale of x * sum of x's codes)
//
// each in one fused multiply-add, where the CPU has one. Whole numbers below 2^24 are exact in fp32, which bounds groups.
#pragma once
#include "int8_dot.h"
#include "quantized.h"

struct Int8Args {
    QuantizedArgs w;
    int64_t x_group;  // inputs that share a scale of x: all of w.group's, or a part that divides it
};

constexpr int32_t INFINITE = 0x7f800000;  // bits of an fp32; those of larger numbers are larger
constexpr float TINY = 0x1p-100f;         // a group of x without a number as large as this counts as zeros

// Return the nearest whole numbers, ties to even.
INLINE ivec nearest(vec v) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtps_epi32((__m512)v);
#elif defined(__AVX2__)
    return (ivec)_mm256_cvtps_epi32((__m256)v);
#elif defined(__aarch64__)
    return (ivec)vcvtnq_s32_f32((float32x4_t)v);
#else
    return (ivec)(v + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
#endif
}

// Hold rows of x in 8 bits. Of 4-bit codes' inputs, eight lie in the order of their places in a word (codes.h): first those in
// the lower halves of its bytes, then those in the upper halves.
struct Int8Rows {
    int8_t* codes;
    int64_t stride, groups, count;  // bytes from row to row, groups of each, rows
    // Of each group and row, [groups][count]:
    float *scales, *sums, *scaled;  // the scale, the sum of codes, both multiplied
    int32_t* begin;  // what sums begin with, so that codes of W count less the zero that all groups share
};

constexpr int PLACE[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // where each of eight inputs of 4-bit codes lies

// Return what is added to each code of W, as `dot` takes it.
static INLINE int32_t shift_of(const QuantizedArgs& a) {
#if defined(__AVX512F__)
    if (a.kind == TABLE4) return -int32_t(a.table[0]);  // whole numbers less a zero: quantized_panels.py
#endif
    return int32_t(a.zero) + (a.kind == SIGNED8 ? ADDED : a.kind == SIGNED4 ? 8 : 0);
}

// Keep memory for rows in 8 bits.
struct Int8Memory {
    std::vector<int8_t> codes;
    std::vector<float> parts;
    std::vector<int32_t> begin;
};
static Int8Rows place_int8(Int8Memory& memory, const Int8Args& a) {
    const int64_t count = a.w.m;
    const int64_t groups = (a.w.k + a.x_group - 1) / a.x_group, stride = (a.w.k + 63) / 64 * 64 + 64;
    if (int64_t(memory.codes.size()) < count * stride) memory.codes.resize(count * stride);
    if (int64_t(memory.begin.size()) < count * groups) {
        memory.parts.resize(3 * count * groups);
        memory.begin.resize(count * groups);
    }
    float* parts = memory.parts.data();
    return {memory.codes.data(), stride, groups, count, parts, parts + count * groups, parts + 2 * count * groups,
            memory.begin.data()};
}

// Load up to VEC inputs from place k of the codes on.
template <class X>
static INLINE vec inputs_at(const X* x, int64_t k, int64_t count, const int32_t* inputs) {
    if (count == VEC && !inputs) return load(x + k);
    float some[VEC] = {};
    for (int64_t i = 0; i < count; i++) some[i] = to_float(x[inputs ? inputs[k + i] : k + i]);
    return load(some);
}

// Write the lower bytes of up to VEC numbers from place k on, in the order that their codes of W have.
template <int BITS>
static INLINE void put_codes(int8_t* to, int64_t k, ivec codes, int64_t count) {
#if defined(__AVX512F__)
    __m128i bytes = _mm512_cvtepi32_epi8((__m512i)codes);
    if (BITS == 4) bytes = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    if (count == VEC)
        _mm_storeu_si128((__m128i*)(to + k), bytes);
    else
        memcpy(to + k, &bytes, count);
#else
    for (int64_t i = 0; i < count; i++) to[BITS == 4 ? (k + i) / 8 * 8 + PLACE[(k + i) % 8] : k + i] = int8_t(codes[i]);
#endif
}

// Set lane i of v[0] to the largest of v[i], of VEC vectors: as `sums` in simd.h adds them up.
template <int H, int... L>
static INLINE ivec larger(ivec a, ivec b, std::integer_sequence<int, L...>) {
    return vmax(PICK(a, b, lane<H>(L)...), PICK(a, b, (lane<H>(L) + H)...));
}
template <int H = VEC / 2>
static INLINE void largest_of_each(ivec* v) {
    for (int i = 0; i < H; i++) v[i] = larger<H>(v[i], v[i + H], Lanes());
    if constexpr (H > 1) largest_of_each<H / 2>(v);
}

// Round the inputs of up to VEC groups of a row, from group `first` on. SUMS: whether anything needs the sums of codes.
template <int BITS, bool SUMS, class X>
static INLINE void round_groups(const X* x, int64_t row, int64_t first, int64_t shift, const Int8Rows& rows,
                                const Int8Args& a) {
    const int64_t some = rows.groups - first < VEC ? rows.groups - first : VEC;
    const int32_t* inputs = a.w.inputs;
    ivec most[VEC] = {};
    for (int64_t g = 0; g < some; g++) {
        const int64_t k = (first + g) * a.x_group, end = k + a.x_group < a.w.k ? k + a.x_group : a.w.k;
        for (int64_t i = k; i < end; i += VEC) {
            const vec now = inputs_at(x, i, end - i < VEC ? end - i : VEC, inputs);
            most[g] = vmax(most[g], (ivec)now & 0x7fffffff);  // bits of sizes: what isn't a number is larger than all
        }
    }
    largest_of_each(most);
    const vec size = (vec)most[0];
    const ivec finite = most[0] < INFINITE, counts = finite & (ivec)(size >= TINY);
    const vec times = (vec)((ivec)(127 / size) & counts), scales = (vec)((ivec)(size / 127) & counts);
    const vec all_scales = (vec)((ivec)scales | (~finite & 0x7fc00000));  // not a number
    int8_t* codes = rows.codes + row * rows.stride;
    for (int64_t g = 0; g < some; g++) {
        const int64_t k = (first + g) * a.x_group, end = k + a.x_group < a.w.k ? k + a.x_group : a.w.k;
        ivec sums = {};
        for (int64_t i = k; i < end; i += VEC) {
            const int64_t count = end - i < VEC ? end - i : VEC;
            const ivec now = nearest(inputs_at(x, i, count, inputs) * times[g]);
            if (SUMS) sums = sums + now;
            put_codes<BITS>(codes, i, now, count);
        }
        const int64_t at = (first + g) * rows.count + row;
        rows.scales[at] = all_scales[g];
        if (SUMS) {
            const int32_t whole = sum(sums);
            rows.sums[at] = float(whole);
            rows.scaled[at] = rows.scales[at] * rows.sums[at];
            rows.begin[at] = int32_t(-shift * whole);
        }
    }
}
// Round row `row` of x.
template <int BITS, bool SUMS>
__attribute__((noinline)) static void round_row(int64_t row, const Int8Rows& rows, const Int8Args& a) {
    const int64_t shift = shift_of(a.w);
    WITH_TYPE(a.w.x_type, X,
              for (int64_t g = 0; g < rows.groups; g += VEC)
                  round_groups<BITS, SUMS>((const X*)a.w.x + row * a.w.x_stride, row, g, shift, rows, a));
}
// Round all rows, by all threads.
template <int BITS, bool SUMS>
static INLINE void round_rows(const Int8Rows& rows, const Int8Args& a) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.w.m; i++) round_row<BITS, SUMS>(i, rows, a);
}

// Hold what a group of W brings to totals, for half a panel.
struct Int8Parts {
    vec scale, minus_zero = {}, offset = {};
    INLINE void read(const char* p, int64_t h, const QuantizedArgs& a) {
        const int64_t size = PANEL * part_size(a);
        scale = load_part_of(p, a.part_type, h * VEC);
        minus_zero = a.zeros ? -load_part_of(p += size, a.part_type, h * VEC) : vec{};  // tiles add a.zero, each time
        if (a.offsets) offset = load_part_of(p += size, a.part_type, h * VEC);
    }
};
