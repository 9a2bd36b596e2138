// State what a task of attention is (attention.cpp), and do what all ways to compute one have in common.
#pragma once
#include <cstring>
#include <vector>

#include "tiles.h"

struct AttentionArgs {
    const void *q, *k, *v;  // q: [tokens, heads, dim]; pages: [blocks, block_size, kv_heads, dim]
    void* out;              // [tokens, heads, dim]
    const int32_t *tables, *query_start, *context_lens;  // [rows, width], [rows + 1], [rows]
    const float* sinks;                                  // [heads] or null: a score that takes weight and has no value
    int64_t rows, width, heads, kv_heads, dim, block_size;
    int64_t q_stride;  // from token to token, in elements
    int64_t q_type, kv_type, out_type;
    int64_t window;          // positions that a query sees, itself included; 0: all
    int64_t tiles;           // 1: matrix tiles may be used
    double scale, soft_cap;  // soft_cap 0: none
};

constexpr int KEYS = VEC >= 16 ? 64 : 32, PART = 256, QUERIES = 128, MAX_DIM = 256;
constexpr int FEW = 32;             // queries of a task that decodes: q, scores and o stay in the first cache
constexpr int CHUNK = FEW;          // the same of a chunk in fp32
constexpr int CHUNK_IN_PAIRS = 96;  // and of attention_pairs.h, in whole tiles: K and V are laid out once for them
constexpr int FEW_ON_TILES = 8;     // queries of a key head that attention_tiles_few.h takes
constexpr int TILE = 4;             // queries that attention_staged.h computes together; QUERIES is a multiple

struct Task {
    int64_t row, kv_head, kv_heads;
    int64_t head, heads;    // query heads of each key head, the first one counted from the group's first
    int64_t token, tokens;  // query tokens, the first one counted from the row's first
    int64_t first, last;    // positions of the context; the first is a multiple of KEYS
    int64_t part, tasks;    // which task of those that share these queries' context, of how many
    int64_t slot;           // where its unfinished result goes, if there are several
};

// Return whether matrix tiles multiply, or pairs of bf16 without them; else fp32 does.
static bool on_tiles(const AttentionArgs& a) {
#if defined(__AMX_BF16__)
    return a.tiles && a.kv_type == BF16 && a.dim % 32 == 0;
#else
    return false;
#endif
}
static bool in_pairs(const AttentionArgs& a) {
#if defined(__AVX512BF16__)
    return !a.tiles && a.kv_type == BF16 && a.dim % 32 == 0;
#else
    return false;
#endif
}

// Hold what is known of a task's queries. Query number g * padded + t * heads + h is key head g, token t, head h. Rows of q,
// k, v and o are `pitch` numbers apart: dim rounded up to whole vectors, so that a small head takes a small part of the
// cache.
struct State {
    float m[QUERIES], l[QUERIES];
    float o[QUERIES * MAX_DIM];
};
struct View {  // of a State, or of one that is kept for later
    float *m, *l, *o;
};
static INLINE View view(State& s) { return {s.m, s.l, s.o}; }
struct Scratch {
    float q[QUERIES * MAX_DIM], k[KEYS * MAX_DIM], v[KEYS * MAX_DIM], s[QUERIES][KEYS];
    int64_t pitch;
    State* state;  // of the part at work: the first part's is states[0], the others' states[1]
    State states[2];
};

// Copy `dim` numbers as fp32 times `scale`, and zeros up to a whole number of vectors.
template <class T>
static INLINE void stage(float* to, const T* from, int64_t dim, float scale = 1.0f) {
    int64_t d = 0;
    for (; d + VEC <= dim; d += VEC) store(to + d, load(from + d) * scale);
    if (d < dim) store(to + d, load_part(from + d, dim - d) * scale);
}

// Call body(j, element) for `count` positions from `first` on; element is where the key head's K (and V) of each starts.
// The block table is read once for each page.
template <class Body>
static INLINE void walk(const AttentionArgs& a, const Task& t, int64_t first, int64_t count, Body body) {
    const int32_t* table = a.tables + t.row * a.width;
    int64_t page = first / a.block_size, offset = first % a.block_size;
    for (int64_t j = 0; j < count; page++, offset = 0) {
        int64_t element = ((table[page] * a.block_size + offset) * a.kv_heads + t.kv_head) * a.dim;
        for (; offset < a.block_size && j < count; offset++, j++, element += a.kv_heads * a.dim) body(j, element);
    }
}

