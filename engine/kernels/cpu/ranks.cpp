// Join what the ranks of one model computed, through memory that their processes share.
//
// Each rank has a counter of the pieces that it has written, and room for two pieces. For each piece all ranks do the
// same: copy their numbers into their room, raise their counter, wait until every other counter is as high, and read
// what they need. The two halves of the room take turns. A rank writes into a half again only after it has seen all
// counters at the piece between, which a rank raises after it has read the piece before; so nothing is overwritten that
// somebody still reads, and no second barrier is needed.
//
// Sums are added in one fixed tree (0 + 1, 2 + 3, then those), so all ranks hold the same bits, in every run.
//
// A rank that waits long sleeps, and looks whether another process is gone. Then it says so to all and returns; what
// it returns and what is called later is worth nothing, and Python ends the step with an error. So it does when one that
// lives hasn't come within the rank's patience, and when a signal's handler in Python (Ctrl-C) wants to end the wait.
#include <poll.h>
#include <sched.h>
#include <time.h>

#include "simd.h"

constexpr int64_t LINE = 64, MOST_RANKS = 8;
constexpr int64_t PIECE = 1 << 16;                     // floats
constexpr int64_t PAUSES = 1 << 10, YIELDS = 1 << 11;  // before a rank that waits sleeps
constexpr int64_t SLEEP_NS = 500 * 1000;
constexpr int64_t SLEEPS = 64;  // after as many, a rank that waits lets Python's handlers of signals run

struct Counter {
    uint64_t pieces;  // written by this rank
    uint64_t ns;      // that this rank spent here
    uint64_t calls;
    uint64_t unused[5];
};
static_assert(sizeof(Counter) == LINE);

// The beginning of the shared memory: zeros at first.
struct Shared {
    uint64_t broken;  // 1: a rank is gone, or was interrupted; 2 + rank: this one hasn't come
    uint64_t unused[7];
    Counter counters[MOST_RANKS];
    float rooms[];  // [ranks, 2, PIECE]
};

// Functions of Python's C interface, so that this library needs no Python to be linked.
struct Python {
    int (*lock)();              // PyGILState_Ensure
    void (*unlock)(int);        // PyGILState_Release
    int (*run_handlers)();      // PyErr_CheckSignals: of signals that came; on the main thread only
    void* (*error)();           // PyErr_Occurred: the class
    void (*forget_error)();     // PyErr_Clear
    unsigned long (*thread)();  // PyThread_get_thread_ident
    int (*raise_later)(unsigned long thread, void* error);  // PyThreadState_SetAsyncExc
};

struct Group {
    Shared* shared;
    int64_t rank, size;
    pollfd* others;  // connections to other ranks' processes: the kernel closes one when its process ends
    int64_t num_others;
    int64_t patience_ns;  // how long it waits for a rank that lives; 0: for ever
    const Python* python;
};

EXPORT int64_t glasshouse_shared_bytes(const int64_t* size) {
    return sizeof(Shared) + *size * 2 * PIECE * sizeof(float);
}

static int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * int64_t(1000000000) + t.tv_nsec;
}

static INLINE void pause_a_little() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

