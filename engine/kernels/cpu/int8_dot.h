// Multiply bytes by bytes and add up four products in each word: what products with activations in 8 bits are made of.
//
// W comes in words of four bytes, one word for each output; x as one word, for all outputs. Products of bytes and their sums are
// whole numbers in 32 bits, so the order of adding doesn't matter: every kind of CPU below gives the same.
#pragma once
#include "codes.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

INLINE ivec all(int32_t x) { return ivec{} + x; }

#if defined(__AVX512VNNI__)
// Its instruction takes one factor without a sign: codes of 8 bits are made so by adding 128.
constexpr int32_t ADDED = 128;
INLINE uvec for_dot(uvec words) { return words ^ 0x80808080u; }
// Add w x to sums. w: codes of 4 bits.
INLINE ivec dot_small(ivec sums, uvec w, int32_t x) {
    return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, (__m512i)all(x));
}
// w: codes of 8 bits that have been through `for_dot`.
INLINE ivec dot(ivec sums, uvec w, int32_t x) { return dot_small(sums, w, x); }

#else
constexpr int32_t ADDED = 0;
INLINE uvec for_dot(uvec words) { return words; }
#if defined(__AVX2__)
// Here it adds two products in 16 bits, and must not run over: 2 * 128 * 127 are 32,512. So w gives its sign to x.
#if defined(__AVX512BW__)
INLINE ivec pairs_added(ivec sums, __m512i w, __m512i x) {
    return sums + (ivec)_mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1));
}
INLINE ivec dot_small(ivec sums, uvec w, int32_t x) { return pairs_added(sums, (__m512i)w, (__m512i)all(x)); }
INLINE ivec dot(ivec sums, uvec w, int32_t x) {
    const __m512i turned =
        _mm512_mask_sub_epi8((__m512i)all(x), _mm512_movepi8_mask((__m512i)w), __m512i{}, (__m512i)all(x));
    return pairs_added(sums, _mm512_abs_epi8((__m512i)w), turned);
}
#else
INLINE ivec pairs_added(ivec sums, __m256i w, __m256i x) {
    return sums + (ivec)_mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
INLINE ivec dot_small(ivec sums, uvec w, int32_t x) { return pairs_added(sums, (__m256i)w, (__m256i)all(x)); }
INLINE ivec dot(ivec sums, uvec w, int32_t x) {
    return pairs_added(sums, _mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)all(x), (__m256i)w));
}
#endif
#elif defined(__SSE2__)
INLINE __m128i lower_bytes(ivec words) { return _mm_srai_epi16(_mm_slli_epi16((__m128i)words, 8), 8); }
INLINE __m128i upper_bytes(ivec words) { return _mm_srai_epi16((__m128i)words, 8); }
INLINE ivec dot(ivec sums, uvec w, int32_t x) {
    const ivec lower = (ivec)_mm_madd_epi16(lower_bytes((ivec)w), lower_bytes(all(x))),
               upper = (ivec)_mm_madd_epi16(upper_bytes((ivec)w), upper_bytes(all(x)));
    return sums + lower + upper;
}
INLINE ivec dot_small(ivec sums, uvec w, int32_t x) { return dot(sums, w, x); }
#else
INLINE ivec dot(ivec sums, uvec w, int32_t x) {
    for (int shift = 0; shift < 32; shift += 8)
        sums = sums + ((ivec)(w << (24 - shift)) >> 24) * (int32_t(uint32_t(x) << (24 - shift)) >> 24);
    return sums;
}
INLINE ivec dot_small(ivec sums, uvec w, int32_t x) { return dot(sums, w, x); }
#endif
#endif
