// Attend for decoding rows: see attention.cpp for the task. Each key and value is used once for each query head of its group,
// so it is read from the pages in place.
#pragma once
#include "attention_task.h"

// Decode with few query heads for each key head: each key and value is used only G times, so they are read from the pages in
// place. Numbers come two vectors at a time. In bf16 that is one load: the upper halves of its words are the odd numbers, the
// lower halves the even ones. So q and o are kept in that order too, evens then odds.
struct Two {
    vec a, b;
};
static INLINE Two load_two(const float* p) { return {load(p), load(p + VEC)}; }
static INLINE Two load_two(const bf16* p) {
    uvec words;
    memcpy(&words, p, sizeof words);
    return {(vec)(words << 16), (vec)(words & 0xffff0000u)};
}
template <int... L>
static INLINE Two split(Two x, std::integer_sequence<int, L...>) {
    return {PICK(x.a, x.b, (2 * L)...), PICK(x.a, x.b, (2 * L + 1)...)};
}
template <int... L>
static INLINE Two merge(Two x, std::integer_sequence<int, L...>) {
    return {PICK(x.a, x.b, (L / 2 + L % 2 * VEC)...), PICK(x.a, x.b, (VEC / 2 + L / 2 + L % 2 * VEC)...)};
}
static INLINE bool in_halves(const float*, int64_t) { return false; }  // fp32 lies in order
static INLINE bool in_halves(const bf16*, int64_t dim) { return dim % (2 * VEC) == 0; }
static INLINE void reorder(float* row, int64_t dim, Two (*way)(Two, Lanes)) {
    for (int64_t d = 0; d < dim; d += 2 * VEC) {
        Two x = way(load_two(row + d), Lanes());
        store(row + d, x.a), store(row + d + VEC, x.b);
    }
}

// at[j]: where position j's K (and V) start. There are places for VEC more than there are keys.
template <int G, class KV>
static INLINE void scores_in_place(Scratch& x, int64_t query, const KV* k, const int64_t* at, int64_t keys,
                                   Ahead<KV>& next) {
    constexpr int Q = G == 3 ? 4 : G, K = VEC / Q;  // K keys at once: VEC sums
    for (int64_t key = 0; key < keys; key += K) {
        vec acc[VEC] = {};
        for (int64_t d = 0; d < x.pitch; d += 2 * VEC) {
            Two q[G];
            for (int i = 0; i < G; i++) q[i] = load_two(x.q + (query + i) * x.pitch + d);
            for (int j = 0; j < K; j++) {
                if (j * 2 * VEC % Ahead<KV>::ASKED == 0) next.ask_k();
                Two two = load_two(k + at[key + j] + d);
                for (int i = 0; i < G; i++) {
                    acc[i * K + j] += q[i].a * two.a;
                    acc[i * K + j] += q[i].b * two.b;
                }
            }
        }
        sums(acc);
        float lanes[VEC];
        store(lanes, acc[0]);
        for (int i = 0; i < G; i++) memcpy(&x.s[query + i][key], lanes + i * K, K * sizeof(float));
    }
}
// D: pairs of vectors at once
template <int G, int D, class KV>
static INLINE void values_in_place(Scratch& x, int64_t query, const KV* v, const int64_t* at, int64_t d, int64_t keys,
                                   Ahead<KV>& next) {
    Two acc[G][D];
    float* o = x.state->o + query * x.pitch + d;
    for (int i = 0; i < G; i++)
        for (int e = 0; e < D; e++) acc[i][e] = load_two(o + i * x.pitch + e * 2 * VEC);
    for (int64_t j = 0; j < keys; j++)
        for (int e = 0; e < D; e++) {
            if (e * 2 * VEC % Ahead<KV>::ASKED == 0) next.ask_v();
            Two two = load_two(v + at[j] + d + e * 2 * VEC);
            for (int i = 0; i < G; i++) {
                float weight = x.s[query + i][j];
                acc[i][e].a += weight * two.a;
                acc[i][e].b += weight * two.b;
            }
        }
    for (int i = 0; i < G; i++)
        for (int e = 0; e < D; e++) {
            store(o + i * x.pitch + e * 2 * VEC, acc[i][e].a);
            store(o + i * x.pitch + e * 2 * VEC + VEC, acc[i][e].b);
        }
}
// Positions at a time. With all key heads side by side, 64 positions are 100 to 400 KB of K and V, and as much is being
// prefetched: a small second cache (512 KB with most AVX2) would evict prefetched data before it is used.

template <int G, class KV>
static void attend_in_place(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded) {
    constexpr int D = VEC >= 16 ? 2 : G == 1 ? 4 : G == 2 ? 2 : 1;  // enough sums to keep the multipliers busy
    int64_t position = a.context_lens[t.row] - 1;
    Ahead<KV> here, next;
    here.k = next.k = (const KV*)a.k, here.v = next.v = (const KV*)a.v,
    here.numbers = next.numbers = t.kv_heads * a.dim;
    next.find(a, t, t.first, KEYS);
    next.ask_all();
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        begin_block(x, a, t, padded, first);
        here = next;
        for (int64_t j = here.keys; j % VEC; j++)
            here.at[j] = here.at[0];  // any place that exists: its score is masked
        next.find(a, t, first + KEYS, KEYS);
        for (int64_t g = 0; g < t.kv_heads; g++) {
            const KV *k = here.k + g * a.dim, *v = here.v + g * a.dim;
            scores_in_place<G>(x, g * padded, k, here.at, here.keys, next);
            int64_t low = a.window ? position - first - a.window + 1 : 0;
            for (int i = 0; i < G; i++)
                softmax(x, g * padded + i, x.s[g * padded + i], float(a.soft_cap), here.keys, low, here.keys);
            int64_t d = 0;
            for (; d + D * 2 * VEC <= a.dim; d += D * 2 * VEC)
                values_in_place<G, D>(x, g * padded, v, here.at, d, here.keys, next);
            for (; d < a.dim; d += 2 * VEC) values_in_place<G, 1>(x, g * padded, v, here.at, d, here.keys, next);
        }
    }
}
