// Paged attention: softmax(q K^T) V, with K and V read where they lie, page by page.
//
// The work is cut into tasks: one sequence (row), one key head, up to QUERIES of its queries. All query heads that share
// a key head, and all tokens of a chunk, go over its keys together, so K and V are read once for all of them. A task:
//
//   for each KEYS positions of the context, in order:
//     copy their K and V from the pages to fp32 rows side by side (they stay in the caches nearby)
//     ask the memory for the next KEYS positions
//     scores = q K^T; hide what lies in the future, or before the window
//     softmax goes on: m is the largest score so far, l the sum of e^(score - m), o the weighted sum of values. A larger
//       m shrinks the old l and o by e^(m_old - m_new)
//     o += weights * V
//   out = o / l
//
// Bytes: each key and value once, 2 * kv_heads * dim * size for each position of each sequence. When there are few
// sequences, the context of each is cut into parts as well, one task each; parts are joined by the same rule as blocks.
#include <vector>

#include "simd.h"

struct AttentionArgs {
    const void *q, *k, *v;  // q: [tokens, heads, dim]; pages: [blocks, block_size, kv_heads, dim]
    void* out;              // [tokens, heads, dim]
    const int32_t *tables, *query_start, *context_lens;  // [rows, width], [rows + 1], [rows]
    const float* sinks;     // [heads] or null: a score that takes weight and has no value
    int64_t rows, width, heads, kv_heads, dim, block_size;
    int64_t q_stride;       // from token to token, in elements
    int64_t q_type, kv_type, out_type;
    int64_t window;         // positions that a query sees, itself included; 0: all
    double scale, soft_cap; // soft_cap 0: none
};

constexpr int KEYS = 64, QUERIES = 32, MAX_DIM = 256;
constexpr int TILE = VEC >= 16 ? 4 : 2;  // queries that are computed together; QUERIES is a multiple

struct Task {
    int64_t row, kv_head;
    int64_t head, heads;    // query heads of this task, the first one counted from the group's first
    int64_t token, tokens;  // query tokens, the first one counted from the row's first
    int64_t first, last;    // positions of the context
    int64_t part, parts;    // which part of the context, of how many
    int64_t slot;           // where its unfinished result goes, if parts > 1
};

// What is known of a task's queries. Query number t * heads + h is token t, head h. Rows of q, k, v and o lie side by
// side, `pitch` numbers apart: dim rounded up to whole vectors, so that a small head fills a small part of the cache.
struct State {
    float m[QUERIES], l[QUERIES];
    float o[QUERIES * MAX_DIM];
};
struct Scratch {
    float q[QUERIES * MAX_DIM], k[KEYS * MAX_DIM], v[KEYS * MAX_DIM], s[QUERIES][KEYS];
    int64_t pitch;
    State state;
};

// Copy `dim` numbers as fp32 times `scale`, and zeros up to a whole number of vectors.
template <class T>
static INLINE void stage(float* to, const T* from, int64_t dim, float scale = 1.0f) {
    int64_t d = 0;
    for (; d + VEC <= dim; d += VEC) store(to + d, load(from + d) * scale);
    if (d < dim) store(to + d, load_part(from + d, dim - d) * scale);
}

// body(j, element) for `count` positions from `first` on, element being where the key head's K (and V) of each starts.
// The block table is asked once for each page.
template <class Body>
static INLINE void walk(const AttentionArgs& a, const Task& t, int64_t first, int64_t count, Body body) {
    const int32_t* table = a.tables + t.row * a.width;
    int64_t page = first / a.block_size, offset = first % a.block_size;
    for (int64_t j = 0; j < count; page++, offset = 0) {
        int64_t element = ((table[page] * a.block_size + offset) * a.kv_heads + t.kv_head) * a.dim;
        for (; offset < a.block_size && j < count; offset++, j++, element += a.kv_heads * a.dim) body(j, element);
    }
}

// Scores of Q queries with the staged keys: VEC sums grow at once, Q of queries times VEC / Q of keys.
template <int Q>
static INLINE void scores(Scratch& x, int64_t query, int64_t keys) {
    constexpr int K = VEC / Q;
    for (int64_t key = 0; key < keys; key += K) {
        vec acc[VEC] = {};
        for (int64_t d = 0; d < x.pitch; d += VEC) {
            vec k[K];
            for (int j = 0; j < K; j++) k[j] = load(x.k + (key + j) * x.pitch + d);
            for (int i = 0; i < Q; i++) {
                vec q = load(x.q + (query + i) * x.pitch + d);
                for (int j = 0; j < K; j++) acc[i * K + j] += q * k[j];
            }
        }
        sums(acc);
        float lanes[VEC];
        store(lanes, acc[0]);
        for (int i = 0; i < Q; i++) memcpy(&x.s[query + i][key], lanes + i * K, K * sizeof(float));
    }
}

