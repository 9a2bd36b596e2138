// Define what products with quantized weights have in common: how a weight lies in memory, and what makes numbers of its codes.
//
// Codes lie in panels of two vectors of outputs, as plain weights do (linear_panels.cpp), and a panel's groups lie one after
// another:
//
//   W packed: [n / PANEL panels][k / group groups] of
//     scales [PANEL], zeros [PANEL] or none, offsets [PANEL] or none     in fp32, bf16 or fp16
//     codes  [group / places in a word][2 vectors][VEC words]            codes.h
//
// A weight is (value - zero) * scale + offset, so a group's part of a sum is made of whole numbers first:
//
//   sum over k of x w  =  scale * (sum of x value  -  zero * sum of x)  +  offset * sum of x
//
// A factor of all weights, which few formats have, multiplies the sum of all groups.
//
// Nothing is rounded but sums: x in bf16 and codes of 4 or 8 bits have exact products in fp32, and for one input that is 1 and
// no others the result is the weight itself, to the bit. (bf16 rounds a table's entries; codes.h.)
#pragma once
#include <vector>

#include "codes.h"

struct QuantizedArgs {
    const void* x;          // [m, k]
    const char* w;          // packed
    const float* table;     // [ENTRIES], for the kind TABLE4
    const void* bias;       // [n] or null
    void* y;                // [m, n], or [m, n / 2] of whole panels
    const int32_t* inputs;  // [k] or null: the code at place k is for input inputs[k]
    int64_t m, n, k, group, x_stride, y_stride;
    int64_t x_type, bias_type, y_type;
    int64_t kind, part_type, zeros, offsets;  // zeros, offsets: whether groups have them
    int64_t gated;  // y = silu(gate) * up: of each panel, the first vector is of gate, the second of up
    double zero;    // of all groups, beside their own
    double factor;  // multiplies all weights last
};

enum PartType : int64_t { PART_F32 = 0, PART_BF16 = 1, PART_F16 = 2 };

constexpr int64_t PANEL = 2 * VEC;
constexpr int64_t WORDS = PANEL * 4;  // bytes of one word for each output of a panel

static INLINE bool shifted(const QuantizedArgs& a) { return a.zeros || a.zero != 0; }
static INLINE int64_t part_size(const QuantizedArgs& a) { return a.part_type == PART_F32 ? 4 : 2; }
static INLINE vec load_part_of(const char* p, int64_t type, int64_t i) {
    if (type == PART_F32) return load((const float*)p + i);
    if (type == PART_BF16) return load((const bf16*)p + i);
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)((const uint16_t*)p + i)));
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)((const uint16_t*)p + i)));
#else
    return vec{};  // pack_quantized widens them for vectors of 4
#endif
}

// Hold sizes in memory that all panels have in common.
struct Sizes {
    int64_t head, record, panel;  // bytes: of a group's parts, of a group, of a panel
    int64_t groups, places;       // places in a word
    Sizes(const QuantizedArgs& a, int64_t places) : places(places) {
        head = PANEL * part_size(a) * (1 + (a.zeros != 0) + (a.offsets != 0));
        record = head + a.group / places * WORDS;
        groups = (a.k + a.group - 1) / a.group;
        panel = groups * head + a.k / places * WORDS;
    }
};

// Read what makes numbers of the codes of a group, for half `h` of a panel, and add a group's part to a sum. unit, added: of the
// numbers (codes.h); `zero` has what was added to them, too.
struct Parts {
    vec scale, zero, offset = {};
    Parts(const char* p, int64_t h, float unit, const QuantizedArgs& a, float added = 0) {
        const int64_t size = PANEL * part_size(a);
        scale = load_part_of(p, a.part_type, h * VEC) * unit;
        zero = vec{} + (float(a.zero) + added);
        if (a.zeros) zero = zero + load_part_of(p += size, a.part_type, h * VEC);
        if (a.offsets) offset = load_part_of(p += size, a.part_type, h * VEC);
    }
    // Add the group's part. values: its sum, from which the zero's part is gone. of_x: the sum of x over the group.
    INLINE vec add(vec total, vec values, const float* of_x, const QuantizedArgs& a) const {
        total = total + scale * values;
        return a.offsets ? total + offset * *of_x : total;
    }
};

// Hold rows of x as the products take them: numbers in the order of the codes.
template <class N>
struct Rows {
    N* x;
    int64_t stride;
    float* sums;    // of each row over each group: [rows, groups], or null if nothing needs them
    float* begins;  // what a group's sums of values begin with, for all outputs: [rows, groups], or null if that is 0
};

