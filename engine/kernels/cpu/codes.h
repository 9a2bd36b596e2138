// Turn the codes of quantized weights into numbers, a vector at a time.
//
// Codes lie in words of 32 bits, one word for each output, so that a vector of words holds the next places of VEC outputs:
//
//   8 bits: place p of 4 in byte p
//   4 bits: place p of 8 in nibble 4 (p % 2) + p / 2: the two places of a pair lie at the same height of the word's halves
//
// A `Codes` gives the numbers of one place, or on AVX512-BF16 of a pair of places in bf16. All of these numbers are exact; a
// table's entries are rounded to bf16 for pairs. Where a number costs less as a multiple, `UNIT` is its size; where it costs
// less with something added, that is `ADDED`.
#pragma once
#include "simd.h"

enum Kind : int64_t { TABLE4 = 0, SIGNED4 = 1, UNSIGNED4 = 2, SIGNED8 = 3, FLOAT8 = 4 };  // code_kinds.py
constexpr int64_t ENTRIES = 16;                                                           // of a table

// Call body(i) for i = 0 .. N - 1, known when compiled.
template <int... I, class Body>
INLINE void each(std::integer_sequence<int, I...>, Body body) {
    (body(std::integral_constant<int, I>()), ...);
}
template <int N, class Body>
INLINE void each(Body body) {
    each(std::make_integer_sequence<int, N>(), body);
}

INLINE uvec load_words(const char* p) {
    uvec words;
    memcpy(&words, p, sizeof words);
    return words;
}
constexpr int nibble(int place) { return 4 * (place % 2) + place / 2; }

// Move byte FROM of each word to byte TO, zeros elsewhere.
template <int FROM, int TO>
INLINE uvec move_byte(uvec words) {
#if defined(__AVX2__)
    constexpr uint32_t none = 0x80808080u & ~(0xffu << 8 * TO);  // an index with its highest bit set gives zero
    const __m128i order = _mm_setr_epi32(none | FROM << 8 * TO, none | (FROM + 4) << 8 * TO,
                                         none | (FROM + 8) << 8 * TO, none | (FROM + 12) << 8 * TO);
#endif
#if defined(__AVX512BW__)
    return (uvec)_mm512_shuffle_epi8((__m512i)words, _mm512_broadcast_i32x4(order));
#elif defined(__AVX2__)
    return (uvec)_mm256_shuffle_epi8((__m256i)words, _mm256_broadcastsi128_si256(order));
#else
    return ((words >> 8 * FROM) & 0xff) << 8 * TO;
#endif
}
INLINE vec whole(uvec integers) { return __builtin_convertvector((ivec)integers, vec); }

template <int64_t KIND>
struct Codes;

struct Numbers4 {  // codes of 4 bits whose numbers are no multiples
    static constexpr int PLACES = 8;
    static constexpr float UNIT = 1, ADDED = 0;
};

template <>
struct Codes<SIGNED8> {  // two's complement, moved to the top of the word: a multiple of 2^24
    static constexpr int PLACES = 4;
    static constexpr float UNIT = 1.0f / (1 << 24), ADDED = 0;
    explicit Codes(const float*) {}
    template <int P>
    INLINE vec number(uvec words) const {
        return whole(move_byte<P, 3>(words));
    }
};
template <>
struct Codes<FLOAT8> {  // e4m3: sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities
    static constexpr int PLACES = 4;
    static constexpr float UNIT = 1, ADDED = 0;
    explicit Codes(const float*) {}
    template <int P>
    INLINE vec number(uvec words) const {  // the bits of an fp32 with too small an exponent
        const uvec bits = (uvec)((ivec)(words << (24 - 8 * P)) >> 4) & 0x87f00000u;
        return (vec)bits * 0x1p120f;
    }
};
template <>
struct Codes<SIGNED4> {  // two's complement, a multiple of 2^28
    static constexpr int PLACES = 8;
    static constexpr float UNIT = 1.0f / (1 << 28), ADDED = 0;
    explicit Codes(const float*) {}
    template <int P>
    INLINE vec number(uvec words) const {
        constexpr int N = nibble(P);
        return whole(move_byte<N / 2, 3>((N % 2 ? words : words << 4) & 0xf0f0f0f0u));
    }
};
template <>
struct Codes<UNSIGNED4> : Numbers4 {  // the code itself
    explicit Codes(const float*) {}
    template <int P>
    INLINE vec number(uvec words) const {
        return whole(words >> 4 * nibble(P) & 15);
    }
};
template <>
struct Codes<TABLE4> : Numbers4 {
#if defined(__AVX512F__)
    __m512 entries;
    explicit Codes(const float* table) : entries(_mm512_loadu_ps(table)) {}
    template <int P>
    INLINE vec number(uvec words) const {  // the permutation reads 4 bits of each index
        return (vec)_mm512_permutexvar_ps((__m512i)(words >> 4 * nibble(P)), entries);
    }
#elif defined(__AVX2__)
    __m256 lower, upper;
    explicit Codes(const float* table) : lower(_mm256_loadu_ps(table)), upper(_mm256_loadu_ps(table + 8)) {}
    template <int P>
    INLINE vec number(uvec words) const {  // it reads 3; the fourth bit chooses the half of the table
        const __m256i index = (__m256i)(words >> 4 * nibble(P));
        return (vec)_mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index), _mm256_permutevar8x32_ps(upper, index),
                                     (__m256)(words << (28 - 4 * nibble(P))));
    }
#else
    const float* entries;
    explicit Codes(const float* table) : entries(table) {}
    template <int P>
    INLINE vec number(uvec words) const {
        vec found = {};
        for (int i = 0; i < VEC; i++) found[i] = entries[words[i] >> 4 * nibble(P) & 15];
        return found;
    }
#endif
};

#if defined(__AVX512BF16__)
// Give pair P of places in bf16, output by output. Numbers that are exact in bf16 are only cut.
template <int64_t KIND>
struct PairCodes : Codes<KIND> {
    using Codes<KIND>::Codes;
    template <int P>
    INLINE __m512bh pair(uvec words) const {
        const uvec even = (uvec)this->template number<2 * P>(words),
                   odd = (uvec)this->template number<2 * P + 1>(words);
        return (__m512bh)(even >> 16 | (odd & 0xffff0000u));
    }
};
template <>
struct PairCodes<UNSIGNED4> : Codes<UNSIGNED4> {
    static constexpr float ADDED = 16;  // the code is the upper bits of 16 + code's fraction, so no table is read
    using Codes<UNSIGNED4>::Codes;
    template <int P>
    INLINE __m512bh pair(uvec words) const {
        __m512i fraction;
        if constexpr (P == 0)
            fraction = _mm512_slli_epi16((__m512i)words, 3);
        else
            fraction = _mm512_srli_epi16((__m512i)words, 4 * P - 3);
        constexpr int AND_OR = 0xea;  // a & b | c
        return (__m512bh)_mm512_ternarylogic_epi32(fraction, _mm512_set1_epi16(15 << 3), _mm512_set1_epi16(0x4180),
                                                   AND_OR);
    }
};
template <>
struct PairCodes<TABLE4> : Codes<TABLE4> {
    __m512i halves;  // the table in bf16, twice: the permutation reads 5 bits of each index
    explicit PairCodes(const float* table) : Codes<TABLE4>(table) {
        const __m256i rounded = (__m256i)to_bf16(load(table));
        halves = _mm512_broadcast_i64x4(rounded);
    }
    template <int P>
    INLINE __m512bh pair(uvec words) const {
        return (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)words, 4 * P), halves);
    }
};
#endif