// One query's scores become weights, and its m, l and o follow. It sees staged keys from `low` to below `high`.
static INLINE void softmax(Scratch& x, int64_t query, float soft_cap, int64_t keys, int64_t low, int64_t high) {
    static const float count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* s = x.s[query];
    float &m = x.state.m[query], &l = x.state.l[query];
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
            float* o = x.state.o + query * x.pitch;
            for (int64_t d = 0; d < x.pitch; d += VEC) store(o + d, load(o + d) * shrink);
        }
        m = largest_here;
    }
    float from = m == -INFINITY ? 0.0f : m;  // it has seen nothing yet: all weights are 0
    vec total = {};
    for (int64_t j = 0; j < keys; j += VEC) {
        vec weight = exp(load(s + j) - from);
        total = total + weight;
        store(s + j, weight);
    }
    l += sum(total);
}

// o += weights * V for Q queries and D vectors of the head's dimensions.
template <int Q, int D>
static INLINE void values(Scratch& x, int64_t query, int64_t d, int64_t keys) {
    float* o = x.state.o + query * x.pitch + d;
    vec acc[Q][D];
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < D; e++) acc[i][e] = load(o + i * x.pitch + e * VEC);
    for (int64_t j = 0; j < keys; j++) {
        vec v[D];
        for (int e = 0; e < D; e++) v[e] = load(x.v + j * x.pitch + d + e * VEC);
        for (int i = 0; i < Q; i++) {
            float weight = x.s[query + i][j];
            for (int e = 0; e < D; e++) acc[i][e] += weight * v[e];
        }
    }
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < D; e++) store(o + i * x.pitch + e * VEC, acc[i][e]);
}

// The same for a single query (decoding, one query head for each key head): each key and value is used once, so they are
// taken from the pages as they lie. at[j]: where position j's K (and V) start.
template <class KV>
static INLINE void scores_in_place(Scratch& x, const KV* k, const int64_t* at, int64_t keys) {
    for (int64_t key = 0; key < keys; key += VEC) {
        vec acc[VEC] = {};
        for (int64_t d = 0; d < x.pitch; d += VEC) {
            vec q = load(x.q + d);
            for (int j = 0; j < VEC; j++) acc[j] += q * load(k + at[key + j] + d);
        }
        sums(acc);
        store(x.s[0] + key, acc[0]);
    }
}
template <int D, class KV>
static INLINE void values_in_place(Scratch& x, const KV* v, const int64_t* at, int64_t d, int64_t keys) {
    vec acc[D];
    for (int e = 0; e < D; e++) acc[e] = load(x.state.o + d + e * VEC);
    for (int64_t j = 0; j < keys; j++)
        for (int e = 0; e < D; e++) acc[e] += x.s[0][j] * load(v + at[j] + d + e * VEC);
    for (int e = 0; e < D; e++) store(x.state.o + d + e * VEC, acc[e]);
}
template <class KV>
static void attend_in_place(Scratch& x, const AttentionArgs& a, const Task& t) {
    const KV *k = (const KV*)a.k, *v = (const KV*)a.v;
    int64_t here[KEYS], then[KEYS];
    int64_t *at = here, *next = then;
    auto find = [&](int64_t first, int64_t* to) INLINE_LAMBDA {  // and ask the memory for it
        int64_t keys = t.last - first < KEYS ? t.last - first : KEYS;
        walk(a, t, first, keys, [&](int64_t j, int64_t from) INLINE_LAMBDA {
            to[j] = from;
            for (int64_t d = 0; d < a.dim; d += 64 / sizeof(KV)) {
                __builtin_prefetch(k + from + d);
                __builtin_prefetch(v + from + d);
            }
        });
        for (int64_t j = keys; j % VEC; j++) to[j] = to[0];  // any place that exists: its score is hidden
        return keys;
    };
    int64_t keys = find(t.first, at), position = a.context_lens[t.row] - 1;
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        int64_t coming = first + KEYS < t.last ? find(first + KEYS, next) : 0;
        scores_in_place(x, k, at, keys);
        softmax(x, 0, float(a.soft_cap), keys, a.window ? position - first - a.window + 1 : 0, keys);
        int64_t d = 0;
        for (; d + 4 * VEC <= x.pitch; d += 4 * VEC) values_in_place<4>(x, v, at, d, keys);
        for (; d < x.pitch; d += VEC) values_in_place<1>(x, v, at, d, keys);
        std::swap(at, next);
        keys = coming;
    }
}

