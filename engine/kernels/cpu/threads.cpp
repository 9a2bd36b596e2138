// Which core each thread of a kernel stays on; engine/worker/cores.py says why.
#include <sched.h>
#include "simd.h"

struct BindArgs {
    const cpu_set_t* cores;  // [count]: of thread 0, which calls, and of the others
    int64_t count;
};

EXPORT void glasshouse_bind_threads(const BindArgs* a) {
#pragma omp parallel num_threads(a->count)
    sched_setaffinity(0, sizeof(cpu_set_t), &a->cores[omp_get_thread_num()]);
}
