// Multiply many rows by quantized weights with vectors: the first of them leave the numbers of a piece of a panel in a cache for
// the others.
#pragma once
#include "quantized_kept.h"

constexpr int64_t FIRST_ROWS = REGISTERS * 3 / 8;  // of the pass that reads codes, at most
// Rows of x that a panel multiplies before the next panel, at most.
template <class D>
constexpr int64_t AT_ONCE = (D::KEPT_TOTALS ? 16 : 8) * FIRST_ROWS;
// Places that become numbers at once: as many as the first cache holds or, where totals are kept for many rows, the second.
constexpr int64_t CHUNK = 256, LONG_CHUNK = 1024;

// Call body(std::integral_constant of the height), which is one of those given (`lists_have_all` below).
template <int M, int... OTHERS, class Body>
static INLINE void with_height(std::integer_sequence<int, M, OTHERS...>, int64_t height, Body body) {
    if constexpr (sizeof...(OTHERS) > 0) {
        if (height != M) return with_height(std::integer_sequence<int, OTHERS...>(), height, body);
    }
    body(std::integral_constant<int, M>());
}
template <int... HEIGHTS>
constexpr bool contains(std::integer_sequence<int, HEIGHTS...>, int64_t height) {
    return ((height == HEIGHTS) || ...);
}
// For the first pass there are fewer heights to compile: of more than 8 rows, even ones.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 registers
typedef std::integer_sequence<int, 12, 10, 8, 7, 6, 5> FirstHeights;
typedef std::integer_sequence<int, 12, 11, 10, 9, 8, 7, 6, 5, 4> OtherHeights;
#else
typedef std::integer_sequence<int, 6, 5, 4> FirstHeights;
typedef std::integer_sequence<int, 6, 5, 4, 3> OtherHeights;
#endif
typedef std::integer_sequence<int, 7, 6, 5, 4> KeptHeights;
template <class D>
using Heights = std::conditional_t<D::KEPT_TOTALS, KeptHeights, OtherHeights>;
template <class D>
constexpr int64_t ROWS = D::KEPT_TOTALS ? 7 : FIRST_ROWS;  // of another pass, at most

// Describe the passes of `count` rows: as few as possible, all of nearly the same height, the first perhaps higher. rows: of
// another pass, at most.
struct Passes {
    int64_t others = 0, first = 0;
    constexpr Passes(int64_t count, int64_t rows) {
        if (count > FIRST_ROWS) others = (count - FIRST_ROWS + rows - 1) / rows;
        if (first_of(count, rows) > count) others = 1;  // no first pass has this height
        first = first_of(count, rows);
    }
    constexpr int64_t first_of(int64_t count, int64_t rows) const {
        const int64_t least = count - others * rows, even = (count + others) / (others + 1),
                      height = least > even ? least : even;
        return height > 8 ? (height + 1) & ~1 : height;
    }
    // Return the height of a pass. left: the rows of this pass and of those after it.
    constexpr int64_t height(int64_t pass, int64_t left) const {
        return pass == 0 ? first : (left + others - pass) / (others + 1 - pass);
    }
};
// Return whether the lists have the height of each pass, for any number of rows that `many` multiplies, and all rows have one.
template <class D>
constexpr bool lists_have_all() {
    for (int64_t count = MOST_DIRECT + 1; count <= AT_ONCE<D>; count++) {
        const Passes passes(count, ROWS<D>);
        int64_t left = count;
        for (int64_t pass = 0; pass <= passes.others; pass++) {
            const int64_t height = passes.height(pass, left);
            if (pass == 0 ? !contains(FirstHeights(), height) : !contains(Heights<D>(), height)) return false;
            left -= height;
        }
        if (left != 0) return false;
    }
    return true;
}

// Multiply rows by the numbers of a piece. parts: of its groups, null if they are not kept.
template <class D>
__attribute__((noinline)) static void by_kept(int64_t height, const typename D::number* x, int64_t stride,
                                              const typename D::operand* numbers, const Piece& piece,
                                              const GroupParts* parts, const char* ahead, int64_t ahead_by, float unit,
                                              float added, const Sums& sums, const Sizes& s, const QuantizedArgs& a) {
    with_height(Heights<D>(), height, [&](auto m) INLINE_LAMBDA {
        if constexpr (D::KEPT_TOTALS) {
            if (parts && a.zeros)
                return groups_by_rows<D, m(), true, false>(x, stride, numbers, piece, parts, ahead, ahead_by, sums,
                                                           s.groups);
            if (parts && a.offsets)
                return groups_by_rows<D, m(), false, true>(x, stride, numbers, piece, parts, ahead, ahead_by, sums,
                                                           s.groups);
            if (parts)
                return groups_by_rows<D, m(), false, false>(x, stride, numbers, piece, parts, ahead, ahead_by, sums,
                                                            s.groups);
        }
        piece_by_rows<D, m()>(x, stride, FromKept<D>{numbers}, piece, ahead, ahead_by, unit, added, sums, s, a);
    });
}

