// Multiply a few rows by quantized weights with vectors: codes are read once and become numbers in registers.
#pragma once
#include "quantized.h"

constexpr int64_t MOST_DIRECT = 4;  // rows, at most
constexpr int64_t FAR = 2048;       // bytes: how far ahead W is prefetched
constexpr int64_t NEAR = 512;       // the same, to the first cache, if what is far goes to the second

// Multiply rows by numbers of type `number`, one place a step.
struct InFloat {
    typedef float number;
    typedef vec operand;
    static constexpr int STEP = 1;
    static constexpr bool KEPT_TOTALS = false;
    template <int64_t KIND>
    using Source = Codes<KIND>;
    template <int I, class S>
    static INLINE operand get(const S& codes, uvec words) {
        return codes.template number<I>(words);
    }
    static INLINE vec add(vec sum, const float* x, operand w) { return sum + *x * w; }
};
#if defined(__AVX512BF16__)
struct InPairs {  // an instruction multiplies pairs of bf16 and adds both products to an fp32 sum
    typedef bf16 number;
    typedef __m512bh operand;
    static constexpr int STEP = 2;
    static constexpr bool KEPT_TOTALS = true;  // of many rows, in registers (quantized_kept.h)
    template <int64_t KIND>
    using Source = PairCodes<KIND>;
    template <int I, class S>
    static INLINE operand get(const S& codes, uvec words) {
        return codes.template pair<I>(words);
    }
    static INLINE vec add(vec sum, const bf16* x, operand w) {
        int32_t pair;
        memcpy(&pair, x, sizeof pair);
        return _mm512_dpbf16_ps(sum, (operand)_mm512_set1_epi32(pair), w);
    }
};
#endif

// Multiply M rows of x by P panels of W, whose codes become numbers in registers.
template <class D, int64_t KIND, int M, int P>
static INLINE void direct(const Rows<typename D::number>& rows, int64_t row, int64_t panel, const QuantizedArgs& a) {
    typedef typename D::template Source<KIND> Source;
    constexpr int PLACES = Source::PLACES;
    const Sizes s(a, PLACES);
    const Source codes(a.table);
    const char *group = a.w + panel * s.panel, *last = group + s.panel - FAR;
    vec totals[M][P][2] = {};
    const typename D::number* x = rows.x;
    for (int64_t g = 0, left = a.k; g < s.groups; g++, left -= a.group) {
        vec values[M][P][2];
        for (int m = 0; m < M; m++) {
            const vec begin = rows.begins ? every(rows.begins[m * s.groups + g]) : vec{};
            for (int p = 0; p < P; p++)
                for (int h = 0; h < 2; h++) values[m][p][h] = begin;
        }
        if (a.zeros)
            for (int p = 0; p < P; p++)
                for (int h = 0; h < 2; h++) {
                    const vec zero = Parts(group + p * s.panel, h, 1, a, Source::ADDED).zero;
                    for (int m = 0; m < M; m++)
                        values[m][p][h] = zero * (rows.sums[m * s.groups + g] * (-1 / Source::UNIT));
                }
        const int64_t steps = (left < a.group ? left : a.group) / PLACES;
        const char* at = group + s.head;
        for (int64_t i = 0; i < steps; i++, at += WORDS, x += PLACES) {
            const int64_t ahead = at < last ? FAR : FAR + (P - 1) * s.panel;  // at the end: of the next panels
            uvec words[P][2];
            for (int p = 0; p < P; p++)
                for (int h = 0; h < 2; h++) {
                    const char* here = at + p * s.panel + h * (WORDS / 2);
                    if (h == 0 || WORDS > 64) {
                        if (P > 1) __builtin_prefetch(here + NEAR);
                        P > 1 ? __builtin_prefetch(here + ahead, 0, 2) : __builtin_prefetch(here + ahead);
                    }
                    words[p][h] = load_words(here);
                }
            each<PLACES / D::STEP>([&](auto j) INLINE_LAMBDA {
                for (int p = 0; p < P; p++)
                    for (int h = 0; h < 2; h++) {
                        const auto w = D::template get<j()>(codes, words[p][h]);
                        for (int m = 0; m < M; m++)
                            values[m][p][h] = D::add(values[m][p][h], x + m * rows.stride + j() * D::STEP, w);
                    }
            });
        }
        for (int p = 0; p < P; p++)
            for (int h = 0; h < 2; h++) {
                const Parts parts(group + p * s.panel, h, Source::UNIT, a);
                for (int m = 0; m < M; m++)
                    totals[m][p][h] = parts.add(totals[m][p][h], values[m][p][h], rows.sums + m * s.groups + g, a);
            }
        group += s.record;
    }
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) put(a, row + m, 1, (panel + p) * PANEL, totals[m][p]);
}
