// Draw the tokens of sequences that a grammar holds: `worker/sampling/exact_draw.py` defines the draw, in plain torch.
//
// A mask often allows a few tokens of many thousands. Only what it allows is read, in words of 32 tokens, and a row takes one
// pass for its greatest logit, one for the exponentials, one for the weights and one for the token. Weights are integers, and a
// token that isn't allowed adds an exact zero to the sum of exponentials. So a mask gives the same token as logits of minus infinity.
#include <algorithm>
#include <functional>
#include <vector>

#include "simd.h"

constexpr int WORD = 32;                  // tokens
constexpr float ONE = 1073741824;         // 2^30, the weight of probability 1
constexpr int64_t TOGETHER = 256 * 1024;  // logits from which on rows are divided among threads
constexpr int64_t NO_TOKEN = -1;
enum Field { LINE, SEAT, SEED, POSITION, ONLY, FIELDS };  // the lines of `draws`
enum Parameter { TEMPERATURE, TOP_P, MIN_P };

struct DrawAllowedArgs {
    const float* logits;       // [lines, width]
    const int64_t* draws;      // [FIELDS, count]; ONLY: the only token that is allowed, or NO_TOKEN
    const int32_t* masks;      // [seats, words], bit t % 32 of word t / 32 is token t's; null: all are allowed
    const double* parameters;  // [seats, parameters]
    const int64_t* top_k;      // [seats], at least 1
    int64_t* out;              // [count]; NO_TOKEN: the logits aren't finite, or nothing is allowed
    int64_t count, width, words, parameters_width;
};

