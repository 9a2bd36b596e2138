// Attend to keys and values that are copied to fp32 first: see attention.cpp for the task. bf16 comes here where its pairs
// can't be multiplied, or where a head's width is no multiple of 32.
#pragma once
#include "attention_task.h"

// Compute scores of Q queries with the staged keys: VEC sums at once, Q queries times VEC / Q keys.
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

// Add weights * V to o for Q queries and D vectors of the head's dimensions.
template <int Q, int D>
static INLINE void values(Scratch& x, int64_t query, int64_t d, int64_t keys) {
    float* o = x.state->o + query * x.pitch + d;
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

// Attend for all queries from `base` to `base + padded`, Q at a time, with the staged keys.
template <int Q, class KV>
static INLINE void block(Scratch& x, const AttentionArgs& a, const Task& t, int64_t base, int64_t padded, int64_t first,
                         int64_t keys) {
    int64_t queries = t.tokens * t.heads;
    int64_t start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token - first;
    for (int64_t i = base; i < base + padded; i += Q) scores<Q>(x, i, keys);
    for (int64_t i = 0; i < queries; i++) {
        int64_t position = start + i / t.heads;  // counted from `first`
        int64_t low = a.window ? position - a.window + 1 : 0, high = position + 1 < keys ? position + 1 : keys;
        softmax(x, base + i, x.s[base + i], float(a.soft_cap), keys, low, high);
    }
    for (int64_t i = base; i < base + padded; i += Q) {
        int64_t d = 0;
        constexpr int D = REGISTERS / 8;  // Q times D sums fill half of the registers
        for (; d + D * VEC <= x.pitch; d += D * VEC) values<Q, D>(x, i, d, keys);
        for (; d < x.pitch; d += VEC) values<Q, 1>(x, i, d, keys);
    }
}

// Copy a head's numbers as fp32, in the order of `attend_in_place`: evens, then odds, where it reads them so.
template <class KV>
static INLINE void stage_head(float* to, const KV* from, int64_t dim) {
    if (!in_halves(from, dim)) return stage(to, from, dim);
    for (int64_t d = 0; d < dim; d += 2 * VEC) {
        const Two two = load_two(from + d);
        store(to + d, two.a), store(to + d + VEC, two.b);
    }
}

template <class KV>
static void attend_staged(Scratch& x, const AttentionArgs& a, const Task& t, int64_t padded) {
    Ahead<KV> here, next;
    here.k = next.k = (const KV*)a.k, here.v = next.v = (const KV*)a.v,
    here.numbers = next.numbers = t.kv_heads * a.dim;
    next.find(a, t, t.first);
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        begin_block(x, a, t, padded, first);
        next.ask_all();  // prefetch the rest
        here = next;
        next.find(a, t, first + KEYS);
        for (int64_t g = 0; g < t.kv_heads; g++) {
            for (int64_t j = 0; j < here.keys; j++)
                stage_head(x.k + j * x.pitch, here.k + here.at[j] + g * a.dim, a.dim);
            for (int64_t j = 0; j < here.keys; j++) {
                stage_head(x.v + j * x.pitch, here.v + here.at[j] + g * a.dim, a.dim);
                for (int64_t d = 0; d < a.dim; d += 2 * VEC) next.ask_k(), next.ask_v();
            }
            padded == 1 ? block<1, KV>(x, a, t, g, padded, first, here.keys)
                        : block<TILE, KV>(x, a, t, g * padded, padded, first, here.keys);
        }
    }
}
