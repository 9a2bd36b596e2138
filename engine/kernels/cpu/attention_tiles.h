// Attend on matrix tiles: see attention.cpp for the task, tiles.h for A, B and C.
//
// Scores and weighted values are products of matrices here: up to QUERIES rows of q with KEYS positions at a time. A vector
// holds one number of each of 16 queries, so that the softmax never has to add or compare within a vector:
//
//   scores  C[16 keys, 16 queries]  +=  A: K, 16 positions in place   x  B: q, transposed once for the task
//   softmax over the keys, one vector after another
//   values  C[16 dims, 16 queries]  +=  A: V, transposed              x  B: the weights of two keys side by side, in bf16
//
// A chunk's queries and a decoding row's (attention_tiles_few.h) get the same bits: an instruction adds the products of even
// places and those of odd places, then both sums to C, whichever operand is A; the softmax is one function for both; 16 sums
// of every 16th key's weight are added by halves; parts are joined as `join` does.
#pragma once
#include "attention_bf16.h"

constexpr int GROUP = 16, GROUPS = QUERIES / GROUP;  // queries of a vector

struct alignas(64) Group {                         // what is known of 16 queries
    float m[GROUP], l[GROUP], o[MAX_DIM * GROUP];  // o: [dim, queries]
};
struct Tiles {
    alignas(64) bf16 k[KEYS * MAX_DIM];              // [position, dim]
    alignas(64) uint32_t v[KEYS / 2 * MAX_DIM];      // tiles: for each 32 positions, for each 16 dimensions
    alignas(64) uint32_t q[QUERIES / 2 * MAX_DIM];   // tiles: for each 16 queries, for each 32 dimensions
    alignas(64) uint32_t weights[KEYS / 2 * GROUP];  // [pairs of positions, queries]
    alignas(64) float s[2][KEYS * GROUP];            // [position, queries], of this group and the next
    Group groups[2][GROUPS];                         // of the first part, joined by others, and of the part at work
};

// Pack two vectors of numbers as bf16: the first into the lower halves of the words.
static INLINE __m512i beside(vec low, vec high) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// Reset groups that have seen no key.
static INLINE void clear(Group* groups, int64_t count, int64_t dim) {
    for (int64_t g = 0; g < count; g++) {
        store(groups[g].m, vec{} - INFINITY), store(groups[g].l, vec{});
        memset(groups[g].o, 0, dim * GROUP * sizeof(float));
    }
}

// Join one part's m, l and o with those of the parts before it.
static void join(Group& y, const Group& part, int64_t dim) {
    const vec mine = load(y.m), theirs = load(part.m), m = vmax(mine, theirs);
    const vec old = m == -INFINITY ? vec{} : exp(mine - m), now = m == -INFINITY ? vec{} : exp(theirs - m);
    store(y.m, m), store(y.l, fused(load(y.l), old, load(part.l) * now));
    for (int64_t d = 0; d < dim * GROUP; d += GROUP) store(y.o + d, fused(load(y.o + d), old, load(part.o + d) * now));
}

// Load queries from x.q, padding included.
static void take_queries(Tiles& y, const Scratch& x, int64_t rows, int64_t dim) {
    for (int64_t g = 0; g < rows / GROUP; g++) {
        for (int64_t d = 0; d < dim; d += 32) {
            __m512i pairs[16];
            for (int64_t i = 0; i < 16; i++) {
                const float* q = x.q + (g * GROUP + i) * dim + d;
                pairs[i] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(q + 16), _mm512_loadu_ps(q));
            }
            turn(pairs, y.q + (g * (dim / 32) + d / 32) * WORDS);
        }
    }
}

// Copy KEYS positions, zeros from `keys` on: K one below the other, V transposed.
static void take_keys(Tiles& y, const Ahead<bf16>& here, int64_t dim) {
    for (int64_t j = 0; j < KEYS; j++)
        if (j < here.keys)
            memcpy(y.k + j * dim, here.k + here.at[j], dim * sizeof(bf16));
        else
            memset(y.k + j * dim, 0, dim * sizeof(bf16));
    auto number = [&](int64_t j, int64_t d) INLINE_LAMBDA {
        return j < here.keys ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(here.v + here.at[j] + d)))
                             : _mm512_setzero_si512();
    };
    for (int64_t j = 0; j < KEYS; j += 32)
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i pairs[16];
            for (int64_t p = 0; p < 16; p++)
                pairs[p] = _mm512_or_si512(number(j + 2 * p, d), _mm512_slli_epi32(number(j + 2 * p + 1, d), 16));
            turn(pairs, y.v + (j / 32 * (dim / 16) + d / 16) * WORDS);
        }
}

