// Compute y = x W^T + bias with quantized weights, for any number of rows, and look up rows of a quantized table.
//
// What is read is codes (quantized.h): a quarter or half of the bytes of bf16.
//
// With few rows the codes are read once and become numbers in registers; the memory is slower than that (quantized_few.h). With
// more rows than there are registers for their sums, the first of them leave numbers in a cache for the others
// (quantized_many.h).
//
// Both ways add the same products in the same order: within a group over k, then group by group. A row's result depends
// neither on the number of rows nor on the other rows. A group's sum begins with - zero * (sum of x), which is known before.
#include "quantized_many.h"

// Multiply panels [first, last) by `count` rows.
template <class D, int64_t KIND>
static void panels(const Rows<typename D::number>& rows, int64_t row, int64_t count, int64_t first, int64_t last,
                   const QuantizedArgs& a) {
    for (int64_t n = first; n < last;) {
        if (count == 1 && n + 4 <= last) {
            direct<D, KIND, 1, 4>(rows, row, n, a), n += 4;
        } else if (count == 2 && n + 2 <= last) {
            direct<D, KIND, 2, 2>(rows, row, n, a), n += 2;
        } else {
            static_assert(MOST_DIRECT == 4);
            switch (count) {
                case 1:
                    direct<D, KIND, 1, 1>(rows, row, n, a);
                    break;
                case 2:
                    direct<D, KIND, 2, 1>(rows, row, n, a);
                    break;
                case 3:
                    direct<D, KIND, 3, 1>(rows, row, n, a);
                    break;
                case 4:
                    direct<D, KIND, 4, 1>(rows, row, n, a);
                    break;
                default:
                    many<D, KIND>(rows, row, count, n, a);
            }
            n++;
        }
    }
}

template <class D, class X, int64_t KIND>
static void linear(const QuantizedArgs& a) {
    typedef typename D::template Source<KIND> Source;
    // Where all groups have one zero, its part of the sums is known before: values begin with it.
    const float begin = a.zeros ? 0 : -(float(a.zero) + Source::ADDED) / Source::UNIT;
    const int64_t count = (a.n + PANEL - 1) / PANEL, share = count / (4 * omp_get_max_threads());
    const int64_t run = share < 4 ? 4 : share / 4 * 4;  // panels that a thread takes at once
    // Rows at once: blocks of nearly the same size, for each makes numbers of all codes.
    const int64_t blocks = (a.m + AT_ONCE<D> - 1) / AT_ONCE<D>, most = blocks > 1 ? (a.m + blocks - 1) / blocks : a.m;
#pragma omp parallel if (a.n * a.k > 16384)
    for (int64_t from = 0; from < a.m; from += most) {
        const int64_t rows = a.m - from < most ? a.m - from : most;
        const Rows<typename D::number> numbers =
            rows_of<typename D::number>((const X*)a.x + from * a.x_stride, rows, a, begin);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t first = 0; first < count; first += run)
            panels<D, KIND>(numbers, from, rows, first, first + run < count ? first + run : count, a);
    }
}

EXPORT void glasshouse_linear_quantized(const QuantizedArgs* args) {
    const QuantizedArgs& a = *args;
    with_kind(a.kind, [&](auto kind) {
        if (a.x_type == F32)
            linear<InFloat, float, kind()>(a);
        else
#if defined(__AVX512BF16__)
            linear<InPairs, bf16, kind()>(a);
#else
            linear<InFloat, bf16, kind()>(a);
#endif
    });
}

struct QuantizedEmbedArgs {
    const int64_t* ids;  // [tokens]
    float* out;          // [tokens, k]
    int64_t tokens;
    QuantizedArgs table;  // all but x, y, bias and what describes them
};

// Look up row `id`: lane id % PANEL of its panel.
template <int64_t KIND>
static void look_up(int64_t id, float* out, const QuantizedArgs& a) {
    constexpr int PLACES = Codes<KIND>::PLACES;
    const Sizes s(a, PLACES);
    const Codes<KIND> codes(a.table);
    const char* group = a.w + id / PANEL * s.panel;
    const int64_t h = id % PANEL / VEC, lane = id % VEC;
    const float one = 1, factor = float(a.factor);
    for (int64_t k = 0; k < a.k; group += s.record) {
        const Parts parts(group, h, Codes<KIND>::UNIT, a);
        const char* at = group + s.head + h * (WORDS / 2);
        for (int64_t i = 0; i < a.group && k < a.k; i += PLACES, at += WORDS)
            each<PLACES>([&](auto j) INLINE_LAMBDA {
                const vec value = codes.template number<j()>(load_words(at));
                const vec less = value - parts.zero * (1 / Codes<KIND>::UNIT);
                out[a.inputs ? a.inputs[k] : k] = parts.add(vec{}, less, &one, a)[lane] * factor;
                k++;
            });
    }
}

EXPORT void glasshouse_embed_quantized(const QuantizedEmbedArgs* a) {
    with_kind(a->table.kind, [&](auto kind) {
#pragma omp parallel for if (a->tokens * a->table.k > 32768)
        for (int64_t t = 0; t < a->tokens; t++) look_up<kind()>(a->ids[t], a->out + t * a->table.k, a->table);
    });
}