// Write `count` rows of a panel's outputs, from `column` on: of gated ones half as many. sums: [count][2].
__attribute__((noinline)) static void put(const QuantizedArgs& a, int64_t row, int64_t count, int64_t column,
                                          const vec* sums) {
    const int64_t lanes[2] = {a.n - column < VEC ? a.n - column : VEC, a.n - column < PANEL ? a.n - column - VEC : VEC};
    vec bias[2] = {};
    if (a.bias) {
        WITH_TYPE(
            a.bias_type, B, for (int h = 0; h < 2; h++) if (lanes[h] > 0) {
                const B* from = (const B*)a.bias + column + h * VEC;
                bias[h] = lanes[h] == VEC ? load(from) : load_part(from, lanes[h]);
            });
    }
    const vec factor = every(float(a.factor));
    const auto at = [&](int64_t i, int h) INLINE_LAMBDA { return fused(sums[2 * i + h], factor, bias[h]); };
    WITH_TYPE(
        a.y_type, Y, for (int64_t i = 0; i < count; i++) {
            Y* y = (Y*)a.y + (row + i) * a.y_stride + (a.gated ? column / 2 : column);
            if (a.gated) {
                store(y, silu(at(i, 0)) * at(i, 1));
            } else if (lanes[1] == VEC) {
                store(y, at(i, 0));
                store(y + VEC, at(i, 1));
            } else {
                for (int h = 0; h < 2; h++) store_part(y + h * VEC, at(i, h), lanes[h]);
            }
        });
}

// Keep memory for rows of x that can't be multiplied where they lie, and for their sums.
template <class N>
struct RowsMemory {
    std::vector<N> numbers;
    std::vector<float> sums, begins;
};

// Return where `count` rows of x lie, or will when each has been through `fill_row`. begin: sums of values begin with a group's
// sum of x times this.
template <class N, class X>
static Rows<N> place_rows(const X* x, int64_t count, RowsMemory<N>& memory, const QuantizedArgs& a, float begin = 0) {
    Rows<N> rows = {(N*)x, a.x_stride, nullptr, nullptr};
    if (a.inputs || sizeof(X) != sizeof(N)) {
        rows.stride = (a.k + VEC - 1) / VEC * VEC + VEC;
        if (int64_t(memory.numbers.size()) < count * rows.stride) memory.numbers.resize(count * rows.stride);
        rows.x = memory.numbers.data();
    }
    if (shifted(a) || a.offsets || begin != 0) {
        const int64_t groups = (a.k + a.group - 1) / a.group;
        if (int64_t(memory.sums.size()) < count * groups) memory.sums.resize(count * groups);
        rows.sums = memory.sums.data();
        if (begin != 0) {
            if (int64_t(memory.begins.size()) < count * groups) memory.begins.resize(count * groups);
            rows.begins = memory.begins.data();
        }
    }
    return rows;
}

// Write row `i`, if it doesn't lie there, and its sums: of VEC groups at once.
template <class N, class X>
__attribute__((noinline)) static void fill_row(const X* x, int64_t i, const Rows<N>& rows, const QuantizedArgs& a,
                                               float begin = 0) {
    N* row = rows.x + i * rows.stride;
    if (a.inputs || sizeof(X) != sizeof(N)) {
        const X* from = x + i * a.x_stride;
        int64_t k = 0;
        if (!a.inputs)
            for (; k + VEC <= a.k; k += VEC) store(row + k, load(from + k));
        for (; k < a.k; k++) store(row + k, to_float(from[a.inputs ? a.inputs[k] : k]));
    }
    if (!rows.sums) return;
    const int64_t groups = (a.k + a.group - 1) / a.group;
    for (int64_t g = 0; g < groups; g += VEC) {
        const int64_t some = groups - g < VEC ? groups - g : VEC;
        vec of_x[VEC] = {};
        for (int64_t j = 0; j < some; j++) {
            const N* from = row + (g + j) * a.group;
            const int64_t left = a.k - (g + j) * a.group, length = left < a.group ? left : a.group;
            int64_t k = 0;
            for (; k + VEC <= length; k += VEC) of_x[j] = of_x[j] + load(from + k);
            if (k < length) of_x[j] = of_x[j] + load_part(from + k, length - k);
        }
        sums(of_x);
        store_part(rows.sums + i * groups + g, of_x[0], some);
        if (rows.begins) store_part(rows.begins + i * groups + g, of_x[0] * begin, some);
    }
}

// Return rows of x, in this thread's own memory if they can't be multiplied where they lie.
template <class N, class X>
static Rows<N> rows_of(const X* x, int64_t count, const QuantizedArgs& a, float begin = 0) {
    static thread_local RowsMemory<N> memory;
    const Rows<N> rows = place_rows(x, count, memory, a, begin);
    if (rows.sums || memory.numbers.data() == rows.x)
        for (int64_t i = 0; i < count; i++) fill_row(x, i, rows, a, begin);
    return rows;
}

// Call body(std::integral_constant of the kind).
template <class Body>
static void with_kind(int64_t kind, Body body) {
    switch (kind) {
        case TABLE4:
            return body(std::integral_constant<int64_t, TABLE4>());
#if !defined(__AVX512F__)  // there a table costs nothing, and whole numbers are one
        case SIGNED4:
            return body(std::integral_constant<int64_t, SIGNED4>());
#endif
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
        case UNSIGNED4:
            return body(std::integral_constant<int64_t, UNSIGNED4>());
#endif
        case SIGNED8:
            return body(std::integral_constant<int64_t, SIGNED8>());
        case FLOAT8:
            return body(std::integral_constant<int64_t, FLOAT8>());
    }
}
