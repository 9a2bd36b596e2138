// Compute paged attention, softmax(q K^T) V, reading K and V in place, page by page.
//
// The work is cut into tasks: one sequence (row), one key head, up to QUERIES of its queries. All query heads that share
// a key head, and all tokens of a chunk, go over its keys together, so K and V are read once for all of them. Where a row
// has one token (decoding), a task takes several key heads: a position's heads are adjacent, and memory is read fastest
// in address order. A task:
//
//   for each KEYS positions of the context, in order, and each key head:
//     copy their K and V from the pages to adjacent rows in fp32, or as pairs of bf16 (they stay in the caches nearby)
//     prefetch a share of the next KEYS positions
//     scores = q K^T; mask what lies in the future, or before the window
//     update the softmax: m is the largest score so far, l the sum of e^(score - m), o the weighted sum of values. A larger
//       m shrinks the old l and o by e^(m_old - m_new)
//     o += weights * V
//   out = o / l
//
// Bytes: each key and value once, 2 * kv_heads * dim * size for each position of each sequence. When there are few
// sequences, the parts of a context are a task each.
//
// A query's sums have a fixed order: a score is summed over the head's dimensions lane by lane, weights and values over
// blocks of KEYS positions that begin at multiples of KEYS, and parts of PART positions that begin at multiples of PART are
// joined one after another. Where pairs of bf16 are multiplied, on matrix tiles (attention_tiles.h) or without
// (attention_pairs.h), the order is another one, for decoding rows too. How tasks are cut and queries combined, for speed,
// changes no bit of a query's result. So rows that check proposed tokens of one sequence, each a token further than the one
// before it, are taken as one chunk.
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

#include "attention_in_place.h"
#include "attention_staged.h"
#if defined(__AVX512BF16__)
#include "attention_bf16.h"
//
#include "attention_pairs.h"
static bool in_pairs(const AttentionArgs& a) { return !a.tiles && a.kv_type == BF16 && a.dim % 32 == 0; }
#else
static bool in_pairs(const AttentionArgs&) { return false; }
static void attend_pairs(Scratch&, const AttentionArgs&, const Task&, int64_t) {}
#endif
#if defined(__AMX_BF16__)
#include "attention_tiles.h"
//
#include "attention_tiles_few.h"
static bool on_tiles(const AttentionArgs& a) { return a.tiles && a.kv_type == BF16 && a.dim % 32 == 0; }
#else
static bool on_tiles(const AttentionArgs&) { return false; }
static void attend_tiles(Scratch&, const AttentionArgs&, const Task&, int64_t) {}
#endif

template <class KV>
static void attend(Scratch& x, const AttentionArgs& a, const Task& t) {
    int64_t queries = t.tokens * t.heads, padded = padded_queries(queries);
    x.pitch = (a.dim + VEC - 1) / VEC * VEC;
    for (int64_t g = 0; g < t.kv_heads && padded > queries; g++) {
        memset(x.q + (g * padded + queries) * x.pitch, 0, (padded - queries) * x.pitch * sizeof(float));
        memset(x.s[g * padded + queries], 0, (padded - queries) * sizeof x.s[0]);
    }
    each_query(a, t, [&](int64_t i, int64_t token, int64_t head) INLINE_LAMBDA {
        WITH_TYPE(a.q_type, T,
                  stage(x.q + i * x.pitch, (const T*)a.q + token * a.q_stride + head * a.dim, a.dim, float(a.scale)));
    });
    x.state = &x.states[0];
    clear(x, t, padded);
    if (on_tiles(a)) return attend_tiles(x, a, t, padded);
    if (in_pairs(a)) return attend_pairs(x, a, t, padded);
    const bool halves = in_halves((const KV*)nullptr, a.dim);
    for (int64_t i = 0; halves && i < t.kv_heads * padded; i++) reorder(x.q + i * x.pitch, a.dim, split);
    const int64_t in_place = t.tokens == 1 && a.dim % (2 * VEC) == 0 ? t.heads : 0;
    switch (in_place) {
        case 1:
            attend_in_place<1, KV>(x, a, t, padded);
            break;
        case 2:
            attend_in_place<2, KV>(x, a, t, padded);
            break;
        case 3:
            attend_in_place<3, KV>(x, a, t, padded);
            break;
        case 4:
            attend_in_place<4, KV>(x, a, t, padded);
            break;
        default:
            attend_staged<KV>(x, a, t, padded);
    }
    if (x.state != x.states) join(view(x.states[0]), view(x.states[1]), a, t);
    x.state = &x.states[0];
    for (int64_t i = 0; halves && i < t.kv_heads * padded; i++) reorder(x.state->o + i * x.pitch, a.dim, merge);
}

