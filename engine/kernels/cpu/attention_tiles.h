// Attend for a chunk of a prompt on matrix tiles: see attention.cpp for the task, tiles.h for A, B and C.
//
// Scores and weighted values are products of matrices here: up to QUERIES rows of q with KEYS positions at a time. A vector
// holds one number of each of 16 queries, so that the softmax never has to add or compare within a vector:
//
//   scores  C[16 keys, 16 queries]  +=  A: K, 16 positions in place   x  B: q, transposed once for the task
//   softmax over the keys, one vector after another
//   values  C[16 dims, 16 queries]  +=  A: V, transposed              x  B: the weights of two keys side by side, in bf16
#pragma once

constexpr int GROUP = 16, GROUPS = QUERIES / GROUP, WORDS = 256;  // queries of a vector; words of a tile

struct Tiles {
    alignas(64) bf16 k[KEYS * MAX_DIM];              // [position, dim]
    alignas(64) uint32_t v[KEYS / 2 * MAX_DIM];      // tiles: for each 32 positions, for each 16 dimensions
    alignas(64) uint32_t q[QUERIES / 2 * MAX_DIM];   // tiles: for each 16 queries, for each 32 dimensions
    alignas(64) uint32_t weights[KEYS / 2 * GROUP];  // [pairs of positions, queries]
    alignas(64) float s[2][KEYS * GROUP];            // [position, queries], of this group and the next
    alignas(64) float o[GROUPS][MAX_DIM * GROUP];    // [dim, queries]
    vec m[GROUPS], l[GROUPS];
};

// Pack two vectors of numbers as bf16: the first into the lower halves of the words.
static INLINE __m512i beside(vec low, vec high) {
    alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
}

// Compute e^(x - from) for x <= from, to 5e-6 of its value; scaled is from * LOG2. 2^t = 2^floor(t) 2^r, and 2^r is a
// polynomial that is exact at five points of 0 to 1 (Chebyshev's). Small results stop at 2^-126, the smallest number that
// isn't subnormal: subnormal numbers take a hundred times as long, and beside any weight both count as 0.
constexpr float LOG2 = 1.44269504f;
static INLINE vec weight_of(vec x, vec scaled) {
    __m512 t = _mm512_max_ps((__m512)(x * LOG2 - scaled), _mm512_set1_ps(-126.0f));
    vec r = (vec)_mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec p = r * 0.0136703095f + 0.0517449978f;
    p = p * r + 0.241604357f;
    p = p * r + 0.692972922f;
    p = p * r + 1.00000349f;
    return (vec)_mm512_scalef_ps((__m512)p, t);
}

