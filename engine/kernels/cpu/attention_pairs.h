// Attend by products of pairs of bf16 (AVX512-BF16), where matrix tiles can't be used: see attention.cpp for the task.
//
// An instruction adds to each of 16 sums the products of two neighbouring numbers, twice what a multiply-add of fp32 does:
//
//   scores  [Q queries, 16 keys]  +=  q: two dimensions, on all lanes    x  K, transposed: these two dimensions of 16 keys
//   softmax: a vector holds 16 keys of a query
//   values  [Q queries, 16 dims]  +=  weights of two positions, likewise  x  V, these two positions side by side
//
// So no score is a sum over lanes. A chunk lays K and V out once for all its queries; a decoding row lays out K, and puts V's
// positions side by side in registers.
//
// Every query gets the same bits: a score is summed over pairs of dimensions from first to last, values over pairs of
// positions within blocks of KEYS, l lane by lane over the blocks of a part. q and weights are rounded to bf16, l isn't.
// What a query doesn't see weighs exactly 0, so that it doesn't matter how much of it a tile computes.
#pragma once
#include "attention_bf16.h"

constexpr int Q_PITCH =
    MAX_DIM / 2 + 16;            // words of a query; rows don't lie a power of two apart, in few sets of the cache
constexpr int TALL = 6;          // queries of a tile: with four vectors of keys, or of dimensions, 24 sums
constexpr int FEW_IN_PAIRS = 8;  // query heads that a decoding row takes in one tile

struct Pairs {
    alignas(64) uint32_t k[MAX_DIM / 2 * KEYS];  // [pairs of dimensions, keys]
    alignas(64) uint32_t v[KEYS / 2 * MAX_DIM];  // as values_side_by_side lays them out
    alignas(64) uint32_t q[QUERIES * Q_PITCH];   // [queries, pairs of dimensions]
    alignas(64) float l[QUERIES][VEC];           // of the part at work
    alignas(64) float s[FEW_IN_PAIRS][KEYS];     // of a tile
    alignas(64) uint32_t weights[FEW_IN_PAIRS][KEYS / 2];
    int64_t positions[QUERIES];  // of the task's queries
};

static INLINE __m512 add_pairs(__m512 sum, uint32_t pair, __m512i others) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)others);
}

// Transpose K of some positions; `at` has places for whole vectors of them. ask(): called for each 128 bytes.
template <int PITCH, class Ask>
static INLINE void turn_keys(uint32_t* to, const bf16* k, const int64_t* at, int64_t keys, int64_t dim, Ask ask) {
    for (int64_t j = 0; j < keys; j += 16)
        for (int64_t d = 0; d < dim; d += 32) {
            __m512i rows[16];
            for (int64_t i = 0; i < 16; i++) {
                rows[i] = _mm512_loadu_si512(k + at[j + i] + d);
                if (i % 2) ask();
            }
            turn(rows, to + d / 2 * PITCH + j, PITCH);
        }
}

// Compute the scores of Q queries with N vectors of keys. ask(): called for each 128 bytes.
template <int Q, int N, int PITCH, class Ask>
static INLINE void scores_of_pairs(const uint32_t* q, const uint32_t* k, float (*s)[KEYS], int64_t j, int64_t dim,
                                   Ask ask) {
    __m512 sums[Q][N] = {};
    for (int64_t p = 0; p < dim / 2; p++) {
        __m512i keys[N];
        for (int n = 0; n < N; n++) {
            keys[n] = _mm512_load_si512(k + p * PITCH + n * VEC);
            if (n % 2) ask();
        }
        for (int i = 0; i < Q; i++)
            for (int n = 0; n < N; n++) sums[i][n] = add_pairs(sums[i][n], q[i * Q_PITCH + p], keys[n]);
    }
    for (int i = 0; i < Q; i++)
        for (int n = 0; n < N; n++) _mm512_store_ps(&s[i][j + n * VEC], sums[i][n]);
}

// Raise a query's m to the largest of `top`. Not inline: after its first blocks a query seldom sees a larger score.
__attribute__((noinline)) static void raise(Scratch& x, Pairs& y, int64_t query, vec top) {
    float &m = x.state->m[query], *o = x.state->o + query * x.pitch;
    const float was = m;
    m = largest(top);
    if (was == -INFINITY) return;  // l and o are 0
    const vec shrink = weight_of(every(was), every(m) * LOG2);
    store(y.l[query], load(y.l[query]) * shrink);
    for (int64_t d = 0; d < x.pitch; d += VEC) store(o + d, load(o + d) * shrink);
}