// Write out = o / l; a sink's weight is part of l.
static void finish(View y, const AttentionArgs& a, const Task& t) {
    int64_t pitch = (a.dim + VEC - 1) / VEC * VEC;
    each_query(a, t, [&](int64_t i, int64_t token, int64_t head) INLINE_LAMBDA {
        float l = y.l[i], shrink = 1.0f;
        if (a.sinks) {
            const float m = y.m[i] > a.sinks[head] ? y.m[i] : a.sinks[head];
            shrink = exp(vec{} + (y.m[i] - m))[0];
            l = l * shrink + exp(vec{} + (a.sinks[head] - m))[0];
        }
        float share = l > 0 ? shrink / l : 0.0f;
        WITH_TYPE(a.out_type, T, {
            T* out = (T*)a.out + (token * a.heads + head) * a.dim;
            int64_t d = 0;
            for (; d + VEC <= a.dim; d += VEC) store(out + d, load(y.o + i * pitch + d) * share);
            if (d < a.dim) store_part(out + d, load(y.o + i * pitch + d) * share, a.dim - d);
        });
    });
}

// Cut the work into tasks. by_part: each part of a context is a task. side_by_side: the most key heads of a decoding row in
// one task.
static void plan(std::vector<Task>& tasks, const AttentionArgs& a, bool by_part, int64_t side_by_side) {
    int64_t group = a.heads / a.kv_heads, slots = 0;
    tasks.clear();
    for (int64_t row = a.rows - 1; row >= 0; row--) {  // prompts come last and take longest: start with them
        int64_t length = a.query_start[row + 1] - a.query_start[row], start = a.context_lens[row] - length;
        int64_t most = length == 1   ? FEW
                       : on_tiles(a) ? QUERIES
                       : in_pairs(a) ? CHUNK_IN_PAIRS
                                     : CHUNK,
                heads = group < most ? group : most, tokens = most / heads;
        int64_t room = most / padded_queries(heads), many = side_by_side < room ? side_by_side : room;
        if (length > 1 || (on_tiles(a) && heads > FEW_ON_TILES)) many = 1;
        for (int64_t token = (length - 1) / tokens * tokens; token >= 0; token -= tokens) {
            int64_t count = length - token < tokens ? length - token : tokens, high = start + token + count;
            int64_t low = a.window && start + token >= a.window ? (start + token - a.window + 1) / KEYS * KEYS : 0;
            int64_t begun = low / PART, parts = by_part ? (high - 1) / PART - begun + 1 : 1;
            for (int64_t kv_head = 0; kv_head < a.kv_heads; kv_head += many)
                for (int64_t head = 0; head < group; head += heads)
                    for (int64_t part = 0; part < parts; part++) {
                        int64_t first = part ? (begun + part) * PART : low,
                                last = part + 1 < parts ? (begun + part + 1) * PART : high;
                        int64_t some = group - head < heads ? group - head : heads;
                        int64_t side = a.kv_heads - kv_head < many ? a.kv_heads - kv_head : many;
                        tasks.push_back({row, kv_head, side, head, some, token, count, first, last, part, parts,
                                         parts > 1 ? slots++ : -1});
                    }
        }
    }
}

// Return the thread's own scratch. Not inline, so that the address of a thread's variables is computed once, not at each use.
__attribute__((noinline)) static Scratch& scratch() {
    static thread_local Scratch x;
    return x;
}

// Rows in place of the given ones, where some were joined.
struct Rows {
    std::vector<int32_t> tables, query_start, context_lens;
};