// Load queries from x.q, m and l from x.state, padding included.
static void take_queries(Tiles& y, const Scratch& x, int64_t rows, int64_t dim) {
    for (int64_t g = 0; g < rows / GROUP; g++) {
        y.m[g] = load(x.state->m + g * GROUP), y.l[g] = load(x.state->l + g * GROUP);
        memset(y.o[g], 0, dim * GROUP * sizeof(float));
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

// Turn scores into weights, and update m, l and o. position: of each query, counted from the block's first key.
static INLINE void softmax_of_group(Tiles& y, int64_t g, const AttentionArgs& a, int64_t keys, vec position) {
    const float soft_cap = float(a.soft_cap), window = float(a.window);
    bool all = keys == KEYS && position[0] >= KEYS - 1 && (!a.window || position[GROUP - 1] < window);
    float* s = y.s[g % 2];
    vec tops[4] = {y.m[g], y.m[g], y.m[g], y.m[g]};  // four at once: each waits only for its own last comparison
    for (int64_t j = 0; j < KEYS; j += 4)
        for (int64_t i = j; i < j + 4; i++) {
            vec score = load(s + i * GROUP);
            if (soft_cap > 0) score = soft_cap * (1.0f - 2.0f / (exp(score * (2 / soft_cap)) + 1.0f));
            if (!all) {
                vec behind = position - float(i);
                ivec seen = behind >= 0.0f;
                if (a.window) seen &= behind < window;
                score = i < keys ? (seen ? score : vec{} - INFINITY) : vec{} - INFINITY;
            }
            if (soft_cap > 0 || !all) store(s + i * GROUP, score);
            tops[i - j] = vmax(score, tops[i - j]);
        }
    vec top = vmax(vmax(tops[0], tops[1]), vmax(tops[2], tops[3]));
    vec from = top == -INFINITY ? vec{} : top;  // it has seen no key yet: all weights are nearly 0
    const vec scaled = from * LOG2, shrink = y.m[g] == top ? vec{} + 1.0f : weight_of(y.m[g], scaled);
    y.m[g] = top;
    vec totals[4] = {y.l[g] * shrink};
    for (int64_t j = 0; j < KEYS; j += 4)
        for (int64_t i = 0; i < 4; i += 2) {
            vec low = weight_of(load(s + (j + i) * GROUP), scaled),
                high = weight_of(load(s + (j + i + 1) * GROUP), scaled);
            totals[i] = totals[i] + low, totals[i + 1] = totals[i + 1] + high;
            _mm512_store_si512(y.weights + (j + i) / 2 * GROUP, beside(low, high));
        }
    y.l[g] = totals[0] + totals[1] + totals[2] + totals[3];
    if (_mm512_cmpneq_ps_mask((__m512)shrink, _mm512_set1_ps(1.0f)))
        for (int64_t d = 0; d < a.dim; d++) store(y.o[g] + d * GROUP, load(y.o[g] + d * GROUP) * shrink);
}

static INLINE void value_tiles(Tiles& y, int64_t g, int64_t dim) {
    for (int64_t d = 0; d < dim; d += 32) {
        float* o = y.o[g] + d * GROUP;
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
static void give_state(Scratch& x, const Tiles& y, int64_t rows, int64_t dim) {
    alignas(64) uint32_t turned[WORDS];
    for (int64_t g = 0; g < rows / GROUP; g++) {
        store(x.state->m + g * GROUP, y.m[g]), store(x.state->l + g * GROUP, y.l[g]);
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i numbers[16];
            for (int64_t i = 0; i < 16; i++) numbers[i] = _mm512_load_si512(y.o[g] + (d + i) * GROUP);
            turn(numbers, turned);
            for (int64_t i = 0; i < 16; i++) memcpy(x.state->o + (g * GROUP + i) * dim + d, turned + i * 16, 64);
        }
    }
}

// Attend to a block of keys. Queries (in x.q, times scale), m and l are as `attend` has made them.
static void attend_tiles(Scratch& x, const AttentionArgs& a, const Task& t) {
    static thread_local Tiles tiles;
    Tiles& y = tiles;
    const int64_t queries = t.tokens * t.heads, rows = (queries + GROUP - 1) / GROUP * GROUP;
    const int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token;
    memset(x.q + queries * a.dim, 0, (rows - queries) * a.dim * sizeof(float));
    for (int64_t i = queries; i < rows; i++) x.state->m[i] = x.state->l[i] = 0;  // padding: any finite state
    take_queries(y, x, rows, a.dim);
    alignas(64) float positions[QUERIES];
    for (int64_t i = 0; i < rows; i++) positions[i] = float(start + (i < queries ? i : queries - 1) / t.heads);
    Ahead<bf16> here;
    here.k = (const bf16*)a.k, here.v = (const bf16*)a.v, here.numbers = a.dim;
    configure_tiles();
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        here.find(a, t, first);
        take_keys(y, here, a.dim);
        // Group by group, so that scores and weights stay in the first cache. The next group's scores are started before this
        // one's softmax, which needn't wait for them. A group that sees none of these keys is skipped.
        int64_t g = 0, groups = rows / GROUP;
        while (g < groups && positions[g * GROUP + GROUP - 1] < first) g++;
        if (g < groups) score_tiles(y, g, a.dim);
        for (; g < groups; g++) {
            if (g + 1 < groups) score_tiles(y, g + 1, a.dim);
            softmax_of_group(y, g, a, here.keys, load(positions + g * GROUP) - float(first));
            value_tiles(y, g, a.dim);
        }
    }
    _tile_release();
    give_state(x, y, rows, a.dim);
}
