// Compute y = x W^T + bias with quantized weights on matrix tiles (AMX), for any number of rows of x in bf16: weights of 8
// bits, and of 4 bits in groups of less than 64 places or with offsets; linear_expanded_amx.cpp has the others.
//
// W lies in panels (quantized.h). A panel's codes become numbers in bf16, exact ones, in the order of a tile of W (tiles.h):
// `PairCodes` gives a pair of places of 16 outputs, which is a row of such a tile. A tile of sums holds one group at a time,
//
//   for each group:  C = x W over the group's places;  total += scale * (C - zero * sum of x) + offset * sum of x
//
// because each group has scales of its own. C goes through the first cache to the vector registers, which add it to the totals
// while the tiles multiply the next groups.
//
// One tile of x (up to 16 rows): codes become numbers a few steps before they are multiplied, so that both overlap with reading.
// More tiles: the numbers of a piece of the panel stay in the first cache, and all rows are multiplied by them. As without
// codes (linear_amx.cpp) the first panel stores the tiles of x in the order in which they are read, and y goes past the caches,
// if it isn't gated: then a panel has half of a line.
//
// One row of whole numbers of 8 bits: making bf16 of them would take longer than reading, so vectors multiply it (`one`).
//
// A tile adds in an order of its own: even and odd places apart. All ways add the same products in this order: a row's result
// depends neither on the number of rows nor on the other rows.
#include "quantized_tiles_few.h"
#include "quantized_tiles_many.h"

#if defined(__AMX_BF16__)

constexpr int64_t CACHED = 1 << 20;  // bytes of x that are worked on at once: half of a core's second cache

template <int64_t KIND, int64_t STEP>
static void linear(const QuantizedArgs& a) {
    typedef PairCodes<KIND> Source;
    const int64_t panels = (a.n + PANEL - 1) / PANEL, share = panels / (4 * omp_get_max_threads()),
                  run = share < 1 ? 1 : share;  // panels that a thread takes at once
    // As many tiles of x at once as stay in a core's cache while W is read; then W is read again for the next ones.
    const int64_t tiles = (a.m + TILE - 1) / TILE, most = CACHED / (TILE * a.k * int64_t(sizeof(bf16))),
                  rounds = most < 4 ? (tiles + 3) / 4 : (tiles + most - 1) / most,
                  at_once = ((tiles + rounds - 1) / rounds + 1) / 2 * 2;
    static thread_local RowsMemory<bf16> memory;
    RowsMemory<bf16>& shared = memory;
#pragma omp parallel if (a.n * a.k > 16384)
    {
        const uint8_t rows = uint8_t(a.m < TILE ? a.m : TILE), pairs = STEP / 2;
        configure_tiles({rows, rows, rows, rows, rows, rows, pairs, pairs},
                        {LINE, LINE, LINE, LINE, 2 * STEP, 2 * STEP, LINE, LINE});
        const Flushing flushing(KIND == SIGNED8);  // numbers of FLOAT8 are made of subnormal ones
        if (KIND == SIGNED8 && a.m == 1) {
            const Rows<float> numbers = rows_of<float>((const bf16*)a.x, 1, a);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++) one<KIND, STEP>(numbers, n, a);
        } else if (a.m <= TILE) {
            const Block b = {rows_of<bf16>((const bf16*)a.x, a.m, a), 0, 0, 1};
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++) few<Source, STEP>(b, a.m, n, a);
        } else {
            static thread_local KeptMemory kept;
            const int64_t pitch = a.y_stride * (a.y_type == BF16 ? sizeof(bf16) : sizeof(float));
            const Expansion<STEP> expansion = {Source::PLACES, Source::UNIT, expand_steps<Source, STEP>};
            const auto run_many = a.offsets    ? shifted(a) ? many<STEP, true, true> : many<STEP, false, true>
                                  : shifted(a) ? many<STEP, true, false>
                                               : many<STEP, false, false>;
            const bool away = !a.gated && goes_past_caches(a.y, a.m, pitch);
            Room room(at_once, kept.of(at_once / 2 * a.k * PLACE), away);
            for (int64_t from = 0; from < tiles; from += at_once) {
                const int64_t to = from + at_once < tiles ? from + at_once : tiles, first = first_row(from, a.m),
                              count = first_row(to - 1, a.m) + TILE - first;
                const bf16* x = (const bf16*)a.x + first * a.x_stride;
                Block b = {{}, first, from, to};
                room.stored = false;
#pragma omp single copyprivate(b)
                b.rows = place_rows(x, count, shared, a);
                if (b.rows.sums || b.rows.x == shared.numbers.data()) {
#pragma omp for schedule(static)
                    for (int64_t i = 0; i < count; i++) fill_row(x, i, b.rows, a);
                }
#pragma omp for schedule(dynamic, 1)
                for (int64_t start = 0; start < panels; start += run)
                    for (int64_t n = start; n < start + run && n < panels; n++) run_many(b, n, room, a, expansion);
                for (int64_t t = 0; t < to - from; t++) put_tile(b, room, t, a);
                room.panel = -1;
            }
        }
        _mm_sfence();  // what went past the caches may be read by other threads now
        _tile_release();
    }
}

EXPORT void glasshouse_linear_quantized_amx(const QuantizedArgs* args) {
    const QuantizedArgs& a = *args;
    if (!a.m) return;
    with_kind(a.kind, [&](auto kind) {
        if (a.group % 32 || a.k % 32)
            linear<kind(), 16>(a);
        else
            linear<kind(), 32>(a);
    });
}
#endif
