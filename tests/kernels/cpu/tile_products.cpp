// Multiply single tiles, so that test_software_tiles.py sees what an instruction computes: in hardware, or as
// tiles_in_software.h does.
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int64_t allow() { return syscall(SYS_arch_prctl, 0x1023, 18); }  // as glasshouse_allow_amx

struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// Compute C [rows, columns] += A [rows, steps] x B [steps, columns], in words of 4 bytes; sums are loaded and stored 64 bytes
// apart.
EXPORT void multiply(int64_t int8, int64_t rows, int64_t steps, int64_t columns, const void* a, const void* b,
                     void* c) {
    Config config = {1, 0, {}, {}, {}};
    const int64_t sizes[3][2] = {{rows, columns}, {rows, steps}, {steps, columns}};
    for (int t = 0; t < 3; t++) config.rows[t] = sizes[t][0], config.row_bytes[t] = 4 * sizes[t][1];
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
    _tile_loadd(0, c, 64);
    _tile_loadd(1, a, 4 * steps);
    _tile_loadd(2, b, 4 * columns);
    if (int8)
        _tile_dpbssd(0, 1, 2);
    else
        _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, c, 64);
    _tile_release();
}

// Do what is refused: 0 a tile before it is configured, 1 a palette that doesn't exist, 2 too many rows, 3 a product of sizes
// that don't fit, 4 a tile after it was released.
EXPORT void wrong(int64_t what) {
    Config config = {uint8_t(what == 1 ? 2 : 1), 0, {}, {64, 64, 64}, {16, 16, uint8_t(what == 3 ? 15 : 16)}};
    if (what == 2) config.rows[0] = 17;
    asm volatile("" ::"r"(&config) : "memory");
    if (what > 0) _tile_loadconfig(&config);
    if (what == 4) _tile_release();
    if (what == 3)
        _tile_dpbf16ps(0, 1, 2);
    else
        _tile_zero(0);
}