static INLINE void score_tiles(Tiles& y, int64_t g, int64_t dim) {
    const int64_t stride = dim * sizeof(bf16);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < dim; d += 32) {
        _tile_loadd(4, y.q + (g * (dim / 32) + d / 32) * WORDS, 64);
        _tile_loadd(5, y.k + d, stride);
        _tile_loadd(6, y.k + 16 * dim + d, stride);
        _tile_dpbf16ps(0, 5, 4);
        _tile_dpbf16ps(1, 6, 4);
        _tile_loadd(5, y.k + 32 * dim + d, stride);
        _tile_loadd(6, y.k + 48 * dim + d, stride);
        _tile_dpbf16ps(2, 5, 4);
        _tile_dpbf16ps(3, 6, 4);
    }
    _tile_stored(0, y.s[g % 2], 64);
    _tile_stored(1, y.s[g % 2] + 16 * GROUP, 64);
    _tile_stored(2, y.s[g % 2] + 32 * GROUP, 64);
    _tile_stored(3, y.s[g % 2] + 48 * GROUP, 64);
}

// Return the largest number (the sum) of each query's lanes, on all of them: with Q queries they are Q apart.
template <int Q, int H = GROUP / 2>
static INLINE vec largest_of_query(vec v) {
    if constexpr (H >= Q) return largest_of_query<Q, H / 2>(vmax(v, swapped<H>(v, Lanes())));
    return v;
}
template <int Q, int H = GROUP / 2>
static INLINE vec sum_of_query(vec v) {
    if constexpr (H >= Q) return sum_of_query<Q, H / 2>(v + swapped<H>(v, Lanes()));
    return v;
}
// Repeat Q numbers on all lanes, and give each lane's key within a vector.
template <int Q>
static INLINE vec repeated(const float* p) {
    if constexpr (Q == 16) return load(p);
    if constexpr (Q == 8) return (vec)_mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    if constexpr (Q == 4) return (vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
    return vec{} + *p;
}
template <int Q, int... L>
static INLINE vec keys_of_lanes(std::integer_sequence<int, L...>) {
    return vec{float(L / Q)...};
}

// Turn scores of Q queries [KEYS, Q] into weights, and update m and l. Call put(i, low, high) with the weights of vectors i
// and i + 1; a vector holds 16 / Q keys of each query. Return by what o shrinks. position: of each query, counted from the
// block's first key; they grow.
template <int Q, class Put>
static INLINE vec softmax_on_tiles(float* s, float* m, float* l, const AttentionArgs& a, int64_t keys,
                                   const float* positions, Put put) {
    constexpr int K = GROUP / Q, VECTORS = KEYS / K;
    const float soft_cap = float(a.soft_cap), window = float(a.window);
    const bool all = keys == KEYS && positions[0] >= KEYS - 1 && (!a.window || positions[Q - 1] < window);
    const vec position = repeated<Q>(positions), key = keys_of_lanes<Q>(Lanes()), was = repeated<Q>(m);
    vec tops[4] = {was, was, was, was};  // four at once: each waits only for its own last comparison
    for (int64_t j = 0; j < VECTORS; j += 4)
        for (int64_t i = j; i < j + 4; i++) {
            vec score = load(s + i * GROUP);
            if (soft_cap > 0) score = soft_cap * (1.0f - 2.0f / (exp(score * (2 / soft_cap)) + 1.0f));
            if (!all) {
                const vec place = key + float(i * K), behind = position - place;
                ivec seen = (behind >= 0.0f) & (place < float(keys));
                if (a.window) seen &= behind < window;
                score = seen ? score : vec{} - INFINITY;
            }
            if (soft_cap > 0 || !all) store(s + i * GROUP, score);
            tops[i - j] = vmax(score, tops[i - j]);
        }
    const vec top = largest_of_query<Q>(vmax(vmax(tops[0], tops[1]), vmax(tops[2], tops[3])));
    const vec from = top == -INFINITY ? vec{} : top;  // it has seen no key yet: all weights are 0
    const vec scaled = from * LOG2, shrink = was == top ? vec{} + 1.0f : weight_of(was, scaled);
    vec totals[Q] = {};
    auto weights = [&](auto masked) INLINE_LAMBDA {
        for (int64_t j = 0; j < VECTORS; j += Q > 1 ? Q : 2)
#pragma GCC unroll 16
            for (int64_t i = 0; i < (Q > 1 ? Q : 2); i += 2) {
                const vec scores[2] = {load(s + (j + i) * GROUP), load(s + (j + i + 1) * GROUP)};
                vec two[2];
                for (int h = 0; h < 2; h++) {
                    two[h] = weight_of(scores[h], scaled);
                    if (masked()) two[h] = scores[h] == -INFINITY ? vec{} : two[h];
                    totals[(i + h) % Q] = totals[(i + h) % Q] + two[h];
                }
                put(j + i, two[0], two[1]);
            }
    };
    all ? weights([] { return false; }) : weights([] { return true; });
#pragma GCC unroll 4
    for (int h = Q / 2; h; h /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < h; i++) totals[i] = totals[i] + totals[i + h];
    const vec sum = fused(repeated<Q>(l), shrink, sum_of_query<Q>(totals[0]));
    _mm512_mask_storeu_ps(m, __mmask16((1 << Q) - 1), (__m512)top);
    _mm512_mask_storeu_ps(l, __mmask16((1 << Q) - 1), (__m512)sum);
    return shrink;
}
static INLINE bool shrinks(vec shrink) { return _mm512_cmpneq_ps_mask((__m512)shrink, _mm512_set1_ps(1.0f)); }

// Turn scores of 16 queries into weights.
static INLINE void softmax_of_group(Tiles& y, Group& group, int64_t g, const AttentionArgs& a, int64_t keys,
                                    const float* positions) {
    auto put = [&](int64_t i, vec low, vec high)
                   INLINE_LAMBDA { _mm512_store_si512(y.weights + i / 2 * GROUP, beside(low, high)); };
    const vec shrink = softmax_on_tiles<GROUP>(y.s[g % 2], group.m, group.l, a, keys, positions, put);
    if (shrinks(shrink))
        for (int64_t d = 0; d < a.dim; d++) store(group.o + d * GROUP, load(group.o + d * GROUP) * shrink);
}

static INLINE void value_tiles(const Tiles& y, Group& group, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 32) {
        float* o = group.o + d * GROUP;
        _tile_loadd(0, o, 64);
        _tile_loadd(1, o + 16 * GROUP, 64);
        for (int64_t j = 0; j < KEYS; j += 32) {
            const uint32_t* v = y.v + (j / 32 * (dim / 16) + d / 16) * WORDS;
            _tile_loadd(4, y.weights + j / 2 * GROUP, 64);
            _tile_loadd(5, v, 64);
            _tile_loadd(6, v + WORDS, 64);
            _tile_dpbf16ps(0, 5, 4);
            _tile_dpbf16ps(1, 6, 4);
        }
        _tile_stored(0, o, 64);
        _tile_stored(1, o + 16 * GROUP, 64);
    }
}

