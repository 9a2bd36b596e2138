// Read drawn tokens into the grammars of a step, and make their masks: many sequences in one call, on all threads.
//
// The work is llguidance's, by its C interface; worker/sampling/native_matchers.py finds the functions and owns the matchers.
// It wants the tokens of forced bytes from a tokenizer. Only Python has that, and its lock can't be waited for here. So Python
// writes what it knows into a table; a text that isn't there is noted, and its matcher is asked again when it is.
#include <algorithm>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "simd.h"

struct Matcher;  // llguidance's
struct MatcherFunctions {
    int32_t (*consume_token)(Matcher*, uint32_t token);
    int32_t (*consume_tokens)(Matcher*, const uint32_t* tokens, size_t count);
    int32_t (*compute_ff_tokens)(Matcher*, uint32_t* tokens, size_t room);
    int32_t (*compute_mask_into)(Matcher*, uint32_t* mask, size_t bytes);
    int32_t (*rollback)(Matcher*, size_t tokens);
    bool (*is_stopped)(const Matcher*);
    bool (*is_error)(const Matcher*);
};

// What the tokenizer made of texts. Matchers ask on many threads, Python adds.
struct TokenizedTexts {
    static constexpr size_t MOST = 65536;  // texts
    std::unordered_map<std::string, std::vector<uint32_t>> known;
    std::vector<std::string> unknown;  // asked for, and not there
    std::shared_mutex lock;
};
static thread_local bool missed;  // the matcher that this thread works on has asked for an unknown text

EXPORT TokenizedTexts* glasshouse_new_tokenized() { return new TokenizedTexts; }
EXPORT void glasshouse_free_tokenized(TokenizedTexts* tokenized) { delete tokenized; }

// Add the tokens of a text.
EXPORT void glasshouse_add_tokenized(TokenizedTexts* t, const char* text, int64_t size, const uint32_t* tokens,
                                     int64_t count) {
    std::unique_lock hold(t->lock);
    if (t->known.size() >= TokenizedTexts::MOST) t->known.clear();
    t->known[std::string(text, size)].assign(tokens, tokens + count);
}

// Take one of the unknown texts out: return its length, or -1 if there is none. A text longer than the room stays.
EXPORT int64_t glasshouse_take_unknown(TokenizedTexts* t, char* text, int64_t room) {
    std::unique_lock hold(t->lock);
    if (t->unknown.empty()) return -1;
    const std::string& last = t->unknown.back();
    const auto size = int64_t(last.size());
    if (size > room) return size;
    memcpy(text, last.data(), size);
    t->unknown.pop_back();
    return size;
}

// llguidance's LlgTokenizeFn.
EXPORT size_t glasshouse_tokenize(TokenizedTexts* t, const char* text, size_t size, uint32_t* out, size_t room) {
    const std::string key(text, size);
    {
        std::shared_lock hold(t->lock);
        auto found = t->known.find(key);
        if (found != t->known.end()) {
            const std::vector<uint32_t>& tokens = found->second;
            std::copy_n(tokens.begin(), std::min(room, tokens.size()), out);
            return tokens.size();
        }
    }
    std::unique_lock hold(t->lock);
    t->unknown.push_back(key);
    missed = true;
    return 0;
}

// The grammar of one sequence: held_grammars.py's `Held`, with the same logic.
struct Held {
    Matcher* matcher;               // Python's, which frees it
    int64_t line;                   // of the masks
    std::vector<uint32_t> forced;   // the matcher has read all of them; empty: none, or not asked
    size_t drawn = 0;               // how many of these are drawn: fewer than all
    bool asked = false;             // which tokens are forced after those
    bool masked = false;            // its line has the mask of the matcher's state
    std::vector<uint32_t> history;  // all tokens that were drawn
    size_t before = 0;              // how many these were before the last draws
    bool pending = false;           // a text is unknown, so what follows these isn't done
    int64_t work = -1;              // its place among those of this call
};

