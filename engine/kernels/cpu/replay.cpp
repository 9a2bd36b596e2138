// Many kernels in one call, one after another: what a decode step does, without Python in between.
//
// A step streams all weights through the caches, and each time Python comes back for the next kernel it finds its own code
// and data thrown out: a launch that takes 2 us where nothing else happens takes 60 us there. The list of calls is made by
// tape.py, by listening to the kernels' launches once.
#include "simd.h"

struct Call {
    void (*run)(const void*);  // a kernel; what it returns is not looked at
    const void* arguments;     // its argument struct
};
struct ReplayArgs {
    const Call* calls;
    int64_t count;
};

EXPORT void glasshouse_replay(const ReplayArgs* a) {
    for (int64_t i = 0; i < a->count; i++) a->calls[i].run(a->calls[i].arguments);
}
