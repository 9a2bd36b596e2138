// Attend on matrix tiles for up to 8 queries of each key head, as decoding has them: attention_tiles.h is for more.
//
//   scores  C[16 keys, Q queries]  +=  A: K, 16 positions in place   x  B: q, transposed once for the task
//   softmax: a vector holds 16 / Q keys of Q queries
//   values  C[Q queries, 16 dims]  +=  A: the weights in bf16        x  B: V, two positions side by side
//
// m, l and o are in x.state, o's dimensions in the order of attention_bf16.h.
#pragma once
#include "attention_tiles.h"

template <int Q>
static INLINE void configure_few() {
    constexpr uint16_t COLUMNS = 4 * Q;
    configure_tiles({16, 16, 16, Q, Q, 16, Q, Q}, {COLUMNS, COLUMNS, COLUMNS, 64, 64, 64, 64, 64});
}

// Transpose Q rows of q to tiles [dim / 32][16 pairs of dimensions, Q], in bf16.
template <int Q>
static INLINE void take_few_queries(uint32_t* tiles, const float* q, int64_t dim) {
    for (int64_t i = 0; i < Q; i++)
        for (int64_t d = 0; d < dim; d += 32) {
            const float* from = q + i * dim + d;
            alignas(64) uint32_t pairs[16];
            _mm512_store_si512(pairs, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)));
            for (int64_t p = 0; p < 16; p++) tiles[(d / 2 + p) * Q + i] = pairs[p];
        }
}

// Compute the scores of a block. k: where 16 positions each begin, `stride` bytes apart.
template <int Q>
static INLINE void scores_of_few(const uint32_t* q, const bf16* const* k, int64_t stride, int64_t keys, float* s,
                                 int64_t dim) {
    for (int64_t j = 0; j < keys; j += 32) {
        const bf16 *lower = k[j / 16], *upper = k[j / 16 + 1];
        const bool both = j + 16 < keys;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t d = 0; d < dim; d += 32) {
            _tile_loadd(2, q + d / 2 * Q, 4 * Q);
            _tile_loadd(5, lower + d, stride);
            _tile_dpbf16ps(0, 5, 2);
            if (both) {
                _tile_loadd(5, upper + d, stride);
                _tile_dpbf16ps(1, 5, 2);
            }
        }
        _tile_stored(0, s + j * Q, 4 * Q);
        _tile_stored(1, s + (j + 16) * Q, 4 * Q);
    }
}

// Store 2 * 16 / Q keys' weights of Q queries, query by query: rows of KEYS.
template <int Q, int... L>
static INLINE void put_weights(bf16* rows, int64_t i, vec low, vec high, std::integer_sequence<int, L...>) {
    constexpr int K = GROUP / Q, BOTH = 2 * K;
    __m512i packed = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);  // [keys, queries]
    if constexpr (Q > 1) {
        alignas(64) static constexpr uint16_t ORDER[] = {(L % BOTH * Q + L / BOTH)...};
        packed = _mm512_permutexvar_epi16(_mm512_load_si512(ORDER), packed);
    }
    alignas(64) bf16 turned[2 * GROUP];
    _mm512_store_si512(turned, packed);
    for (int64_t q = 0; q < Q; q++) memcpy(rows + q * KEYS + i * K, turned + q * BOTH, BOTH * sizeof(bf16));
}

// Add weights * V to o: Q rows, `dim` apart.
template <int Q>
static INLINE void values_of_few(const bf16* weights, const uint32_t* v, float* o, int64_t dim) {
    _tile_loadd(3, weights, KEYS * sizeof(bf16));
    _tile_loadd(4, weights + 32, KEYS * sizeof(bf16));
    const int64_t stride = dim * sizeof(float);
    for (int64_t d = 0; d < dim; d += 32) {
        const uint32_t *lower = v + d * 16, *upper = lower + dim * 16;
        _tile_loadd(6, o + d, stride);
        _tile_loadd(7, o + d + 16, stride);
        _tile_loadd(5, lower, 64);
        _tile_dpbf16ps(6, 3, 5);
        _tile_loadd(5, lower + WORDS, 64);
        _tile_dpbf16ps(7, 3, 5);
        _tile_loadd(5, upper, 64);
        _tile_dpbf16ps(6, 4, 5);
        _tile_loadd(5, upper + WORDS, 64);
        _tile_dpbf16ps(7, 4, 5);
        _tile_stored(6, o + d, stride);
        _tile_stored(7, o + d + 16, stride);
    }
}

