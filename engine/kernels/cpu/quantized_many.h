// Multiply many rows by quantized weights with vectors: the first of them leave the numbers of CHUNK places in the first cache
// for the others.
#pragma once
#include "quantized_few.h"

constexpr int64_t ROWS = REGISTERS * 3 / 8;
constexpr int64_t AT_ONCE = 8 * ROWS;  // rows of x that a panel multiplies before the next panel
constexpr int64_t CHUNK = 256;         // places that are expanded at once

// Describe a piece of a panel whose numbers are kept: several whole groups, or a part of one.
struct Piece {
    int64_t first, groups;  // the groups, or the group
    int64_t places;         // of a group, here
    bool begins, ends;      // whether it has a group's first place, and its last
    const char* parts;      // of the first group
    const char* codes;      // of the first group, here
    int64_t bytes;          // to the next piece
};

// Read the numbers of a piece from its codes, and write them to `kept`.
template <class D, class Source>
struct FromCodes {
    static constexpr int STEPS = Source::PLACES / D::STEP;  // in a word
    const Source& codes;
    const char* at;
    typename D::operand* kept;
    void group(const char* start) { at = start; }
    template <class Multiply>
    INLINE void word(Multiply multiply) {
        const uvec lower = load_words(at), upper = load_words(at + WORDS / 2);
        at += WORDS;
        each<STEPS>([&](auto j) INLINE_LAMBDA {
            const typename D::operand two[2] = {D::template get<j()>(codes, lower), D::template get<j()>(codes, upper)};
            kept[2 * j()] = two[0], kept[2 * j() + 1] = two[1];
            multiply(two, j() * D::STEP);
        });
        kept += 2 * STEPS;
    }
};
// Read them where they were kept.
template <class D>
struct FromKept {
    static constexpr int STEPS = 1;
    const typename D::operand* kept;
    void group(const char*) {}
    template <class Multiply>
    INLINE void word(Multiply multiply) {
        const typename D::operand two[2] = {kept[0], kept[1]};
        multiply(two, 0);
        kept += 2;
    }
};

// Hold the sums of rows: of the group that has begun, and of all groups before.
struct Sums {
    vec *values, *totals;        // [rows][2]
    const float *of_x, *begins;  // [rows, groups], or null: of Rows
};

// Multiply M rows by a piece. Prefetch `ahead_by` bytes from `ahead` on in each step. unit, added: of the numbers.
template <class D, int M, class From>
static INLINE void piece_by_rows(const typename D::number* x, int64_t stride, From from, const Piece& piece,
                                 const char* ahead, int64_t ahead_by, float unit, float added, const Sums& sums,
                                 const Sizes& s, const QuantizedArgs& a) {
    constexpr int64_t PLACES = From::STEPS * D::STEP;
    for (int64_t g = 0; g < piece.groups; g++) {
        vec now[M][2];
        const int64_t at = piece.first + g;
        if (!piece.begins) {
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = sums.values[2 * m + h];
        } else if (a.zeros) {
            const vec zeros[2] = {Parts(piece.parts + g * s.record, 0, unit, a, added).zero,
                                  Parts(piece.parts + g * s.record, 1, unit, a, added).zero};
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = zeros[h] * (sums.of_x[m * s.groups + at] * (-1 / unit));
        } else if (sums.begins) {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = every(sums.begins[m * s.groups + at]);
        } else {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = vec{};
        }
        from.group(piece.codes + g * s.record);
        for (int64_t k = 0; k < piece.places; k += PLACES, x += PLACES)
            from.word([&](const typename D::operand* two, int64_t place) INLINE_LAMBDA {
                __builtin_prefetch(ahead);
                ahead += ahead_by;
                for (int m = 0; m < M; m++)
                    for (int h = 0; h < 2; h++) now[m][h] = D::add(now[m][h], x + m * stride + place, two[h]);
            });
        if (piece.ends) {
            const Parts parts[2] = {{piece.parts + g * s.record, 0, unit, a}, {piece.parts + g * s.record, 1, unit, a}};
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = sums.totals[2 * m + h] + parts[h].scale * now[m][h];
            if (a.offsets)
                for (int m = 0; m < M; m++)
                    for (int h = 0; h < 2; h++) now[m][h] = now[m][h] + parts[h].offset * sums.of_x[m * s.groups + at];
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) sums.totals[2 * m + h] = now[m][h];
        } else {
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) sums.values[2 * m + h] = now[m][h];
        }
    }
}
// Choose the product of `height` rows: one of those given, the last if none is.
template <class D, int M, int... OTHERS, class... Rest>
static INLINE void piece_by(std::integer_sequence<int, M, OTHERS...>, int64_t height, const Rest&... rest) {
    if constexpr (sizeof...(OTHERS) > 0) {
        if (height != M) return piece_by<D>(std::integer_sequence<int, OTHERS...>(), height, rest...);
    }
    piece_by_rows<D, M>(rest...);
}
// For the first pass there are fewer heights to compile: of more than 8 rows, even ones.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
typedef std::integer_sequence<int, 12, 10, 8, 7, 6, 5> FirstHeights;
typedef std::integer_sequence<int, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1> Heights;
#else
typedef std::integer_sequence<int, 6, 5, 4, 3> FirstHeights;
typedef std::integer_sequence<int, 6, 5, 4, 3, 2, 1> Heights;
#endif
static INLINE int64_t first_height(int64_t height) { return height > 8 ? height & ~1 : height; }
template <class D, class... Rest>
__attribute__((noinline)) static void piece_again(const Rest&... rest) {
    piece_by<D>(Heights(), rest...);
}

