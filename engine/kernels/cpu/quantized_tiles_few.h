// Multiply up to 16 rows of x by a panel of W: the codes of a step become numbers while the tiles multiply the step before, in
// turns of some instructions each, because a core looks only some hundreds of them ahead. One row of whole numbers of 8 bits is
// multiplied by vectors, in the tiles' own order of sums.
#pragma once
#include "quantized_tiles.h"

#if defined(__AMX_BF16__)

constexpr int64_t NEAR = 2048, FAR = 4096;  // bytes: how far ahead W is prefetched; with one row

// Multiply one tile of x, of `count` rows, by a panel.
template <class Source, int64_t STEP>
static void few(const Block& b, int64_t count, int64_t panel, const QuantizedArgs& a) {
    const Sizes s(a, Source::PLACES);
    const Source codes(a.table);
    Numbers<STEP> numbers[2];
    alignas(LINE) float sums[2][2][SUMS];  // of two groups, both halves
    vec totals[TILE][2];
    for (int64_t i = 0; i < count; i++) totals[i][0] = totals[i][1] = vec{};
    const char *at = a.w + panel * s.panel, *parts_at = at;
    const int64_t steps = a.k / STEP, in_group = a.group / STEP, ahead = count == 1 ? FAR : NEAR;
    GroupParts parts;
    Groups f = {totals[0], nullptr, 0, &parts, 1, int(count), nullptr, s.groups};
    const auto finish_group = [&](int64_t g) INLINE_LAMBDA {
        parts.read(parts_at, Source::UNIT, a);
        parts_at += s.record;
        f.sums = sums[g % 2][0], f.of_x = b.rows.sums + g;
        if (count == 1) {
            const vec values[2] = {load(f.sums), load(f.sums + SUMS)};
            add_group(totals[0], values, parts, f.of_x, a);
        } else {
            finish(f, a);
        }
    };
    constexpr int64_t ROWS_OF_WORDS = STEP / Source::PLACES;
    int64_t g = 0;  // the group that is multiplied
    at = expand<Source, STEP>(codes, at + s.head, ahead, numbers[0]);
    for (int64_t t = 0, left = in_group; t < steps; t++) {
        const Numbers<STEP>& w = numbers[t % 2];
        Numbers<STEP>& next = numbers[(t + 1) % 2];
        if (left == in_group) {
            _tile_zero(0);
            _tile_zero(1);
        }
        const bool ends = --left == 0 || t + 1 == steps;
        if (ends) left = in_group, at += s.head;
        const bool more = t + 1 < steps;
        _tile_loadd(4, b.rows.x + t * STEP, b.rows.stride * sizeof(bf16));
        _tile_loadd(6, w.pairs[0], LINE);
        for (int64_t i = 0; more && i < ROWS_OF_WORDS / 2; i++) expand_words(codes, at, i, ahead, next);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, w.pairs[1], LINE);
        for (int64_t i = ROWS_OF_WORDS / 2; more && i < ROWS_OF_WORDS; i++) expand_words(codes, at, i, ahead, next);
        _tile_dpbf16ps(1, 4, 7);
        at += ROWS_OF_WORDS * WORDS;
        if (ends) {
            _tile_stored(0, sums[g % 2][0], LINE);
            _tile_stored(1, sums[g % 2][1], LINE);
            if (g) finish_group(g - 1);
            g++;
        }
    }
    finish_group(g - 1);
    put(a, b.first, count, panel * PANEL, totals[0]);
}

// Multiply one row by a panel, as tiles do, but by vectors: a step's even and odd places are added up apart, each place by a
// fused multiply-add, then both to the group's sum (Intel's manual, TDPBF16PS). Three instructions for 16 codes of 8 bits; to
// make pairs of bf16 for a tile takes as many, and then they go through the cache. For 4 bits the tile is faster.
template <int64_t KIND, int64_t STEP>
static void one(const Rows<float>& rows, int64_t panel, const QuantizedArgs& a) {
    typedef Codes<KIND> Source;
    const Sizes s(a, Source::PLACES);
    const Source codes(nullptr);
    const char* at = a.w + panel * s.panel;
    const float* x = rows.x;
    vec totals[2] = {};
    for (int64_t g = 0, left = a.k; g < s.groups; g++, left -= a.group) {
        const char* parts_at = at;
        vec values[2] = {};
        at += s.head;
        for (int64_t k = 0; k < a.group && k < left; k += STEP) {
            vec even[2] = {}, odd[2] = {};
#pragma GCC unroll 8
            for (int64_t i = 0; i < STEP / Source::PLACES; i++, at += WORDS, x += Source::PLACES)
                for (int h = 0; h < 2; h++) {
                    const char* here = at + h * (WORDS / 2);
                    __builtin_prefetch(here + FAR);
                    const uvec words = load_words(here);
                    each<Source::PLACES / 2>([&](auto j) INLINE_LAMBDA {
                        even[h] = fused(vec{} + x[2 * j()], codes.template number<2 * j()>(words), even[h]);
                        odd[h] = fused(vec{} + x[2 * j() + 1], codes.template number<2 * j() + 1>(words), odd[h]);
                    });
                }
            for (int h = 0; h < 2; h++) values[h] = values[h] + (even[h] + odd[h]);
        }
        GroupParts parts;
        parts.read(parts_at, Source::UNIT, a);
        add_group(totals, values, parts, rows.sums + g, a);
    }
    put(a, 0, 1, panel * PANEL, totals);
}
#endif
