// Draw tokens from logits: `worker/sampling/exact_draw.py` defines the draw, in plain torch.
//
// A grammar's mask often allows a few tokens of many thousands. Only what it allows is read, in words of 32 tokens; the weights
// of what was read lie side by side, and all further passes go over these. Weights are integers, and a token that isn't allowed
// adds an exact zero to the sum of exponentials. So a mask gives the same token as logits of minus infinity.
#include <algorithm>
#include <vector>

#include "simd.h"

constexpr int WORD = 32;                // tokens
constexpr float ONE = 1073741824;       // 2^30, the weight of probability 1
constexpr int64_t TOGETHER = 8 * 1024;  // logits from which on rows are divided among threads
constexpr int64_t NO_TOKEN = -1;
enum Field { LINE, SEAT, SEED, POSITION, ONLY, MASK, FIELDS };  // the lines of `draws`
enum Parameter { TEMPERATURE, TOP_P, MIN_P };

struct DrawAllowedArgs {
    const float* logits;  // [lines, width]
    // [FIELDS, count]; ONLY: the only token that is allowed, or NO_TOKEN; MASK: -1: all are allowed
    const int64_t* draws;
    const int32_t* masks;      // [*, words], bit t % 32 of word t / 32 is token t's
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

    // Call body(place, vector of logits, -1 in lanes that count) for each vector with an allowed token.
    template <class Body>
    INLINE void allowed(Body body) const {
        int64_t start = 0;
        for (; !mask && start + VEC <= width; start += VEC) body(start, load(logits + start), ivec{} - 1);
        uvec numbers;
        for (int lane = 0; lane < VEC; lane++) numbers[lane] = lane;
        for (; start < width; start += WORD) {
            uint32_t word = mask ? mask[start / WORD] : 0xFFFFFFFFu;
            if (width - start < WORD) word &= (1u << (width - start)) - 1;
            for (int64_t i = start; word; i += VEC, word = VEC < WORD ? word >> (VEC % WORD) : 0) {
                ivec counts = (ivec)((((uvec{} + word) >> numbers) & 1) == 1);
                body(i, width - i < VEC ? load_part(logits + i, width - i) : load(logits + i), counts);
            }
        }
    }
};

// Return whether every allowed logit is a number and the greatest, which `best` becomes, isn't infinite.
static bool is_finite(const Row& row, float& best) {
    vec top = vec{} - INFINITY;
    ivec strange = {};  // -1 in a lane that met a NaN
    row.allowed([&](int64_t, vec v, ivec counts) INLINE_LAMBDA {
        strange |= (ivec)(v != v) & counts;
        top = vmax(counts ? v : vec{} - INFINITY, top);
    });
    best = largest(top);
    return best > -INFINITY && best < INFINITY && !sum(strange);
}

// The first token with the greatest logit.
static int64_t greatest(const Row& row, float best) {
    int64_t found = NO_TOKEN;
    row.allowed([&](int64_t i, vec v, ivec counts) INLINE_LAMBDA {
        ivec equal = (ivec)(v == best) & counts;
        if (found >= 0 || !sum(equal)) return;
        for (int lane = VEC - 1; lane >= 0; lane--) found = equal[lane] ? i + lane : found;
    });
    return found;
}

// The weights of one row's tokens, by id, without vectors of which none is allowed. Their sum is below 2^31.
class Weights {
    std::vector<int32_t> weights;  // first the exponentials, as floats
    std::vector<int32_t> starts;   // of each vector, the id of its first token
    int64_t size = 0;              // vectors

    template <class V = ivec>
    INLINE V at(int64_t i) const {
        V v;
        memcpy(&v, &weights[i * VEC], sizeof v);
        return v;
    }
    template <class V>
    INLINE void set(int64_t i, V v) {
        memcpy(&weights[i * VEC], &v, sizeof v);
    }

    // Add up what `of` makes of each vector.
    template <class Of>
    INLINE int32_t total(Of of) const {
        ivec totals = {};
        for (int64_t i = 0; i < size; i++) totals += of(at(i));
        return sum(totals);
    }

    // The greatest weight up to `high` for which the tokens of at least that weight come to `wanted`: those of `low` do.
    // value: what a vector of weights comes to. Each pass tries three, and leaves a quarter of the weights between.
    template <class Value>
    INLINE int32_t border(int32_t low, int32_t high, int64_t wanted, Value value) const {
        while (low < high) {
            const int32_t step = (high - low) / 4 + 1;
            int32_t tried[3];
            for (int which = 0; which < 3; which++)
                tried[which] = int32_t(std::min(int64_t(high), low + int64_t(step) * (which + 1)));
            ivec first = {}, second = {}, third = {};
            for (int64_t i = 0; i < size; i++) {
                ivec w = at(i), v = value(w);
                first += v & (w >= tried[0]), second += v & (w >= tried[1]), third += v & (w >= tried[2]);
            }
            const int32_t found[3] = {sum(first), sum(second), sum(third)};
            for (int which = 2; which >= 0; which--) {
                if (found[which] >= wanted) {
                    low = tried[which];
                    break;
                }
                high = tried[which] - 1;
            }
        }
        return low;
    }