// Multiply `count` rows by one panel, a piece of up to CHUNK places at a time: as few passes over it as possible, all of
// nearly the same height. The first makes numbers of the codes and keeps them for the others. Each prefetches its share of
// the next piece.
template <class D, int64_t KIND>
static void many(const Rows<typename D::number>& rows, int64_t row, int64_t count, int64_t panel,
                 const QuantizedArgs& a) {
    typedef typename D::template Source<KIND> Source;
    constexpr float UNIT = Source::UNIT, ADDED = Source::ADDED;
    const Sizes s(a, Source::PLACES);
    const Source codes(a.table);
    typename D::operand numbers[CHUNK / D::STEP * 2];
    vec values[AT_ONCE * 2], totals[AT_ONCE * 2];
    for (int64_t i = 0; i < 2 * count; i++) totals[i] = vec{};
    const int64_t passes = first_height(count) == count || count > ROWS ? (count + ROWS - 1) / ROWS : 2,
                  whole = a.k / a.group;
    for (int64_t k = 0; k < a.k;) {
        const int64_t g = k / a.group, within = k % a.group,
                      left = a.k - k < a.group - within ? a.k - k : a.group - within;
        const char* group = a.w + panel * s.panel + g * s.record;
        Piece piece = {g, 1, left < CHUNK ? left : CHUNK, within == 0, left <= CHUNK, group, nullptr, 0};
        if (a.group <= CHUNK && g < whole) piece.groups = CHUNK / a.group < whole - g ? CHUNK / a.group : whole - g;
        piece.codes = group + s.head + within / Source::PLACES * WORDS;
        piece.bytes = piece.groups > 1 ? piece.groups * s.record : piece.places / Source::PLACES * WORDS + s.head;
        const int64_t steps = piece.groups * piece.places / D::STEP,
                      every = (piece.bytes + passes * steps - 1) / (passes * steps);
        const char* ahead = piece.codes + piece.bytes;
        for (int64_t i = 0, pass = 0, height; pass < passes; i += height, pass++, ahead += steps * every) {
            height = (count - i + passes - pass - 1) / (passes - pass);
            if (pass == 0) height = first_height(height);
            const typename D::number* x = rows.x + i * rows.stride + k;
            const Sums sums = {values + 2 * i, totals + 2 * i, rows.sums ? rows.sums + i * s.groups : nullptr,
                               rows.begins ? rows.begins + i * s.groups : nullptr};
            if (pass == 0)
                piece_by<D>(FirstHeights(), height, x, rows.stride, FromCodes<D, Source>{codes, nullptr, numbers},
                            piece, ahead, every, UNIT, ADDED, sums, s, a);
            else
                piece_again<D>(height, x, rows.stride, FromKept<D>{numbers}, piece, ahead, every, UNIT, ADDED, sums, s,
                               a);
        }
        k += piece.groups * piece.places;
    }
    put(a, row, count, panel * PANEL, totals);
}