// All queries from 0 to `padded`, Q at a time, with the keys that are staged.
template <int Q, class KV>
static INLINE void block(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded, int64_t first, int64_t keys) {
    int64_t queries = t.tokens * t.heads;
    int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token - first;
    for (int64_t i = 0; i < padded; i += Q) scores<Q>(x, i, keys);
    for (int64_t i = 0; i < queries; i++) {
        int64_t position = start + i / t.heads;  // counted from `first`
        softmax(x, i, float(a.soft_cap), keys, a.window ? position - a.window + 1 : 0, position + 1 < keys ? position + 1 : keys);
    }
    for (int64_t i = 0; i < padded; i += Q) {
        int64_t d = 0;
        for (; d + 4 * VEC <= x.pitch; d += 4 * VEC) values<Q, 4>(x, i, d, keys);
        for (; d < x.pitch; d += VEC) values<Q, 1>(x, i, d, keys);
    }
}

template <class KV>
static void attend(Scratch& x, const AttentionArgs& a, const Task& t) {
    int64_t queries = t.tokens * t.heads, group = a.heads / a.kv_heads;
    int64_t padded = queries == 1 ? 1 : (queries + TILE - 1) / TILE * TILE;  // whole tiles; the rest is zeros
    x.pitch = (a.dim + VEC - 1) / VEC * VEC;
    memset(x.q + queries * x.pitch, 0, (padded - queries) * x.pitch * sizeof(float));
    memset(x.s[queries], 0, (padded - queries) * sizeof x.s[0]);
    memset(x.state.o, 0, padded * x.pitch * sizeof(float));
    for (int64_t i = 0; i < queries; i++) {
        int64_t token = a.query_start[t.row] + t.token + i / t.heads;
        int64_t head = t.kv_head * group + t.head + i % t.heads;
        WITH_TYPE(a.q_type, T, stage(x.q + i * x.pitch, (const T*)a.q + token * a.q_stride + head * a.dim, a.dim, float(a.scale)));
        bool sink = a.sinks && t.part == 0;
        x.state.m[i] = sink ? a.sinks[head] : -INFINITY;
        x.state.l[i] = sink ? 1.0f : 0.0f;
    }
    if (queries == 1 && x.pitch == a.dim) return attend_in_place<KV>(x, a, t);
    const KV *k = (const KV*)a.k, *v = (const KV*)a.v;
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        int64_t keys = t.last - first < KEYS ? t.last - first : KEYS;
        walk(a, t, first, keys, [&](int64_t j, int64_t from) INLINE_LAMBDA {
            stage(x.k + j * x.pitch, k + from, a.dim);
            for (int64_t d = 0; d < a.dim; d += 64 / sizeof(KV)) __builtin_prefetch(v + from + d);  // needed soon
        });
        walk(a, t, first, keys, [&](int64_t j, int64_t from) INLINE_LAMBDA { stage(x.v + j * x.pitch, v + from, a.dim); });
        int64_t next = first + KEYS < t.last ? first + KEYS : t.last;  // the pages' order is known to nobody but us
        walk(a, t, next, t.last - next < KEYS ? t.last - next : KEYS, [&](int64_t, int64_t from) INLINE_LAMBDA {
            for (int64_t d = 0; d < a.dim; d += 64 / sizeof(KV)) __builtin_prefetch(k + from + d);
        });
        padded == 1 ? block<1, KV>(x, a, t, padded, first, keys) : block<TILE, KV>(x, a, t, padded, first, keys);
    }
}

// out = o / l
static void finish(const State& y, const AttentionArgs& a, const Task& t) {
    int64_t pitch = (a.dim + VEC - 1) / VEC * VEC;
    for (int64_t i = 0; i < t.tokens * t.heads; i++) {
        int64_t token = a.query_start[t.row] + t.token + i / t.heads;
        int64_t head = t.kv_head * (a.heads / a.kv_heads) + t.head + i % t.heads;
        float share = y.l[i] > 0 ? 1.0f / y.l[i] : 0.0f;
        WITH_TYPE(a.out_type, T, {
            T* out = (T*)a.out + (token * a.heads + head) * a.dim;
            int64_t d = 0;
            for (; d + VEC <= a.dim; d += VEC) store(out + d, load(y.o + i * pitch + d) * share);
            if (d < a.dim) store_part(out + d, load(y.o + i * pitch + d) * share, a.dim - d);
        });
    }
}

