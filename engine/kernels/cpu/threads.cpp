// Bind each thread of a kernel to a core; engine/worker/cores.py says why.
#ifdef __linux__
#include <sched.h>
#endif
#include "simd.h"

struct BindArgs {
    const char (*cores)[128];  // cpu_set_t of each thread: of the one that calls, then of the others
    int64_t count;
};

EXPORT void glasshouse_bind_threads(const BindArgs* a) {
#ifdef __linux__  // macOS binds no threads
#pragma omp parallel num_threads(a->count)
    sched_setaffinity(0, sizeof(cpu_set_t), reinterpret_cast<const cpu_set_t*>(a->cores[omp_get_thread_num()]));
#endif
}