// history: what the matcher has read, of a sequence that comes back.
EXPORT Held* glasshouse_new_held(Matcher* matcher, int64_t line, const uint32_t* history, int64_t count) {
    Held* held = new Held{matcher, line};
    held->history.assign(history, history + count);
    return held;
}
// Make one for a sibling, whose matcher is at the same place.
EXPORT Held* glasshouse_fork_held(const Held* held, Matcher* matcher) {
    Held* other = new Held(*held);
    other->matcher = matcher, other->masked = false;
    return other;
}
EXPORT void glasshouse_free_held(Held* held) { delete held; }

static int64_t copy(const uint32_t* begin, const uint32_t* end, uint32_t* out, int64_t room) {
    std::copy_n(begin, std::min(room, int64_t(end - begin)), out);
    return end - begin;
}
// Copy the tokens that were drawn; return how many there are.
EXPORT int64_t glasshouse_history(const Held* h, uint32_t* out, int64_t room) {
    return copy(h->history.data(), h->history.data() + h->history.size(), out, room);
}

struct ReadGrammarsArgs {
    const MatcherFunctions* call;
    Held** held;             // [count], of each draw; null: its sequence has none here
    const int64_t* tokens;   // [count], what was drawn, negative: nothing; null: nothing is to be read
    const uint8_t* counted;  // [count], whether the draw counts; null: all do
    int32_t* masks;          // [*, words]; null: don't ask what is forced, make no masks
    int64_t* told;           // [count, TELLING], out: sequences of which there is something to tell
    uint8_t* complete;       // [count], out: of each of their draws, whether the text is complete with it
    uint32_t* forced;        // [count * MOST_FORCED], out: what comes next in these, if steps check that
    int64_t count, words, proposes;
};
enum Telling { PLACE, WHAT, DRAWS, FORCED_TOKENS, TELLING };  // its first draw, a Told, how many of both lists are its
enum Told : int64_t { COMPLETE = 1, FORCED = 2, NOTHING_DRAWN = 4, FAILED = 8, UNKNOWN = 16 };
constexpr int64_t MOST_FORCED = 64;  // more than steps check at once

static bool ended(const MatcherFunctions& call, const Held& h) {
    return call.is_stopped(h.matcher) && !call.is_error(h.matcher);
}

// Forget the run that led here; return whether the text is complete.
static bool next_state(const MatcherFunctions& call, Held& h) {
    h.forced.clear(), h.drawn = 0, h.asked = false;
    return ended(call, h);
}

// Read one drawn token; return whether the text is complete with it.
static bool read(const MatcherFunctions& call, Held& h, uint32_t token) {
    h.history.push_back(token);
    if (!h.forced.empty()) {
        if (token == h.forced[h.drawn]) return ++h.drawn == h.forced.size() && next_state(call, h);
        call.rollback(h.matcher, h.forced.size() - h.drawn);  // a sampler of someone's own may draw what is forbidden
    }
    if (call.is_stopped(h.matcher)) {
        h.history.pop_back();
        return false;  // a step in flight at the end
    }
    call.consume_token(h.matcher, token);
    h.masked = false;
    return next_state(call, h);
}

// Ask which tokens come next in any case, and make the mask of the state after them, if steps may draw in it.
static void prepare(const ReadGrammarsArgs& a, Held& h) {
    constexpr int64_t ROOM = 1024;  // tokens of a run that are read at once
    static thread_local std::vector<uint32_t> found(ROOM);
    if (!h.asked) {
        const int32_t count = a.call->compute_ff_tokens(h.matcher, found.data(), ROOM);
        if (missed) return;
        h.asked = true;
        if (count > 0) {
            h.forced.assign(found.begin(), found.begin() + count);
            a.call->consume_tokens(h.matcher, found.data(), count);
            h.masked = false;
        }
    }
    if (h.masked || (!a.proposes && !h.forced.empty())) return;
    a.call->compute_mask_into(h.matcher, (uint32_t*)a.masks + h.line * a.words, a.words * sizeof(uint32_t));
    h.masked = !missed;
}

