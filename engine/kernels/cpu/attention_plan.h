// Cut attention's work into tasks (attention.cpp): by rows, key heads and chunks of queries, or by parts of contexts, too.
#pragma once
#include "attention_task.h"

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
