// Compute y = x W^T + bias with quantized weights, for any number of rows, and look up rows of a quantized table.
//
// What is read is codes (quantized.h): a quarter or half of the bytes of bf16.
//
// With few rows the codes are read once and become numbers in registers; the memory is slower than that. With more rows than
// there are registers for their sums, the first of them leave the numbers of CHUNK places in the first cache for the others.
//
// Both ways add the same products in the same order: within a group over k, then group by group. A row's result depends
// neither on the number of rows nor on the other rows. A group's sum begins with - zero * (sum of x), which is known before.
#include "quantized.h"

constexpr int64_t ROWS = REGISTERS * 3 / 8;
constexpr int64_t AT_ONCE = 8 * ROWS;  // rows of x that a panel multiplies before the next panel
constexpr int64_t CHUNK = 256;         // places that are expanded at once
constexpr int64_t FAR = 2048;          // bytes: how far ahead W is prefetched
constexpr int64_t NEAR = 512;          // the same, to the first cache, if what is far goes to the second

// Multiply rows by numbers of type `number`, one place a step.
struct InFloat {
    typedef float number;
    typedef vec operand;
    static constexpr int STEP = 1;
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

// Describe a piece of a panel whose numbers are kept: several whole groups, or a part of one.
struct Piece {
    int64_t first, groups;  // the groups, or the group
    int64_t places;         // of a group, here
    bool begins, ends;      // whether it has a group's first place, and its last
    const char* parts;      // of the first group
    const char* codes;      // of the first group, here
    int64_t bytes;          // to the next piece
};

// Read the numbers of a piece from its codes, and write them to `kept`.
template <class D, class Source>
struct FromCodes {
    static constexpr int STEPS = Source::PLACES / D::STEP;  // in a word
    const Source& codes;
    const char* at;
    typename D::operand* kept;
    void group(const char* start) { at = start; }
    template <class Multiply>
    INLINE void word(Multiply multiply) {
        const uvec lower = load_words(at), upper = load_words(at + WORDS / 2);
        at += WORDS;
        each<STEPS>([&](auto j) INLINE_LAMBDA {
            const typename D::operand two[2] = {D::template get<j()>(codes, lower), D::template get<j()>(codes, upper)};
            kept[2 * j()] = two[0], kept[2 * j() + 1] = two[1];
            multiply(two, j() * D::STEP);
        });
        kept += 2 * STEPS;
    }
};
// Read them where they were kept.
template <class D>
struct FromKept {
    static constexpr int STEPS = 1;
    const typename D::operand* kept;
    void group(const char*) {}
    template <class Multiply>
    INLINE void word(Multiply multiply) {
        const typename D::operand two[2] = {kept[0], kept[1]};
        multiply(two, 0);
        kept += 2;
    }
};

// Hold the sums of rows: of the group that has begun, and of all groups before.
struct Sums {
    vec *values, *totals;        // [rows][2]
    const float *of_x, *begins;  // [rows, groups], or null: of Rows
};

// Multiply M rows by a piece. Prefetch `ahead_by` bytes from `ahead` on in each step. unit, added: of the numbers.
template <class D, int M, class From>
static INLINE void piece_by_rows(const typename D::number* x, int64_t stride, From from, const Piece& piece,
                                 const char* ahead, int64_t ahead_by, float unit, float added, const Sums& sums,
                                 const Sizes& s, const QuantizedArgs& a) {
    constexpr int64_t PLACES = From::STEPS * D::STEP;
    for (int64_t g = 0; g < piece.groups; g++) {
        vec now[M][2];
        const int64_t at = piece.first + g;
        if (!piece.begins) {
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = sums.values[2 * m + h];
        } else if (a.zeros) {
            const vec zeros[2] = {Parts(piece.parts + g * s.record, 0, unit, a, added).zero,
                                  Parts(piece.parts + g * s.record, 1, unit, a, added).zero};
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = zeros[h] * (sums.of_x[m * s.groups + at] * (-1 / unit));
        } else if (sums.begins) {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = every(sums.begins[m * s.groups + at]);
        } else {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = vec{};
        }
        from.group(piece.codes + g * s.record);
        for (int64_t k = 0; k < piece.places; k += PLACES, x += PLACES)
            from.word([&](const typename D::operand* two, int64_t place) INLINE_LAMBDA {
                __builtin_prefetch(ahead);
                ahead += ahead_by;
                for (int m = 0; m < M; m++)
                    for (int h = 0; h < 2; h++) now[m][h] = D::add(now[m][h], x + m * stride + place, two[h]);
            });
        if (piece.ends) {
            const Parts parts[2] = {{piece.parts + g * s.record, 0, unit, a}, {piece.parts + g * s.record, 1, unit, a}};
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = sums.totals[2 * m + h] + parts[h].scale * now[m][h];
            if (a.offsets)
                for (int m = 0; m < M; m++)
                    for (int h = 0; h < 2; h++) now[m][h] = now[m][h] + parts[h].offset * sums.of_x[m * s.groups + at];
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) sums.totals[2 * m + h] = now[m][h];
        } else {
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) sums.values[2 * m + h] = now[m][h];
        }
    }
}
// Choose the product of `height` rows: one of those given, the last if none is.
template <class D, int M, int... OTHERS, class... Rest>
static INLINE void piece_by(std::integer_sequence<int, M, OTHERS...>, int64_t height, const Rest&... rest) {
    if constexpr (sizeof...(OTHERS) > 0) {
        if (height != M) return piece_by<D>(std::integer_sequence<int, OTHERS...>(), height, rest...);
    }
    piece_by_rows<D, M>(rest...);
}
// For the first pass there are fewer heights to compile: of more than 8 rows, even ones.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
typedef std::integer_sequence<int, 12, 10, 8, 7, 6, 5> FirstHeights;
typedef std::integer_sequence<int, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1> Heights;
#else
typedef std::integer_sequence<int, 6, 5, 4, 3> FirstHeights;
typedef std::integer_sequence<int, 6, 5, 4, 3, 2, 1> Heights;
#endif
static INLINE int64_t first_height(int64_t height) { return height > 8 ? height & ~1 : height; }
template <class D, class... Rest>
__attribute__((noinline)) static void piece_again(const Rest&... rest) {
    piece_by<D>(Heights(), rest...);
}