    // Keep the tokens of more than `least`, and of that weight the first `ties`. Vectors with none of them are dropped.
    void keep(int32_t least, int64_t ties) {
        int64_t kept = 0;
        for (int64_t i = 0; i < size; i++) {
            ivec w = at(i);
            if (!sum(w >= least)) continue;
            ivec equal = w == least;
            int32_t here = -sum(equal);
            for (int lane = VEC - 1; here > ties && lane >= 0; lane--) here += equal[lane], equal[lane] = 0;
            ties -= here;
            starts[kept] = starts[i];
            set(kept++, w & ((w > least) | equal));
        }
        size = kept;
    }

  public:
    // Compute the weights of a row's allowed tokens: step 1. best: the greatest of its logits over the temperature.
    void compute(const Row& row, float best, float temperature) {
        const size_t most = (row.width + WORD - 1) / WORD * (WORD / VEC);
        if (starts.size() < most) weights.resize(most * VEC), starts.resize(most);
        size = 0;
        row.allowed([&](int64_t i, vec v, ivec counts) INLINE_LAMBDA {
            starts[size] = int32_t(i);
            set(size++, counts ? exp(v / temperature - best) : vec{});
        });
        vec sums = {};  // of sums of 64 vectors: one long sum would round too much of a large vocabulary away
        for (int64_t i = 0; i < size;) {
            vec some = {};
            for (const int64_t end = std::min<int64_t>(size, i + 64); i < end; i++) some = some + at<vec>(i);
            sums = sums + some;
        }
        const float all = sum(sums);
        for (int64_t i = 0; i < size; i++) set(i, __builtin_convertvector(at<vec>(i) / all * ONE + 0.5f, ivec));
    }

    // Cut tokens by min_p, top_k and top_p: step 2.
    void cut(int64_t top_k, double top_p, double min_p) {
        const auto one = [](ivec) INLINE_LAMBDA { return ivec{} + 1; };
        const auto itself = [](ivec w) INLINE_LAMBDA { return w; };
        const auto count_from = [&](int32_t from) { return -total([&](ivec w) INLINE_LAMBDA { return w >= from; }); };
        ivec tops = {};
        for (int64_t i = 0; i < size; i++) tops = vmax(at(i), tops);
        const int32_t top = largest(tops), floor = std::max(1, int32_t(ceil(top * min_p)));
        if (top_k < count_from(floor)) {
            const int32_t least = border(floor, top, top_k, one);
            keep(least, top_k - count_from(least + 1));
        } else {
            keep(floor, INT64_MAX);
        }
        if (top_p < 1) {
            const auto enough = int64_t(ceil(double(total(itself)) * top_p));
            const int32_t least = border(1, top, enough, itself);
            const int64_t above = total([&](ivec w) INLINE_LAMBDA { return w & (w > least); });
            keep(least, std::max(int64_t(1), (enough - above + least - 1) / least));
        }
    }

    // Draw a token in proportion to the weights: step 3. word: its random number.
    int64_t draw(uint32_t word) const {
        constexpr int64_t BLOCK = 32;  // vectors, whose weights are added up before they are compared
        const int64_t all = total([](ivec w) INLINE_LAMBDA { return w; });
        int32_t rest = int32_t(word * all >> 32);  // before the token
        for (int64_t start = 0; start < size; start += BLOCK) {
            const int64_t end = std::min(size, start + BLOCK);
            ivec totals = {};
            for (int64_t i = start; i < end; i++) totals += at(i);
            const int32_t here = sum(totals);
            if (rest >= here) {
                rest -= here;
                continue;
            }
            for (const int32_t* w = &weights[start * VEC];; w++) {
                if (rest < *w) return starts[(w - &weights[0]) / VEC] + (w - &weights[0]) % VEC;
                rest -= *w;
            }
        }
        return NO_TOKEN;
    }
};

EXPORT void glasshouse_draw_allowed(const DrawAllowedArgs* a) {
    auto field = [&](Field which) { return a->draws + which * a->count; };
#pragma omp parallel for schedule(dynamic, 1) if (a->count > 1 && a->count * a->width > TOGETHER)
    for (int64_t i = 0; i < a->count; i++) {
        static thread_local Weights weights;
        const int64_t seat = field(SEAT)[i], only = field(ONLY)[i], mask = field(MASK)[i];
        const double* parameters = a->parameters + seat * a->parameters_width;
        const float temperature = float(parameters[TEMPERATURE]);
        const auto* bits = mask < 0 ? nullptr : (const uint32_t*)a->masks + mask * a->words;
        const Row row{a->logits + field(LINE)[i] * a->width, bits, a->width};
        float best;
        a->out[i] = NO_TOKEN;
        if (only != NO_TOKEN) {
            if (std::isfinite(row.logits[only])) a->out[i] = only;
        } else if (!is_finite(row, best)) {
            continue;
        } else if (!temperature) {
            a->out[i] = greatest(row, best);
        } else if (std::isfinite(best /= temperature)) {
            const double top_p = parameters[TOP_P], min_p = parameters[MIN_P];
            weights.compute(row, best, temperature);
            if (a->top_k[seat] < row.width || top_p < 1 || min_p > 0) weights.cut(a->top_k[seat], top_p, min_p);
            a->out[i] = weights.draw(random_word(uint64_t(field(SEED)[i]), uint64_t(field(POSITION)[i])));
        }
    }
}