// Turn one query's scores into weights, and update its m, l and o. s: its scores. It sees staged keys from `low` to below
// `high`.
static INLINE void softmax(Scratch& x, int64_t query, float* s, float soft_cap, int64_t keys, int64_t low,
                           int64_t high) {
    static const float count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float &m = x.state->m[query], &l = x.state->l[query];
    bool all = low <= 0 && high >= keys && keys % VEC == 0;
    vec top = vec{} - INFINITY;
    for (int64_t j = 0; j < keys; j += VEC) {
        vec score = load(s + j);
        if (soft_cap > 0) score = soft_cap * (1.0f - 2.0f / (exp(score * (2 / soft_cap)) + 1.0f));
        if (!all) {
            vec index = load(count) + float(j);
            score = (index >= float(low)) & (index < float(high)) ? score : vec{} - INFINITY;
        }
        top = vmax(top, score);
        store(s + j, score);
    }
    float largest_here = largest(top);
    if (largest_here > m) {
        if (m != -INFINITY) {
            float shrink = exp(vec{} + (m - largest_here))[0];
            l *= shrink;
            float* o = x.state->o + query * x.pitch;
            for (int64_t d = 0; d < x.pitch; d += VEC) store(o + d, load(o + d) * shrink);
        }
        m = largest_here;
    }
    float from = m == -INFINITY ? 0.0f : m;  // it has seen no key yet: all weights are 0
    vec total = {};
    for (int64_t j = 0; j < keys; j += VEC) {
        vec weight = exp(load(s + j) - from);
        total = total + weight;
        store(s + j, weight);
    }
    l += sum(total);
}

// Prefetch the next KEYS positions, or fewer, while the present ones are computed, a little in each turn of the inner loops:
// many loads at once would only wait for each other, and the arithmetic with them. CACHE: into which, and those behind it. A
// block is more than the first one holds, and would drive out what is at work there.
constexpr int SECOND_CACHE = 2, FIRST_CACHE = 3;
template <class KV, int CACHE = SECOND_CACHE>
struct Ahead {
    const KV *k, *v;
    int64_t numbers;  // of a position, all key heads of the task
    int64_t at[KEYS], keys = 0;
    struct Walk {
        int64_t asked, place;
    } of_k, of_v;

    void find(const AttentionArgs& a, const Task& t, int64_t first, int64_t most = KEYS) {
        keys = t.last - first < most ? t.last - first : most, of_k = of_v = {0, 0};
        if (keys > 0) walk(a, t, first, keys, [&](int64_t j, int64_t from) INLINE_LAMBDA { at[j] = from; });
    }
    static constexpr int64_t ASKED = 2 * VEC > 64 / sizeof(KV) ? 2 * VEC : 64 / sizeof(KV);
    INLINE void ask(const KV* from, Walk& w) {  // for ASKED numbers, in address order
        if (w.asked >= keys) return;
        for (int64_t d = 0; d < ASKED; d += 64 / sizeof(KV))
            __builtin_prefetch(from + at[w.asked] + w.place + d, 0, CACHE);
        if ((w.place += ASKED) >= numbers) w.place = 0, w.asked++;
    }
    INLINE void ask_k() { ask(k, of_k); }
    INLINE void ask_v() { ask(v, of_v); }
    void ask_all() {
        while (of_k.asked < keys) ask_k();
        while (of_v.asked < keys) ask_v();
    }
};

// Copy queries of one key head, rounded up to whole tiles; the rest is zeros.
static INLINE int64_t padded_queries(int64_t queries) { return queries == 1 ? 1 : (queries + TILE - 1) / TILE * TILE; }

// Call body(place among the task's queries, token, head) for each of them.
template <class Body>
static INLINE void each_query(const AttentionArgs& a, const Task& t, Body body) {
    int64_t queries = t.tokens * t.heads, padded = padded_queries(queries), group = a.heads / a.kv_heads;
    for (int64_t g = 0; g < t.kv_heads; g++)
        for (int64_t i = 0; i < queries; i++)
            body(g * padded + i, a.query_start[t.row] + t.token + i / t.heads,
                 (t.kv_head + g) * group + t.head + i % t.heads);
}

// Join one part's m, l and o with those of the parts before it.
static void join(View y, View part, const AttentionArgs& a, const Task& t) {
    int64_t pitch = (a.dim + VEC - 1) / VEC * VEC;
    each_query(a, t, [&](int64_t i, int64_t, int64_t) INLINE_LAMBDA {
        float m = y.m[i] > part.m[i] ? y.m[i] : part.m[i];
        const bool none = m == -INFINITY;  // neither has seen a score that is a number: all sums are 0, or NaN
        float mine = none ? 0 : exp(vec{} + (y.m[i] - m))[0], theirs = none ? 0 : exp(vec{} + (part.m[i] - m))[0];
        y.m[i] = m;
        y.l[i] = fused(y.l[i], mine, part.l[i] * theirs);
        for (int64_t d = i * pitch; d < (i + 1) * pitch; d += VEC)
            store(y.o + d, fused(load(y.o + d), vec{} + mine, load(part.o + d) * theirs));
    });
}

// Reset queries that have seen no key.
static INLINE void clear(Scratch& x, const Task& t, int64_t padded) {
    const int64_t queries = t.kv_heads * padded;
    for (int64_t i = 0; i < queries; i++) x.state->m[i] = -INFINITY, x.state->l[i] = 0;
    memset(x.state->o, 0, queries * x.pitch * sizeof(float));
}

// Call before each block of positions: where a new part begins, the current one joins those before it.
static INLINE void begin_block(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded, int64_t first) {
    if (first % PART || first == t.first) return;
    if (x.state != x.states) join(view(x.states[0]), view(x.states[1]), a, t);
    x.state = &x.states[1];
    clear(x, t, padded);
}
