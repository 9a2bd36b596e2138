// Multiply rows by whole groups of numbers that were made of codes, with the rows' totals in registers: for pairs of bf16.
//
// Pairs are multiplied so fast that to read and write totals at each group's end takes as long as 6 of its places take. In
// registers there is room for those of 7 rows: 14 sums, 14 totals, and 4 more for the numbers and for x. What is added, and in
// which order, is as in piece_by_rows.
#pragma once
#include "quantized_pieces.h"

constexpr int MOST_KEPT_GROUPS = 64;  // of a piece

// Hold what makes a group's part of the sums of a panel: `other` is its zeros in negative units, or its offsets.
struct GroupParts {
    vec scale[2], other[2];
};
// Read the parts of a piece's groups, once for all its passes.
static void keep_parts(const Piece& piece, float unit, float added, const Sizes& s, const QuantizedArgs& a,
                       GroupParts* parts) {
    for (int64_t g = 0; g < piece.groups; g++)
        for (int h = 0; h < 2; h++) {
            const Parts one(piece.parts + g * s.record, h, unit, a, added);
            parts[g].scale[h] = one.scale;
            parts[g].other[h] = a.zeros ? one.zero * (-1 / unit) : one.offset;  // units are powers of 2
        }
}

// Multiply M rows by a piece of whole groups. groups: of a row. The other parameters are those of piece_by_rows. Each is a function
// of its own: the compiler finds registers for all that its loops need only if it looks at one of them.
template <class D, int M, bool ZEROS, bool OFFSETS>
__attribute__((noinline)) static void groups_by_rows(const typename D::number* x, int64_t stride,
                                                     const typename D::operand* numbers, const Piece& piece,
                                                     const GroupParts* parts, const char* ahead, int64_t ahead_by,
                                                     const Sums& sums, int64_t groups) {
    vec totals[M][2];
    if (piece.first == 0)
        each<2 * M>([&](auto i) INLINE_LAMBDA { totals[i() / 2][i() % 2] = vec{}; });
    else
        each<2 * M>([&](auto i) INLINE_LAMBDA { totals[i() / 2][i() % 2] = sums.totals[i()]; });
    const int64_t steps = piece.places / D::STEP;
    for (int64_t g = 0; g < piece.groups; g++, parts++) {
        vec now[M][2];
        const int64_t at = piece.first + g;
        asm("" : "+r"(groups));  // addresses of sums kept from group to group would take registers from the numbers
        if (ZEROS) {
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = parts->other[h] * sums.of_x[m * groups + at];
        } else if (sums.begins) {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = every(sums.begins[m * groups + at]);
        } else {
            for (int m = 0; m < M; m++) now[m][0] = now[m][1] = vec{};
        }
        for (int64_t k = 0; k < steps; k++, x += D::STEP, numbers += 2) {
            __builtin_prefetch(ahead);
            ahead += ahead_by;
            const typename D::operand two[2] = {numbers[0], numbers[1]};
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) now[m][h] = D::add(now[m][h], x + m * stride, two[h]);
        }
        for (int m = 0; m < M; m++)
            for (int h = 0; h < 2; h++) totals[m][h] = totals[m][h] + parts->scale[h] * now[m][h];
        if (OFFSETS)
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) totals[m][h] = totals[m][h] + parts->other[h] * sums.of_x[m * groups + at];
    }
    each<2 * M>([&](auto i) INLINE_LAMBDA { sums.totals[i()] = totals[i() / 2][i() % 2]; });
}