// The first word of Philox's block whose key is the seed and whose counter is the position: philox.py.
static uint32_t random_word(uint64_t seed, uint64_t position) {
    uint32_t c0 = uint32_t(position), c1 = uint32_t(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t left = uint64_t(c0) * 0xD2511F53u, right = uint64_t(c2) * 0xCD9E8D57u;
        c0 = uint32_t(right >> 32) ^ c1 ^ k0, c2 = uint32_t(left >> 32) ^ c3 ^ k1;
        c1 = uint32_t(right), c3 = uint32_t(left);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c0;
}

// One row, and how to go through its allowed logits.
struct Row {
    const float* logits;
    const uint32_t* mask;  // null: all are allowed
    int64_t width;
    float temperature;

    // Call body(place, vector of logits over the temperature, -1 in lanes that count) for each vector with an allowed token.
    template <class Body>
    INLINE void allowed(Body body) const {
        uvec numbers;
        for (int lane = 0; lane < VEC; lane++) numbers[lane] = lane;
        for (int64_t start = 0; start < width; start += WORD) {
            uint32_t word = mask ? mask[start / WORD] : 0xFFFFFFFFu;
            if (width - start < WORD) word &= (1u << (width - start)) - 1;
            for (int64_t i = start; word; i += VEC, word = VEC < WORD ? word >> (VEC % WORD) : 0) {
                ivec counts = (ivec)((((uvec{} + word) >> numbers) & 1) == 1);
                body(i, (width - i < VEC ? load_part(logits + i, width - i) : load(logits + i)) / temperature, counts);
            }
        }
    }
};

// A key that is greater for a greater weight, and of equal weights for the lower id.
static uint64_t rank(int32_t weight, int64_t id) { return uint64_t(weight) << 32 | (0xFFFFFFFFu - uint32_t(id)); }

// The rank of the last token that min_p, top_k and top_p keep. ranks: of all tokens with a weight; reordered.
static uint64_t last_kept(std::vector<uint64_t>& ranks, int64_t top_k, double top_p, double min_p) {
    auto floor = uint64_t(ceil((*std::max_element(ranks.begin(), ranks.end()) >> 32) * min_p));
    auto light = [&](uint64_t one) { return one >> 32 < floor; };
    ranks.erase(std::remove_if(ranks.begin(), ranks.end(), light), ranks.end());
    if (top_k < int64_t(ranks.size())) {
        std::nth_element(ranks.begin(), ranks.begin() + top_k - 1, ranks.end(), std::greater<uint64_t>());
        ranks.resize(top_k);
    }
    if (top_p >= 1) return *std::min_element(ranks.begin(), ranks.end());
    int64_t total = 0, before = 0;
    for (uint64_t one : ranks) total += int64_t(one >> 32);
    auto enough = int64_t(ceil(double(total) * top_p));
    std::make_heap(ranks.begin(), ranks.end());
    for (auto end = ranks.end();; --end) {  // the greatest first
        before += int64_t(ranks.front() >> 32);
        if (before >= enough) return ranks.front();
        std::pop_heap(ranks.begin(), end);
    }
}

// Add up the lanes.
static INLINE int32_t total_of(ivec w) {
    int32_t total = 0;
    for (int lane = 0; lane < VEC; lane++) total += w[lane];
    return total;
}

// Return whether every allowed logit is a number and the greatest, which `best` becomes, isn't infinite.
static bool is_finite(const Row& row, float& best) {
    vec top = vec{} - INFINITY;
    ivec strange = {};  // -1 in a lane that met a NaN
    row.allowed([&](int64_t, vec v, ivec counts) INLINE_LAMBDA {
        strange |= (ivec)(v != v) & counts;
        top = vmax(counts ? v : vec{} - INFINITY, top);
    });
    best = largest(top);
    return best > -INFINITY && best < INFINITY && !total_of(strange);
}

// The first token with the greatest logit.
static int64_t greatest(const Row& row, float best) {
    int64_t found = NO_TOKEN;
    row.allowed([&](int64_t i, vec v, ivec counts) INLINE_LAMBDA {
        if (found >= 0) return;
        ivec equal = (ivec)(v == best) & counts;
        for (int lane = VEC - 1; lane >= 0; lane--) found = equal[lane] ? i + lane : found;
    });
    return found;
}

// One token, in proportion to the weights that the cuts leave. word: its random number.
static int64_t draw(const Row& row, float best, uint32_t word, int64_t top_k, double top_p, double min_p) {
    static thread_local std::vector<float> exponentials;
    static thread_local std::vector<int32_t> weights;
    static thread_local std::vector<uint64_t> ranks;
    exponentials.resize(row.width + VEC), weights.resize(row.width + VEC);
    auto weights_at = [&](int64_t i) INLINE_LAMBDA {
        ivec w;
        memcpy(&w, &weights[i], sizeof w);
        return w;
    };
    auto set_weights = [&](int64_t i, ivec w) INLINE_LAMBDA { memcpy(&weights[i], &w, sizeof w); };
    vec sums = {};
    row.allowed([&](int64_t i, vec v, ivec counts) INLINE_LAMBDA {
        vec e = counts ? exp(v - best) : vec{};
        sums = sums + e;
        store(&exponentials[i], e);
    });
    const float all = sum(sums);
    const bool cuts = top_k < row.width || top_p < 1 || min_p > 0;
    ivec totals = {};
    ranks.clear();
    row.allowed([&](int64_t i, vec, ivec) INLINE_LAMBDA {
        ivec w = __builtin_convertvector(load(&exponentials[i]) / all * ONE + 0.5f, ivec);
        totals += w;
        set_weights(i, w);
        for (int lane = 0; cuts && lane < VEC; lane++)
            if (w[lane]) ranks.push_back(rank(w[lane], i + lane));
    });
    if (cuts) {
        const uint64_t last = last_kept(ranks, top_k, top_p, min_p);
        totals = ivec{};
        row.allowed([&](int64_t i, vec, ivec) INLINE_LAMBDA {
            ivec w = weights_at(i);
            for (int lane = 0; lane < VEC; lane++) w[lane] = rank(w[lane], i + lane) < last ? 0 : w[lane];
            totals += w;
            set_weights(i, w);
        });
    }
    int32_t rest = int32_t(int64_t(word) * total_of(totals) >> 32);  // weight before the token, from here on
    int64_t found = NO_TOKEN;
    row.allowed([&](int64_t i, vec, ivec) INLINE_LAMBDA {
        if (found >= 0) return;
        ivec w = weights_at(i);
        int32_t here = total_of(w);
        if (rest >= here) {
            rest -= here;
            return;
        }
        int lane = 0;
        while (rest >= w[lane]) rest -= w[lane++];
        found = i + lane;
    });
    return found;
}

EXPORT void glasshouse_draw_allowed(const DrawAllowedArgs* a) {
    auto field = [&](Field which) { return a->draws + which * a->count; };
#pragma omp parallel for schedule(dynamic, 1) if (a->count > 1 && a->count * a->width > TOGETHER)
    for (int64_t i = 0; i < a->count; i++) {
        const int64_t seat = field(SEAT)[i], only = field(ONLY)[i];
        const double* parameters = a->parameters + seat * a->parameters_width;
        const float temperature = float(parameters[TEMPERATURE]);
        const int32_t* mask = a->masks ? a->masks + seat * a->words : nullptr;
        Row row{a->logits + field(LINE)[i] * a->width, (const uint32_t*)mask, a->width, temperature ? temperature : 1};
        float best;
        if (only != NO_TOKEN) {
            a->out[i] = std::isfinite(row.logits[only]) ? only : NO_TOKEN;
        } else if (!is_finite(row, best)) {
            a->out[i] = NO_TOKEN;
        } else if (!temperature) {
            a->out[i] = greatest(row, best);
        } else {
            uint32_t word = random_word(uint64_t(field(SEED)[i]), uint64_t(field(POSITION)[i]));
            a->out[i] = draw(row, best, word, a->top_k[seat], parameters[TOP_P], parameters[MIN_P]);
        }
    }
}