static void give_up(const Group& g, uint64_t why) {
    uint64_t not_yet = 0;  // the first reason stays
    __atomic_compare_exchange_n(&g.shared->broken, &not_yet, why, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

// Run Python's handlers of signals. An error of theirs is raised when this call of Python returns.
static bool interrupted(const Python& python) {
    int before = python.lock();
    bool raised = python.run_handlers() != 0;
    if (raised) {
        python.raise_later(python.thread(), python.error());
        python.forget_error();
    }
    python.unlock(before);
    return raised;
}

// Look, from a rank that has slept so many times, whether to wait for the other one any longer. Time is counted in
// sleeps: while this process is stopped, as by Ctrl-Z, it doesn't pass.
static bool is_in_vain(const Group& g, int64_t other, int64_t sleeps) {
    if (g.num_others && poll(g.others, g.num_others, 0) > 0)
        for (int64_t i = 0; i < g.num_others; i++)
            if (g.others[i].revents & (POLLHUP | POLLERR | POLLNVAL)) give_up(g, 1);
    if (sleeps % SLEEPS == SLEEPS - 1 && interrupted(*g.python)) give_up(g, 1);
    if (g.patience_ns && sleeps * SLEEP_NS > g.patience_ns) give_up(g, 2 + other);
    return __atomic_load_n(&g.shared->broken, __ATOMIC_ACQUIRE);
}

// Say that this rank has written its next piece, and wait for the others'; false if one is gone.
static bool meet(const Group& g) {
    Shared* shared = g.shared;
    if (__atomic_load_n(&shared->broken, __ATOMIC_ACQUIRE)) return false;
    uint64_t piece = shared->counters[g.rank].pieces + 1;
    __atomic_store_n(&shared->counters[g.rank].pieces, piece, __ATOMIC_RELEASE);
    for (int64_t other = 0; other < g.size; other++)
        for (int64_t tries = 0; __atomic_load_n(&shared->counters[other].pieces, __ATOMIC_ACQUIRE) < piece; tries++) {
            if (tries < PAUSES) {
                pause_a_little();
            } else if (tries < PAUSES + YIELDS) {
                sched_yield();
            } else {
                if (is_in_vain(g, other, tries - PAUSES - YIELDS)) return false;
                timespec t = {0, SLEEP_NS};
                nanosleep(&t, nullptr);
            }
        }
    return true;
}

// A rank's room for its next piece. Rooms of others are this far apart: 2 * PIECE.
static float* room(const Group& g, int64_t rank) {
    return g.shared->rooms + (2 * rank + (g.shared->counters[g.rank].pieces & 1)) * PIECE;
}

struct Timed {
    const Group& g;
    int64_t began = now_ns();
    ~Timed() {
        g.shared->counters[g.rank].ns += now_ns() - began;
        g.shared->counters[g.rank].calls++;
    }
};

// ------------------------------------------------------------------------------- the sum of all ranks' numbers

struct SumArgs {
    const Group* group;
    const float* part;  // [rows, width], of this rank
    const void* bias;   // [width], in the type of out; or null
    void* out;          // [rows, width]
    int64_t rows, width, type;
};

// first: where rank 0's numbers of these rows are.
template <class T>
static void add(const Group& g, const float* first, const T* bias, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows > 1 && rows * width > 1 << 14)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t start = 0; start < width; start += VEC) {
            int64_t n = width - start < VEC ? width - start : VEC;
            vec sums[MOST_RANKS];
            for (int64_t rank = 0; rank < g.size; rank++) {
                const float* from = first + 2 * rank * PIECE + row * width + start;
                sums[rank] = n == VEC ? load(from) : load_part(from, n);
            }
            for (int64_t step = 1; step < g.size; step *= 2)
                for (int64_t rank = 0; rank + step < g.size; rank += 2 * step) sums[rank] += sums[rank + step];
            if (bias) sums[0] += n == VEC ? load(bias + start) : load_part(bias + start, n);
            T* to = out + row * width + start;
            if (n == VEC)
                store(to, sums[0]);
            else
                store_part(to, sums[0], n);
        }
}

// A piece is some whole rows.
template <class T>
static void sum(const SumArgs& a) {
    const Group& g = *a.group;
    int64_t most = PIECE / a.width;
    for (int64_t row = 0; row < a.rows; row += most) {
        int64_t rows = a.rows - row < most ? a.rows - row : most;
        const float* first = room(g, 0);
        memcpy(room(g, g.rank), a.part + row * a.width, rows * a.width * 4);
        if (!meet(g)) return;
        add<T>(g, first, static_cast<const T*>(a.bias), static_cast<T*>(a.out) + row * a.width, rows, a.width);
    }
}

EXPORT void glasshouse_sum(const SumArgs* a) {
    Timed timed{*a->group};
    if (a->type == F32)
        sum<float>(*a);
    else
        sum<bf16>(*a);
}

// ------------------------------------------------------------------------------- rank 0 takes columns of all ranks

struct GatherArgs {
    const Group* group;
    const float*
        part;    // [rows, stride], of this rank, which gives the first `each` columns: in all more than width, maybe
    float* out;  // [rows, width], of rank 0; not read by the others
    int64_t rows, stride, each, width;
};

// Call use(row, column, at, n) for the runs of whole rows that make up [begin, end) of [rows, each].
template <class Use>
static void runs(int64_t begin, int64_t end, int64_t each, Use use) {
    for (int64_t at = begin; at < end;) {
        int64_t row = at / each, column = at % each, n = each - column < end - at ? each - column : end - at;
        use(row, column, at - begin, n);
        at += n;
    }
}

EXPORT void glasshouse_gather(const GatherArgs* a) {
    const Group& g = *a->group;
    Timed timed{g};
    int64_t total = a->rows * a->each;
    for (int64_t begin = 0; begin < total; begin += PIECE) {
        int64_t end = total - begin < PIECE ? total : begin + PIECE;
        const float* first = room(g, 0);
        float* own = room(g, g.rank);
        runs(begin, end, a->each, [&](int64_t row, int64_t column, int64_t at, int64_t n) {
            memcpy(own + at, a->part + row * a->stride + column, n * 4);
        });
        if (!meet(g)) return;
        if (g.rank) continue;
        for (int64_t rank = 0; rank < g.size; rank++)
            runs(begin, end, a->each, [&](int64_t row, int64_t column, int64_t at, int64_t n) {
                int64_t to = rank * a->each + column, fits = a->width - to < n ? a->width - to : n;
                if (fits > 0) memcpy(a->out + row * a->width + to, first + 2 * rank * PIECE + at, fits * 4);
            });
    }
}

// ------------------------------------------------------------------------------- ids of a share of a table

struct OwnIdsArgs {
    const int64_t* ids;
    int64_t* out;  // the place of each in the share; `absent` for those of other ranks
    int64_t rows, start, count, absent;
};

EXPORT void glasshouse_own_ids(const OwnIdsArgs* a) {
    for (int64_t i = 0; i < a->rows; i++) {
        int64_t place = a->ids[i] - a->start;
        a->out[i] = place >= 0 && place < a->count ? place : a->absent;
    }
}
