// Paged attention: softmax(q K^T) V, with K and V read where they lie, page by page.
//
// The work is cut into tasks: one sequence (row), one key head, up to QUERIES of its queries. All query heads that share
// a key head, and all tokens of a chunk, go over its keys together, so K and V are read once for all of them. A task:
//
//   for each KEYS positions of the context, in order:
//     copy their K from the pages to fp32 rows side by side (they stay in the first cache)
//     scores = q K^T; hide what lies in the future, or before the window
//     softmax goes on: m is the largest score so far, l the sum of e^(score - m), o the weighted sum of values. A larger
//       m shrinks the old l and o by e^(m_old - m_new)
//     copy their V; o += weights * V
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

constexpr int KEYS = 32, QUERIES = 32, MAX_DIM = 256;

struct Task {
    int64_t row, kv_head;
    int64_t head, heads;    // query heads of this task, the first one counted from the group's first
    int64_t token, tokens;  // query tokens, the first one counted from the row's first
    int64_t first, last;    // positions of the context
    int64_t part, parts;    // which part of the context, of how many
    int64_t slot;           // where its unfinished result goes, if parts > 1
};

// What is known of a task's queries. Query number t * heads + h is token t, head h.
struct State {
    float m[QUERIES], l[QUERIES];
    float o[QUERIES][MAX_DIM];
};
struct Scratch {
    float q[QUERIES][MAX_DIM], k[KEYS][MAX_DIM], v[KEYS][MAX_DIM], s[QUERIES][KEYS];
    State state;
};

// Copy `dim` numbers as fp32 times `scale`, and zeros up to a whole number of vectors.
template <class T>
static INLINE void stage(float* to, const T* from, int64_t dim, float scale = 1.0f) {
    int64_t d = 0;
    for (; d + VEC <= dim; d += VEC) store(to + d, load(from + d) * scale);
    if (d < dim) store(to + d, load_part(from + d, dim - d) * scale);
}

// `count` rows of K or V from position `first` on.
template <class T>
static void stage_keys(float (*to)[MAX_DIM], const void* pages, const AttentionArgs& a, const Task& t, int64_t first, int64_t count) {
    const int32_t* table = a.tables + t.row * a.width;
    for (int64_t j = 0; j < count; j++) {
        int64_t place = first + j, block = table[place / a.block_size];
        int64_t slot = block * a.block_size + place % a.block_size;
        stage(to[j], (const T*)pages + (slot * a.kv_heads + t.kv_head) * a.dim, a.dim);
    }
}

// Scores of Q queries with all staged keys: VEC sums grow at once, Q of queries times VEC / Q of keys.
template <int Q>
static INLINE void scores(Scratch& x, int64_t query, int64_t dim) {
    constexpr int K = VEC / Q;
    for (int64_t key = 0; key < KEYS; key += K) {
        vec acc[VEC] = {};
        for (int64_t d = 0; d < dim; d += VEC) {
            vec k[K];
            for (int j = 0; j < K; j++) k[j] = load(&x.k[key + j][d]);
            for (int i = 0; i < Q; i++) {
                vec q = load(&x.q[query + i][d]);
                for (int j = 0; j < K; j++) acc[i * K + j] += q * k[j];
            }
        }
        sums(acc);
        float lanes[VEC];
        store(lanes, acc[0]);
        for (int i = 0; i < Q; i++) memcpy(&x.s[query + i][key], lanes + i * K, K * sizeof(float));
    }
}

// One query's scores become weights, and its m, l and o follow. Sees positions from `low` to below `high`.
static INLINE void softmax(Scratch& x, int64_t query, const AttentionArgs& a, int64_t first, int64_t low, int64_t high) {
    static const float count[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* s = x.s[query];
    vec top = vec{} - INFINITY;
    for (int j = 0; j < KEYS; j += VEC) {
        vec score = load(s + j), index = load(count) + float(j);
        if (a.soft_cap > 0) score = float(a.soft_cap) * (1.0f - 2.0f / (exp(score * float(2 / a.soft_cap)) + 1.0f));
        score = (index >= float(low - first)) & (index < float(high - first)) ? score : vec{} - INFINITY;
        top = vmax(top, score);
        store(s + j, score);
    }
    State& y = x.state;
    float m = largest(top);
    m = m > y.m[query] ? m : y.m[query];
    if (m == -INFINITY) {  // it sees nothing here, and has seen nothing yet
        memset(s, 0, KEYS * sizeof(float));
        return;
    }
    vec total = {};
    for (int j = 0; j < KEYS; j += VEC) {
        vec weight = exp(load(s + j) - m);
        total = total + weight;
        store(s + j, weight);
    }
    float shrink = exp(vec{} + (y.m[query] - m))[0];
    y.m[query] = m;
    y.l[query] = y.l[query] * shrink + sum(total);
    if (shrink != 1.0f)
        for (int64_t d = 0; d < a.dim; d += VEC) store(&y.o[query][d], load(&y.o[query][d]) * shrink);
}

// o += weights * V for Q queries and D vectors of the head's dimensions.
template <int Q, int D>
static INLINE void values(Scratch& x, int64_t query, int64_t d, int64_t keys) {
    vec acc[Q][D];
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < D; e++) acc[i][e] = load(&x.state.o[query + i][d + e * VEC]);
    for (int64_t j = 0; j < keys; j++) {
        vec v[D];
        for (int e = 0; e < D; e++) v[e] = load(&x.v[j][d + e * VEC]);
        for (int i = 0; i < Q; i++) {
            float weight = x.s[query + i][j];
            for (int e = 0; e < D; e++) acc[i][e] += weight * v[e];
        }
    }
    for (int i = 0; i < Q; i++)
        for (int e = 0; e < D; e++) store(&x.state.o[query + i][d + e * VEC], acc[i][e]);
}

