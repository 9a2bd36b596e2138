// Define what attention on matrix tiles and by pairs of bf16 have in common: weights, and how V is laid out.
//
// Both multiply V with the values of two positions side by side in a word. They are put there within 16 bytes, so o's
// dimensions lie in another order meanwhile: of each 32 the first four of every eight, then the others.
#pragma once
#include "attention_in_place.h"

constexpr int WORDS = 256;  // of a tile

// Compute e^(x - from) for x <= from, to 5e-6 of its value; scaled is from * LOG2. 2^t = 2^floor(t) 2^r, and 2^r is a
// polynomial that is exact at five points of 0 to 1 (Chebyshev's). Small results stop at 2^-126, the smallest number that
// isn't subnormal: subnormal numbers take a hundred times as long, and beside any weight both count as 0. NaN stays NaN: of
// two operands of which one is NaN, the largest is the second.
constexpr float LOG2 = 1.44269504f;
static INLINE vec weight_of(vec x, vec scaled) {
    const vec none = {};
    __m512 t = _mm512_max_ps(_mm512_set1_ps(-126.0f), (__m512)fused(x, none + LOG2, -scaled));
    vec r = (vec)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = fused(r, none + 0.0136703095f, none + 0.0517449978f);
    p = fused(p, r, none + 0.241604357f);
    p = fused(p, r, none + 0.692972922f);
    p = fused(p, r, none + 1.00000349f);
    return (vec)_mm512_scalef_ps((__m512)p, t);
}

// Put the values of two positions side by side: tiles [KEYS / 32][dim / 32][2][16 pairs of positions, 16 dimensions]. ask():
// called for each 64 bytes.
template <class Ask>
static INLINE void values_side_by_side(uint32_t* tiles, const bf16* v, const int64_t* at, int64_t keys, int64_t dim,
                                       Ask ask) {
    auto number = [&](int64_t j, int64_t d)
                      INLINE_LAMBDA { return j < keys ? _mm512_loadu_si512(v + at[j] + d) : _mm512_setzero_si512(); };
    for (int64_t j = 0; j < KEYS; j += 2) {
        uint32_t* to = tiles + j / 32 * dim * 16 + j % 32 * 8;
        for (int64_t d = 0; d < dim; d += 32, to += 2 * WORDS) {
            ask();
            const __m512i even = number(j, d), odd = number(j + 1, d);
            _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
            _mm512_store_si512(to + WORDS, _mm512_unpackhi_epi16(even, odd));
        }
    }
}

// Bring 32 dimensions of o into their order.
template <int... L>
static INLINE Two in_order(Two x, std::integer_sequence<int, L...>) {
    return {PICK(x.a, x.b, (L / 8 * 4 + L % 4 + L % 8 / 4 * VEC)...),
            PICK(x.a, x.b, (8 + L / 8 * 4 + L % 4 + L % 8 / 4 * VEC)...)};
}