// Return whether row + 1 is one token that follows the one of `row`, in the same blocks.
static bool goes_on(const AttentionArgs& a, int64_t row) {
    const int32_t *start = a.query_start + row, context = a.context_lens[row];
    if (start[1] - start[0] != 1 || start[2] - start[1] != 1 || a.context_lens[row + 1] != context + 1) return false;
    const int32_t* table = a.tables + row * a.width;
    return !memcmp(table, table + a.width, (context + a.block_size - 1) / a.block_size * sizeof(int32_t));
}

// Take rows that go on with the one before them as one row with it, if there are any.
static AttentionArgs joined(const AttentionArgs& a, Rows& to) {
    int64_t row = 0;
    while (row + 1 < a.rows && !goes_on(a, row)) row++;
    if (row + 1 >= a.rows) return a;
    to.tables.clear(), to.query_start.clear(), to.context_lens.clear();
    for (row = 0; row < a.rows; row++) {
        to.query_start.push_back(a.query_start[row]);
        while (row + 1 < a.rows && goes_on(a, row)) row++;
        const int32_t* table = a.tables + row * a.width;
        to.tables.insert(to.tables.end(), table, table + a.width);
        to.context_lens.push_back(a.context_lens[row]);
    }
    to.query_start.push_back(a.query_start[a.rows]);
    AttentionArgs b = a;
    b.tables = to.tables.data(), b.query_start = to.query_start.data(), b.context_lens = to.context_lens.data();
    b.rows = to.context_lens.size();
    return b;
}

EXPORT int64_t glasshouse_attention(const AttentionArgs* args) {
    static thread_local Rows rows;
    const AttentionArgs a = joined(*args, rows);
    static thread_local std::vector<Task> tasks;
    static thread_local std::vector<float> kept;
    int64_t work = 0;
    for (int64_t row = 0; row < a.rows; row++)
        work += (a.query_start[row + 1] - a.query_start[row]) * a.context_lens[row];
    bool alone = work * a.heads * a.dim < 65536;  // less than waking the other threads costs
    int64_t threads = alone ? 1 : omp_get_max_threads();
    plan(tasks, a, false, 1);
    int64_t pieces = tasks.size();
    if (threads > 1 && pieces < 4 * threads)
        plan(tasks, a, true, 1);
    else if (pieces > 2 * threads)
        plan(tasks, a, false, pieces / (2 * threads));
    // Unfinished results of tasks that have only some parts of a context: m, l and o of their queries.
    int64_t count = tasks.size(), slots = 0, most = 0, pitch = (a.dim + VEC - 1) / VEC * VEC;
    for (const Task& t : tasks) {
        const int64_t queries = t.kv_heads * padded_queries(t.tokens * t.heads);
        slots = t.slot >= slots ? t.slot + 1 : slots, most = queries > most ? queries : most;
    }
    const int64_t size = most * (2 + pitch);
    if (int64_t(kept.size()) < slots * size) kept.resize(slots * size);
    const Task* list = tasks.data();  // these belong to the calling thread: the others must see them too
    float* memory = kept.data();
    auto slot = [=](int64_t i) {
        return View{memory + i * size, memory + i * size + most, memory + i * size + 2 * most};
    };
#pragma omp parallel if (!alone)
    {
        Scratch& x = scratch();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            const Task& t = list[i];
            WITH_TYPE(a.kv_type, T, attend<T>(x, a, t));
            if (t.tasks == 1) {
                finish(view(*x.state), a, t);
                continue;
            }
            const int64_t queries = t.kv_heads * padded_queries(t.tokens * t.heads);
            const View from = view(*x.state), to = slot(t.slot);
            memcpy(to.m, from.m, queries * sizeof(float)), memcpy(to.l, from.l, queries * sizeof(float));
            memcpy(to.o, from.o, queries * pitch * sizeof(float));
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < count; i++) {
            const Task& t = list[i];
            if (t.tasks == 1 || t.part) continue;
            for (int64_t part = 1; part < t.tasks; part++) join(slot(t.slot), slot(t.slot + part), a, t);
            finish(slot(t.slot), a, t);
        }
    }
    return count;
}