template <int Q>
static void attend_tiles_few(Scratch& x, const AttentionArgs& a, const Task& t) {
    Tiles& y = tiles();
    const int64_t queries = t.tokens * t.heads, dim = a.dim, width = a.kv_heads * dim;
    const int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token;
    const bool in_place = a.block_size % 16 == 0;
    for (int64_t g = 0; g < t.kv_heads; g++) take_few_queries<Q>(y.q + g * Q * dim / 2, x.q + g * Q * dim, dim);
    Ahead<bf16, FIRST_CACHE> here, next;  // as was measured there
    here.k = next.k = (const bf16*)a.k, here.v = next.v = (const bf16*)a.v;
    here.numbers = next.numbers = t.kv_heads * dim;
    next.find(a, t, t.first);
    next.ask_all();
    configure_few<Q>();
    bf16* weights = (bf16*)y.weights;
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        begin_block(x, a, t, Q, first);
        here = next;
        next.find(a, t, first + KEYS);
        float positions[Q];
        for (int64_t i = 0; i < Q; i++) positions[i] = float(start + (i < queries ? i : queries - 1) / t.heads - first);
        for (int64_t g = 0; g < t.kv_heads; g++) {
            const bf16* k[KEYS / 16];
            for (int64_t j = 0; j < KEYS; j += 16) {
                k[j / 16] = in_place ? here.k + here.at[j < here.keys ? j : 0] + g * dim : y.k + j * dim;
                for (int64_t i = j; !in_place && i < j + 16 && i < here.keys; i++)
                    memcpy(y.k + i * dim, here.k + here.at[i] + g * dim, dim * sizeof(bf16));
            }
            const int64_t at = g * Q;
            scores_of_few<Q>(y.q + at * dim / 2, k, (in_place ? width : dim) * sizeof(bf16), here.keys, y.s[0], dim);
            values_side_by_side(y.v, here.v + g * dim, here.at, here.keys, dim,
                                [&]() INLINE_LAMBDA { next.ask_k(), next.ask_v(), next.ask_k(), next.ask_v(); });
            auto put = [&](int64_t i, vec low, vec high) INLINE_LAMBDA {
                put_weights<Q>(weights, i, low, high, std::make_integer_sequence<int, 32>());
            };
            alignas(64) float by[GROUP];
            const vec shrink =
                softmax_on_tiles<Q>(y.s[0], x.state->m + at, x.state->l + at, a, here.keys, positions, put);
            store(by, shrink);
            float* o = x.state->o + at * dim;
            for (int64_t i = 0; shrinks(shrink) && i < Q; i++)
                for (int64_t d = i * dim; d < (i + 1) * dim; d += VEC) store(o + d, load(o + d) * by[i]);
            values_of_few<Q>(weights, y.v, o, dim);
        }
    }
    _tile_release();
    if (x.state != x.states) join(view(x.states[0]), view(x.states[1]), a, t);
    x.state = &x.states[0];
    for (int64_t i = 0; i < t.kv_heads * Q; i++) reorder(x.state->o + i * dim, dim, in_order);
}

// Queries (in x.q, times scale), m and l are as `attend` has made them.
static void attend_tiles(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded) {
    static_assert(FEW_ON_TILES == 8);
    switch (padded) {
        case 1:
            return attend_tiles_few<1>(x, a, t);
        case 4:
            return attend_tiles_few<4>(x, a, t);
        case 8:
            return attend_tiles_few<8>(x, a, t);
        default:
            return attend_tiles_many(x, a, t);
    }
}