// Store m, l and o in x.state, o row by row.
static void give_state(Scratch& x, const Group* from, int64_t rows, int64_t dim) {
    alignas(64) uint32_t turned[WORDS];
    for (int64_t g = 0; g < rows / GROUP; g++) {
        store(x.state->m + g * GROUP, load(from[g].m)), store(x.state->l + g * GROUP, load(from[g].l));
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i numbers[16];
            for (int64_t i = 0; i < 16; i++) numbers[i] = _mm512_load_si512(from[g].o + (d + i) * GROUP);
            turn(numbers, turned);
            for (int64_t i = 0; i < 16; i++) memcpy(x.state->o + (g * GROUP + i) * dim + d, turned + i * 16, 64);
        }
    }
}

static Tiles& tiles() {
    static thread_local Tiles y;
    return y;
}

// Attend for many queries of one key head. They are in x.q, times scale.
static void attend_tiles_many(Scratch& x, const AttentionArgs& a, const Task& t) {
    Tiles& y = tiles();
    const int64_t queries = t.tokens * t.heads, groups = (queries + GROUP - 1) / GROUP, rows = groups * GROUP;
    const int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token;
    memset(x.q + queries * a.dim, 0, (rows - queries) * a.dim * sizeof(float));
    take_queries(y, x, rows, a.dim);
    Group* now = y.groups[0];
    clear(now, groups, a.dim);
    float positions[QUERIES];  // counted from the present block
    for (int64_t i = 0; i < rows; i++)
        positions[i] = float(start + (i < queries ? i : queries - 1) / t.heads - t.first);
    Ahead<bf16> here;
    here.k = (const bf16*)a.k, here.v = (const bf16*)a.v, here.numbers = a.dim;
    configure_tiles();
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        // Group by group, so that scores and weights stay in the first cache. The next group's scores are started before this
        // one's softmax, which needn't wait for them. A group that sees none of these keys is skipped.
        int64_t g = 0;
        while (g < groups && positions[g * GROUP + GROUP - 1] < 0) g++;
        if (first % PART == 0 && first != t.first) {  // as begin_block
            for (int64_t i = 0; i < groups && now != y.groups[0]; i++) join(y.groups[0][i], now[i], a.dim);
            clear(now = y.groups[1], groups, a.dim);
        }
        here.find(a, t, first);
        take_keys(y, here, a.dim);
        if (g < groups) score_tiles(y, g, a.dim);
        for (; g < groups; g++) {
            if (g + 1 < groups) score_tiles(y, g + 1, a.dim);
            softmax_of_group(y, now[g], g, a, here.keys, positions + g * GROUP);
            value_tiles(y, now[g], a.dim);
        }
        for (int64_t i = 0; i < rows; i++) positions[i] -= KEYS;
    }
    _tile_release();
    for (int64_t i = 0; i < groups && now != y.groups[0]; i++) join(y.groups[0][i], now[i], a.dim);
    give_state(x, y.groups[0], rows, a.dim);
}
