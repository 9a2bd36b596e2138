// Lay words of codes out in panels, as quantized.h has them: [words of an output][outputs of the panel], with room for each
// group's parts before its first word. `quantized_panels.py` writes the parts.
#include "simd.h"

struct PackWordsArgs {
    const uint32_t* words;  // [rows, count]: an output's codes, the input before in the lower bits
    const int64_t* order;   // [rows]: the output at each place, or null: as they are
    char* data;             // [panels, pitch]
    int64_t rows, count, panel, panels, pitch;
    int64_t steps, head, record;  // words of an output in a group; bytes before a group's words; bytes of a group
    int64_t paired;               // whether even inputs go to a word's lower half, and odd ones to the upper
    int64_t flip, minus;  // bits of each word that are inverted; then, what is subtracted from each byte, as a word
};

constexpr int64_t LINE_WORDS =
    16;  // of an output, a cache line: often a panel's rows share few sets of the first cache, so
         // that what isn't read at once is fetched again
constexpr int64_t OUTPUTS = 32;  // of the largest panel

// Join the lower halves of a word's four bytes into 16 bits.
static INLINE uint32_t joined(uint32_t halves) {
    halves = (halves | halves >> 4) & 0x00FF00FF;
    return (halves | halves >> 8) & 0xFFFF;
}

static INLINE uint32_t paired(uint32_t word) {
    return joined(word & 0x0F0F0F0F) | joined(word >> 4 & 0x0F0F0F0F) << 16;
}

// Subtract the bytes of m from those of x.
static INLINE uint32_t less(uint32_t x, uint32_t m) {
    constexpr uint32_t HIGH = 0x80808080;
    return ((x | HIGH) - (m & ~HIGH)) ^ ((x ^ ~m) & HIGH);
}

// Lay out words [first, first + some) of a panel.
template <bool PAIRED>
static INLINE void pack_line(const PackWordsArgs& a, int64_t panel, int64_t first, int64_t some) {
    uint32_t line[OUTPUTS][LINE_WORDS] = {};
    for (int64_t i = 0; i < a.panel; i++) {
        const int64_t place = panel * a.panel + i;
        if (place >= a.rows) break;
        const uint32_t* words = a.words + (a.order ? a.order[place] : place) * a.count + first;
        memcpy(line[i], words, size_t(some) * sizeof(uint32_t));
        for (int64_t w = 0; w < LINE_WORDS; w++) {
            const uint32_t word = less(line[i][w] ^ uint32_t(a.flip), uint32_t(a.minus));
            line[i][w] = PAIRED ? paired(word) : word;
        }
    }
    for (int64_t w = 0; w < some; w++) {
        const int64_t group = (first + w) / a.steps, step = (first + w) % a.steps;
        char* at = a.data + panel * a.pitch + group * a.record + a.head + step * a.panel * int64_t(sizeof(uint32_t));
        for (int64_t i = 0; i < a.panel; i++) memcpy(at + i * sizeof(uint32_t), &line[i][w], sizeof(uint32_t));
    }
}

EXPORT void glasshouse_pack_words(const PackWordsArgs* args) {
    const PackWordsArgs& a = *args;
#pragma omp parallel for schedule(static)
    for (int64_t panel = 0; panel < a.panels; panel++)
        for (int64_t first = 0; first < a.count; first += LINE_WORDS) {
            const int64_t left = a.count - first, some = left < LINE_WORDS ? left : LINE_WORDS;
            a.paired ? pack_line<true>(a, panel, first, some) : pack_line<false>(a, panel, first, some);
        }
}
