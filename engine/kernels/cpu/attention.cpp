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
#include "attention_in_place.h"
#include "attention_plan.h"
#include "attention_staged.h"
#if defined(__AVX512BF16__)
#include "attention_pairs.h"
#else
static void attend_pairs(Scratch&, const AttentionArgs&, const Task&, int64_t) {}
#endif
#if defined(__AMX_BF16__)
#include "attention_tiles_few.h"
#else
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

// Return the thread's own scratch. Not inline, so that the address of a thread's variables is computed once, not at each use.
__attribute__((noinline)) static Scratch& scratch() {
    static thread_local Scratch x;
    return x;
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