// Multiply `count` rows by one panel, a piece of up to CHUNK places at a time: as few passes over it as possible, all of
// nearly the same height. The first makes numbers of the codes and keeps them for the others. Each prefetches its share of
// the next piece.
template <class D, int64_t KIND>
static void many(const Rows<typename D::number>& rows, int64_t row, int64_t count, int64_t panel,
                 const QuantizedArgs& a) {
    typedef typename D::template Source<KIND> Source;
    constexpr float UNIT = Source::UNIT, ADDED = Source::ADDED;
    const Sizes s(a, Source::PLACES);
    const Source codes(a.table);
    typename D::operand numbers[CHUNK / D::STEP * 2];
    vec values[AT_ONCE * 2], totals[AT_ONCE * 2];
    for (int64_t i = 0; i < 2 * count; i++) totals[i] = vec{};
    const int64_t passes = first_height(count) == count || count > ROWS ? (count + ROWS - 1) / ROWS : 2,
                  whole = a.k / a.group;
    for (int64_t k = 0; k < a.k;) {
        const int64_t g = k / a.group, within = k % a.group,
                      left = a.k - k < a.group - within ? a.k - k : a.group - within;
        const char* group = a.w + panel * s.panel + g * s.record;
        Piece piece = {g, 1, left < CHUNK ? left : CHUNK, within == 0, left <= CHUNK, group, nullptr, 0};
        if (a.group <= CHUNK && g < whole) piece.groups = CHUNK / a.group < whole - g ? CHUNK / a.group : whole - g;
        piece.codes = group + s.head + within / Source::PLACES * WORDS;
        piece.bytes = piece.groups > 1 ? piece.groups * s.record : piece.places / Source::PLACES * WORDS + s.head;
        const int64_t steps = piece.groups * piece.places / D::STEP,
                      every = (piece.bytes + passes * steps - 1) / (passes * steps);
        const char* ahead = piece.codes + piece.bytes;
        for (int64_t i = 0, pass = 0, height; pass < passes; i += height, pass++, ahead += steps * every) {
            height = (count - i + passes - pass - 1) / (passes - pass);
            if (pass == 0) height = first_height(height);
            const typename D::number* x = rows.x + i * rows.stride + k;
            const Sums sums = {values + 2 * i, totals + 2 * i, rows.sums ? rows.sums + i * s.groups : nullptr,
                               rows.begins ? rows.begins + i * s.groups : nullptr};
            if (pass == 0)
                piece_by<D>(FirstHeights(), height, x, rows.stride, FromCodes<D, Source>{codes, nullptr, numbers},
                            piece, ahead, every, UNIT, ADDED, sums, s, a);
            else
                piece_again<D>(height, x, rows.stride, FromKept<D>{numbers}, piece, ahead, every, UNIT, ADDED, sums, s,
                               a);
        }
        k += piece.groups * piece.places;
    }
    put(a, row, count, panel * PANEL, totals);
}

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
#pragma omp parallel if (a.n * a.k > 16384)
    for (int64_t from = 0; from < a.m; from += AT_ONCE) {
        const int64_t rows = a.m - from < AT_ONCE ? a.m - from : AT_ONCE;
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
    const float one = 1;
    for (int64_t k = 0; k < a.k; group += s.record) {
        const Parts parts(group, h, Codes<KIND>::UNIT, a);
        const char* at = group + s.head + h * (WORDS / 2);
        for (int64_t i = 0; i < a.group && k < a.k; i += PLACES, at += WORDS)
            each<PLACES>([&](auto j) INLINE_LAMBDA {
                const vec value = codes.template number<j()>(load_words(at));
                const vec less = value - parts.zero * (1 / Codes<KIND>::UNIT);
                out[a.inputs ? a.inputs[k] : k] = parts.add(vec{}, less, &one, a)[lane];
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