// Multiply `count` rows, more than MOST_DIRECT, by one panel, a piece at a time. The first pass makes numbers of the codes and keeps
// them for the others. Each prefetches its share of the next piece, and at the last piece writes its outputs: those of all rows at
// once would wait for each other's lines.
template <class D, int64_t KIND>
static void many(const Rows<typename D::number>& rows, int64_t row, int64_t count, int64_t panel,
                 const QuantizedArgs& a) {
    typedef typename D::template Source<KIND> Source;
    static_assert(lists_have_all<D>(), "a pass has a height that its list lacks: rows would be left out or made up");
    constexpr float UNIT = Source::UNIT, ADDED = Source::ADDED;
    const Sizes s(a, Source::PLACES);
    const Source codes(a.table);
    constexpr int64_t MOST = D::KEPT_TOTALS ? LONG_CHUNK : CHUNK;
    typename D::operand numbers[MOST / D::STEP * 2];
    vec values[AT_ONCE<D> * 2], totals[AT_ONCE<D> * 2];
    GroupParts parts[D::KEPT_TOTALS ? MOST_KEPT_GROUPS : 1];
    const Passes passes(count, ROWS<D>);
    const int64_t num = passes.others + 1, chunk = passes.others > 2 ? MOST : CHUNK, whole = a.k / a.group;
    int64_t most = chunk / a.group;  // groups of a piece
    const bool kept = D::KEPT_TOTALS && num > 1 && most > 0 && !(a.zeros && a.offsets);
    if (kept && most > MOST_KEPT_GROUPS) most = MOST_KEPT_GROUPS;
    // Where totals are kept in registers, those of the other passes begin there.
    for (int64_t i = 0; i < 2 * (kept ? passes.first : count); i++) totals[i] = vec{};
    for (int64_t k = 0; k < a.k;) {
        const int64_t g = k / a.group, within = k % a.group,
                      left = a.k - k < a.group - within ? a.k - k : a.group - within;
        const char* group = a.w + panel * s.panel + g * s.record;
        Piece piece = {g, 1, left < chunk ? left : chunk, within == 0, left <= chunk, group, nullptr, 0};
        if (most > 0 && g < whole) piece.groups = most < whole - g ? most : whole - g;
        piece.codes = group + s.head + within / Source::PLACES * WORDS;
        piece.bytes = piece.groups > 1 ? piece.groups * s.record : piece.places / Source::PLACES * WORDS + s.head;
        if (kept) keep_parts(piece, UNIT, ADDED, s, a, parts);
        const int64_t steps = piece.groups * piece.places / D::STEP,
                      every = (piece.bytes + num * steps - 1) / (num * steps);
        const char* ahead = piece.codes + piece.bytes;
        for (int64_t i = 0, pass = 0, height; pass < num; i += height, pass++, ahead += steps * every) {
            height = passes.height(pass, count - i);
            const typename D::number* x = rows.x + i * rows.stride + k;
            const Sums sums = {values + 2 * i, totals + 2 * i, rows.sums ? rows.sums + i * s.groups : nullptr,
                               rows.begins ? rows.begins + i * s.groups : nullptr};
            if (pass == 0)
                with_height(FirstHeights(), height, [&](auto m) INLINE_LAMBDA {
                    piece_by_rows<D, m()>(x, rows.stride, FromCodes<D, Source>{codes, nullptr, numbers}, piece, ahead,
                                          every, UNIT, ADDED, sums, s, a);
                });
            else
                by_kept<D>(height, x, rows.stride, numbers, piece, kept ? parts : nullptr, ahead, every, UNIT, ADDED,
                           sums, s, a);
            if (g + piece.groups == s.groups && piece.ends) put(a, row + i, height, panel * PANEL, sums.totals);
        }
        k += piece.groups * piece.places;
    }
}
