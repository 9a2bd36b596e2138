// Multiply rows by a piece of a panel of quantized weights with vectors: by its codes, or by the numbers that were made of them.
#pragma once
#include "quantized_few.h"

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