// The tokens that must come next, up to one that may end the text, which isn't proposed.
struct Next {
    const uint32_t* tokens;
    int64_t count;
    Next(const MatcherFunctions& call, const Held& h) : tokens(h.forced.data() + h.drawn) {
        count = int64_t(h.forced.size() - h.drawn) - (!h.forced.empty() && call.is_stopped(h.matcher));
    }
};
EXPORT int64_t glasshouse_forced(const MatcherFunctions* call, const Held* h, uint32_t* out, int64_t room) {
    const Next next(*call, *h);
    return copy(next.tokens, next.tokens + next.count, out, room);
}

struct Work {
    Held* held;
    std::vector<int64_t> draws;  // their places
    std::vector<uint8_t> complete;
    int64_t told;
};

static void read_all(const ReadGrammarsArgs& a, Work& work) {
    Held& h = *work.held;
    if (!h.pending) h.before = h.history.size();
    work.told = 0, work.complete.assign(work.draws.size(), 0);
    missed = false;
    for (size_t i = 0; a.tokens && i < work.draws.size(); i++) {
        const int64_t token = a.tokens[work.draws[i]];
        work.complete[i] = token >= 0 && read(*a.call, h, uint32_t(token));
        work.told |= token < 0 ? NOTHING_DRAWN : work.complete[i] ? COMPLETE : 0;
    }
    if (a.masks) prepare(a, h);
    if ((h.pending = missed)) work.told |= UNKNOWN;
    if (a.call->is_error(h.matcher)) {
        work.told = FAILED;
        h.history.resize(h.before);
    }
    const bool goes_on = !(work.told & (NOTHING_DRAWN | FAILED)) && !work.complete.back();
    if (a.proposes && goes_on && Next(*a.call, h).count > 0) work.told |= FORCED;
}

// Return how many sequences there is something to tell of.
EXPORT int64_t glasshouse_read_grammars(const ReadGrammarsArgs* a) {
    static thread_local std::vector<Work> works;  // kept from call to call
    int64_t size = 0;
    for (int64_t i = 0; i < a->count; i++) {
        Held* h = a->held[i];
        if (!h || (a->counted && !a->counted[i])) continue;
        if (h->work < 0) {
            if (size == int64_t(works.size())) works.emplace_back();
            works[size].held = h, works[size].draws.clear();
            h->work = size++;
        }
        works[h->work].draws.push_back(i);
    }
    Work* all = works.data();  // `works` itself is another one on each thread
#pragma omp parallel for schedule(dynamic, 1) if (size > 1)
    for (int64_t i = 0; i < size; i++) read_all(*a, all[i]);
    int64_t found = 0, draws = 0, tokens = 0;
    for (int64_t i = 0; i < size; i++) {
        Work& work = all[i];
        work.held->work = -1;
        if (!work.told) continue;
        int64_t count = 0;
        if (work.told & FORCED) {
            const Next next(*a->call, *work.held);
            count = std::min(next.count, MOST_FORCED);
            copy(next.tokens, next.tokens + count, a->forced + tokens, count);
        }
        std::copy(work.complete.begin(), work.complete.end(), a->complete + draws);
        int64_t* telling = a->told + TELLING * found++;
        telling[PLACE] = work.draws[0], telling[WHAT] = work.told;
        draws += telling[DRAWS] = int64_t(work.draws.size());
        tokens += telling[FORCED_TOKENS] = count;
    }
    return found;
}

struct OnlyArgs {
    Held* const* held;     // [count]; null: any token
    const int64_t* ahead;  // [count], how many forced tokens come before; null: none
    int64_t* out;          // [count], the only token that is allowed, or -1
    int64_t count;
};

EXPORT void glasshouse_only(const OnlyArgs* a) {
    for (int64_t i = 0; i < a->count; i++) {
        const Held* h = a->held[i];
        const size_t place = h ? h->drawn + (a->ahead ? a->ahead[i] : 0) : 0;
        a->out[i] = h && place < h->forced.size() ? int64_t(h->forced[place]) : -1;
    }
}