// Turn one query's scores into weights, and update its m, l and o. It sees keys from `low` to below `high` of the block.
static INLINE void softmax_of_pairs(Scratch& x, Pairs& y, int64_t query, const float* s, uint32_t* weights,
                                    float soft_cap, int64_t low, int64_t high) {
    static const float count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    constexpr int N = KEYS / VEC;
    static_assert(N == 4);
    const bool all = low <= 0 && high >= KEYS;
    vec score[N], weight[N];
    for (int n = 0; n < N; n++) {
        score[n] = load(s + n * VEC);
        if (soft_cap > 0) score[n] = soft_cap * (1.0f - 2.0f / (exp(score[n] * (2 / soft_cap)) + 1.0f));
        if (!all) {
            const vec index = load(count) + float(n * VEC);
            score[n] = (index >= float(low)) & (index < float(high)) ? score[n] : vec{} - INFINITY;
        }
    }
    const vec top = vmax(vmax(score[0], score[1]), vmax(score[2], score[3]));
    float& m = x.state->m[query];
    if (_mm512_cmp_ps_mask((__m512)top, _mm512_set1_ps(m), _CMP_GT_OQ)) raise(x, y, query, top);
    const vec scaled = every(m == -INFINITY ? 0.0f : m) * LOG2;  // it has seen no key yet: all weights are 0
    for (int n = 0; n < N; n++) {
        weight[n] = weight_of(score[n], scaled);
        if (!all) weight[n] = score[n] == -INFINITY ? vec{} : weight[n];
    }
    store(y.l[query], load(y.l[query]) + ((weight[0] + weight[1]) + (weight[2] + weight[3])));
    for (int n = 0; n < N; n += 2)
        _mm512_store_si512(weights + n * VEC / 2,
                           (__m512i)_mm512_cvtne2ps_pbh((__m512)weight[n + 1], (__m512)weight[n]));
}

// Add weights * V to o for Q queries and D times 32 dimensions. v(p, e, two): gives the values of two positions.
template <int Q, int D, class Values>
static INLINE void values_of_pairs(float* o, int64_t pitch, const uint32_t (*weights)[KEYS / 2], int64_t pairs,
                                   Values v) {
    __m512 sums[Q][2 * D];
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < 2 * D; e++) sums[i][e] = _mm512_loadu_ps(o + i * pitch + e * VEC);
    for (int64_t p = 0; p < pairs; p++) {
        __m512i two[2 * D];
        for (int e = 0; e < D; e++) v(p, e, two + 2 * e);
        for (int i = 0; i < Q; i++)
            for (int e = 0; e < 2 * D; e++) sums[i][e] = add_pairs(sums[i][e], weights[i][p], two[e]);
    }
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < 2 * D; e++) _mm512_storeu_ps(o + i * pitch + e * VEC, sums[i][e]);
}

// The same for all dimensions from d on: D times 32 at a time while there are as many, then half as many. v(d) gives what
// gives the values.
template <int Q, int D, class Of>
static INLINE void values_of_heads(float* o, const uint32_t (*weights)[KEYS / 2], int64_t pairs, int64_t dim, Of v,
                                   int64_t d = 0) {
    for (; d + D * 32 <= dim; d += D * 32) values_of_pairs<Q, D>(o + d, dim, weights, pairs, v(d));
    if constexpr (D > 1) values_of_heads<Q, D / 2>(o, weights, pairs, dim, v, d);
}

// Hold what a tile of queries needs to know of a block. `at`: where K and V of each position start.
struct Block {
    const bf16 *k, *v;
    const int64_t* at;
    int64_t first, keys;
};

// Attend for Q queries from number i of the task on, and `base + i` of the state.
template <int Q, bool IN_PLACE>
static INLINE void tile_of_pairs(Scratch& x, Pairs& y, const AttentionArgs& a, const Task& t, const Block& b,
                                 int64_t base, int64_t i, Ahead<bf16>& next) {
    const int64_t* positions = y.positions + i;
    auto below = [&](int64_t h) INLINE_LAMBDA {
        const int64_t end = positions[h] + 1 - b.first;
        return end < b.keys ? end : b.keys;
    };
    auto from = [&](int64_t h) INLINE_LAMBDA { return a.window ? positions[h] + 1 - a.window - b.first : 0; };
    const int64_t high = below(Q - 1);
    if (high <= 0 || from(0) >= b.keys) return;  // they see none of these keys
    auto ask = [&]() INLINE_LAMBDA {
        if (IN_PLACE) next.ask_k();  // a chunk has asked for all
    };
    const uint32_t* q = y.q + (base + i) * Q_PITCH;
    if constexpr (IN_PLACE)  // half a block of K at a time: less of the first cache
        for (int64_t j = 0; j < high; j += 2 * VEC) {
            turn_keys<2 * VEC>(y.k, b.k, b.at + j, high - j < 2 * VEC ? high - j : 2 * VEC, a.dim, ask);
            scores_of_pairs<Q, 2, 2 * VEC>(q, y.k, y.s, j, a.dim, ask);
        }
    else
        high > 2 * VEC ? scores_of_pairs<Q, 4, KEYS>(q, y.k, y.s, 0, a.dim, ask)
                       : scores_of_pairs<Q, 2, KEYS>(q, y.k, y.s, 0, a.dim, ask);
    for (int64_t h = 0; h < Q; h++)
        softmax_of_pairs(x, y, base + i + h, y.s[h], y.weights[h], float(a.soft_cap), from(h), below(h));
    constexpr int D = Q <= TALL / 2 ? 4 : Q <= TALL ? 2 : 1;
    float* o = x.state->o + (base + i) * a.dim;
    const int64_t pairs = (high + 1) / 2;
    if (!IN_PLACE)
        return values_of_heads<Q, D>(o, y.weights, pairs, a.dim, [&](int64_t d) INLINE_LAMBDA {
            const uint32_t* v = y.v + d * 16;
            return [=](int64_t p, int64_t e, __m512i* two) INLINE_LAMBDA {
                const uint32_t* from = v + p / 16 * a.dim * 16 + p % 16 * 16 + e * 2 * WORDS;
                two[0] = _mm512_load_si512(from), two[1] = _mm512_load_si512(from + WORDS);
            };
        });
    values_of_heads<Q, D>(o, y.weights, pairs, a.dim, [&](int64_t d) INLINE_LAMBDA {
        return [&, d](int64_t p, int64_t e, __m512i* two) INLINE_LAMBDA {
            next.ask_v(), next.ask_v();
            const __m512i even = _mm512_loadu_si512(b.v + b.at[2 * p] + d + e * 32);
            const __m512i odd =
                2 * p + 1 < b.keys ? _mm512_loadu_si512(b.v + b.at[2 * p + 1] + d + e * 32) : _mm512_setzero_si512();
            two[0] = _mm512_unpacklo_epi16(even, odd), two[1] = _mm512_unpackhi_epi16(even, odd);
        };
    });
}