// One part's m, l and o join those of the parts before it.
static void join(State& y, const State& part, const AttentionArgs& a, const Task& t) {
    int64_t pitch = (a.dim + VEC - 1) / VEC * VEC;
    for (int64_t i = 0; i < t.tokens * t.heads; i++) {
        float m = y.m[i] > part.m[i] ? y.m[i] : part.m[i];
        if (m == -INFINITY) continue;
        float mine = exp(vec{} + (y.m[i] - m))[0], theirs = exp(vec{} + (part.m[i] - m))[0];
        y.m[i] = m;
        y.l[i] = y.l[i] * mine + part.l[i] * theirs;
        for (int64_t d = i * pitch; d < (i + 1) * pitch; d += VEC) store(y.o + d, load(y.o + d) * mine + load(part.o + d) * theirs);
    }
}

static void plan(std::vector<Task>& tasks, const AttentionArgs& a, int64_t max_parts) {
    int64_t group = a.heads / a.kv_heads, slots = 0;
    for (int64_t row = a.rows - 1; row >= 0; row--) {  // prompts stand last and take longest: start with them
        int64_t length = a.query_start[row + 1] - a.query_start[row], start = a.context_lens[row] - length;
        int64_t heads = group < QUERIES ? group : QUERIES, tokens = QUERIES / heads;
        for (int64_t token = (length - 1) / tokens * tokens; token >= 0; token -= tokens) {
            int64_t count = length - token < tokens ? length - token : tokens;
            int64_t low = a.window && start + token >= a.window ? start + token - a.window + 1 : 0, high = start + token + count;
            int64_t parts = (high - low) / 128 < max_parts ? (high - low) / 128 : max_parts;
            if (parts < 1) parts = 1;
            int64_t size = (high - low + parts - 1) / parts;
            size = (size + KEYS - 1) / KEYS * KEYS;
            parts = (high - low + size - 1) / size;
            for (int64_t kv_head = 0; kv_head < a.kv_heads; kv_head++)
                for (int64_t head = 0; head < group; head += heads)
                    for (int64_t part = 0; part < parts; part++) {
                        int64_t first = low + part * size, last = first + size < high ? first + size : high;
                        int64_t some = group - head < heads ? group - head : heads;
                        tasks.push_back({row, kv_head, head, some, token, count, first, last, part, parts, parts > 1 ? slots++ : -1});
                    }
        }
    }
}

// One for each thread. Not inline: where a thread's variables lie is asked once, and not at each use.
__attribute__((noinline)) static Scratch& scratch() {
    static thread_local Scratch x;
    return x;
}

EXPORT int64_t glasshouse_attention(const AttentionArgs* args) {
    const AttentionArgs& a = *args;
    static thread_local std::vector<Task> tasks;
    static thread_local std::vector<State> unfinished;
    int64_t work = 0;
    for (int64_t row = 0; row < a.rows; row++) work += (a.query_start[row + 1] - a.query_start[row]) * a.context_lens[row];
    bool alone = work * a.heads * a.dim < 65536;  // less than waking the other threads costs
    int64_t threads = alone ? 1 : omp_get_max_threads();
    tasks.clear();
    plan(tasks, a, 1);
    if (threads > 1 && int64_t(tasks.size()) < 4 * threads) {
        int64_t parts = (4 * threads + tasks.size() - 1) / tasks.size();
        tasks.clear();
        plan(tasks, a, parts);
    }
    int64_t count = tasks.size(), slots = 0;
    for (const Task& t : tasks) slots = t.slot >= slots ? t.slot + 1 : slots;
    if (int64_t(unfinished.size()) < slots) unfinished.resize(slots);
    const Task* list = tasks.data();  // these are of the calling thread: the others must see them too
    State* parts = unfinished.data();
#pragma omp parallel if (!alone)
    {
        Scratch& x = scratch();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            const Task& t = list[i];
            WITH_TYPE(a.kv_type, T, attend<T>(x, a, t));
            if (t.parts > 1) {
                memcpy(parts + t.slot, &x.state, sizeof(State));
            } else {
                finish(x.state, a, t);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            const Task& t = list[i];
            if (t.parts == 1 || t.part) continue;
            for (int64_t part = 1; part < t.parts; part++) join(parts[t.slot], parts[t.slot + part], a, t);
            finish(parts[t.slot], a, t);
        }
    }
    return count;
}
