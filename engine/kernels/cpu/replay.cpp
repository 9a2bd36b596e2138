// Run many kernels in one call, one after another, as a decode step does, without Python in between.
//
// A step reads all weights through the caches, which evicts Python's own code and data each time: a launch that takes 2 us
// with warm caches takes 60 us there. tape.py makes the list of calls by recording the kernels' launches once.
#include "simd.h"

struct Call {
    void (*run)(const void*);  // a kernel; what it returns is ignored
    const void* arguments;     // its argument struct
};
struct ReplayArgs {
    const Call* calls;
    int64_t count;
};

EXPORT void glasshouse_replay(const ReplayArgs* a) {
    for (int64_t i = 0; i < a->count; i++) a->calls[i].run(a->calls[i].arguments);
}