// The same for `count` queries, 1 to Q.
template <int Q, bool IN_PLACE, class... Rest>
static INLINE void tile_of(int64_t count, Rest&... rest) {
    if (count == Q) return tile_of_pairs<Q, IN_PLACE>(rest...);
    if constexpr (Q > 1) tile_of<Q - 1, IN_PLACE>(count, rest...);
}

// Store l of a part, the sum of its lanes, in x.state.
static INLINE void settle(Scratch& x, Pairs& y, int64_t queries) {
    for (int64_t i = 0; i < queries; i++) x.state->l[i] = sum(load(y.l[i])), store(y.l[i], vec{});
}

__attribute__((noinline)) static Pairs& pairs_of_thread() {
    static thread_local Pairs y;
    return y;
}

// Attend for queries in x.q, times scale. IN_PLACE: a decoding row of up to FEW_IN_PAIRS heads.
template <bool IN_PLACE>
static void attend_pairs(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded) {
    Pairs& y = pairs_of_thread();
    const int64_t queries = t.tokens * t.heads, all = t.kv_heads * padded, dim = a.dim;
    const int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token;
    for (int64_t i = 0; i < all; i++)
        for (int64_t d = 0; d < dim; d += 32) {
            const float* q = x.q + i * dim + d;
            _mm512_store_si512(y.q + i * Q_PITCH + d / 2,
                               (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(q + 16), _mm512_loadu_ps(q)));
        }
    for (int64_t i = 0; i < queries; i++) y.positions[i] = start + i / t.heads;
    memset(y.l, 0, all * sizeof y.l[0]);
    Ahead<bf16> here, next;
    here.k = next.k = (const bf16*)a.k, here.v = next.v = (const bf16*)a.v;
    here.numbers = next.numbers = t.kv_heads * dim;
    next.find(a, t, t.first);
    next.ask_all();
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        if (first % PART == 0 && first != t.first) settle(x, y, all);
        begin_block(x, a, t, padded, first);
        here = next;
        for (int64_t j = here.keys; j % VEC; j++)
            here.at[j] = here.at[0];  // any place that exists: its score is masked
        next.find(a, t, first + KEYS);
        for (int64_t g = 0; g < t.kv_heads; g++) {
            const Block b = {here.k + g * dim, here.v + g * dim, here.at, first, here.keys};
            if (!IN_PLACE) {
                turn_keys<KEYS>(y.k, b.k, b.at, b.keys, dim, [&]() INLINE_LAMBDA { next.ask_k(), next.ask_k(); });
                values_side_by_side(y.v, b.v, b.at, b.keys, dim, [&]() INLINE_LAMBDA { next.ask_v(), next.ask_v(); });
            }
            const int64_t base = g * padded;
            for (int64_t i = 0; i < queries; i += IN_PLACE ? queries : TALL) {
                const int64_t count = IN_PLACE || queries - i < TALL ? queries - i : TALL;
                tile_of<IN_PLACE ? FEW_IN_PAIRS : TALL, IN_PLACE>(count, x, y, a, t, b, base, i, next);
            }
        }
    }
    settle(x, y, all);
    if (x.state != x.states) join(view(x.states[0]), view(x.states[1]), a, t);
    x.state = &x.states[0];
    for (int64_t i = 0; i < all; i++) reorder(x.state->o + i * dim, dim, in_order);
}
static void attend_pairs(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded) {
    t.tokens == 1 && t.heads <= FEW_IN_PAIRS ? attend_pairs<true>(x, a, t, padded)
                                             : attend_pairs<false>(x, a, t, padded);
}