template <class KV>
static void attend(Scratch& x, const AttentionArgs& a, const Task& t) {
    constexpr int TILE = VEC >= 16 ? 4 : 2;  // queries that are computed together
    int64_t queries = t.tokens * t.heads, group = a.heads / a.kv_heads;
    int64_t context = a.context_lens[t.row], start = context - (a.query_start[t.row + 1] - a.query_start[t.row]);
    for (int64_t i = 0; i < queries; i++) {
        int64_t token = a.query_start[t.row] + t.token + i / t.heads;
        int64_t head = t.kv_head * group + t.head + i % t.heads;
        WITH_TYPE(a.q_type, T, stage(x.q[i], (const T*)a.q + token * a.q_stride + head * a.dim, a.dim, float(a.scale)));
        bool sink = a.sinks && t.part == 0;
        x.state.m[i] = sink ? a.sinks[head] : -INFINITY;
        x.state.l[i] = sink ? 1.0f : 0.0f;
        for (int64_t d = 0; d < a.dim; d += VEC) store(&x.state.o[i][d], vec{});
    }
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        int64_t keys = t.last - first < KEYS ? t.last - first : KEYS;
        stage_keys<KV>(x.k, a.k, a, t, first, keys);
        int64_t i = 0;
        for (; i + TILE <= queries; i += TILE) scores<TILE>(x, i, a.dim);
        for (; i < queries; i++) scores<1>(x, i, a.dim);
        for (i = 0; i < queries; i++) {
            int64_t position = start + t.token + i / t.heads;
            int64_t low = a.window && position >= a.window ? position - a.window + 1 : 0;
            int64_t high = position + 1 < t.last ? position + 1 : t.last;
            softmax(x, i, a, first, low, high);
        }
        stage_keys<KV>(x.v, a.v, a, t, first, keys);
        for (i = 0; i < queries; i += i + TILE <= queries ? TILE : 1) {
            int64_t d = 0;
            for (; d + 4 * VEC <= a.dim; d += 4 * VEC) i + TILE <= queries ? values<TILE, 4>(x, i, d, keys) : values<1, 4>(x, i, d, keys);
            for (; d < a.dim; d += VEC) i + TILE <= queries ? values<TILE, 1>(x, i, d, keys) : values<1, 1>(x, i, d, keys);
        }
    }
}

// out = o / l
static void finish(const State& y, const AttentionArgs& a, const Task& t) {
    for (int64_t i = 0; i < t.tokens * t.heads; i++) {
        int64_t token = a.query_start[t.row] + t.token + i / t.heads;
        int64_t head = t.kv_head * (a.heads / a.kv_heads) + t.head + i % t.heads;
        float share = y.l[i] > 0 ? 1.0f / y.l[i] : 0.0f;
        WITH_TYPE(a.out_type, T, {
            T* out = (T*)a.out + (token * a.heads + head) * a.dim;
            int64_t d = 0;
            for (; d + VEC <= a.dim; d += VEC) store(out + d, load(&y.o[i][d]) * share);
            if (d < a.dim) store_part(out + d, load(&y.o[i][d]) * share, a.dim - d);
        });
    }
}

// One part's m, l and o join those of the parts before it.
static void join(State& y, const State& part, const AttentionArgs& a, const Task& t) {
    for (int64_t i = 0; i < t.tokens * t.heads; i++) {
        float m = y.m[i] > part.m[i] ? y.m[i] : part.m[i];
        if (m == -INFINITY) continue;
        float mine = exp(vec{} + (y.m[i] - m))[0], theirs = exp(vec{} + (part.m[i] - m))[0];
        y.m[i] = m;
        y.l[i] = y.l[i] * mine + part.l[i] * theirs;
        for (int64_t d = 0; d < a.dim; d += VEC) store(&y.o[i][d], load(&y.o[i][d]) * mine + load(&part.o[i][d]) * theirs);
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
        static thread_local Scratch x;
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
