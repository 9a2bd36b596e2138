// Compute y = x W^T + bias with weights of 4 bits, expanded to bf16 on the way to the matrix tiles (AMX), for any number of rows
// of x in bf16, and look rows of such weights up. expanded.h says which weights, and how they lie in memory.
#include "expanded_few.h"
#include "expanded_many.h"

#if defined(__AMX_BF16__)

constexpr int64_t CACHED = 1 << 20;  // bytes of x that are worked on at once: half of a core's second cache

// Write `count` rows of x as second operands: [steps][16 pairs of places][columns], with zeros for rows and places that x
// doesn't have. pitch: bytes from one step to the next.
static void turn_rows(const QuantizedArgs& a, int64_t row, int64_t count, int64_t steps, int64_t columns, int64_t pitch,
                      char* to) {
    alignas(LINE) uint32_t turned[SUMS];
    for (int64_t i = 0; i < steps; i++, to += pitch) {
        __m512i rows[TILE];
        const int64_t left = a.k - i * STEP, places = left < 0 ? 0 : left < STEP ? left : STEP;
        const __mmask32 there = __mmask32((1ull << places) - 1);
        for (int64_t j = 0; j < TILE; j++) {
            const bf16* from = (const bf16*)a.x + (row + j) * a.x_stride;
            if (j >= count) {
                rows[j] = _mm512_setzero_si512();
            } else if (a.inputs) {
                alignas(LINE) bf16 here[STEP] = {};
                for (int64_t p = 0; p < places; p++) here[p] = from[a.inputs[i * STEP + p]];
                rows[j] = _mm512_load_si512(here);
            } else {
                rows[j] = _mm512_maskz_loadu_epi16(there, from + i * STEP);
            }
        }
        turn(rows, columns == TILE ? (uint32_t*)to : turned);
        for (int64_t p = 0; columns < TILE && p < TILE; p++)
            _mm512_mask_storeu_epi32(to + p * columns * 4, __mmask16((1 << columns) - 1),
                                     _mm512_load_si512(turned + p * TILE));
    }
}

// Multiply up to 16 rows.
template <int64_t UNIT, bool ZEROS>
static void linear_few(const ExpandedArgs& args) {
    const QuantizedArgs& a = args.w;
    const ExpandedSizes s(args);
    const int64_t panels = (a.n + PANEL - 1) / PANEL, share = panels / (4 * omp_get_max_threads()),
                  run = share < 1 ? 1 : share,  // panels that a thread takes at once
        steps = s.units * (UNIT / STEP);
    static thread_local KeptMemory memory;
    FewRows x = {(const char*)a.x, a.m * 4, a.m * LINE};
    if (a.m > 1 || a.inputs || steps * STEP != a.k) {
        char* turned = memory.of(steps * x.tile);
        turn_rows(a, 0, a.m, steps, a.m, x.tile, turned);
        x.at = turned;
    }
#pragma omp parallel if (a.n * a.k > 16384)
    {
        const uint16_t width = uint16_t(4 * a.m);
        configure_tiles({16, 16, 16, 16, 16, 16, 16, 16}, {width, width, LINE, LINE, width, width, width, width});
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t n = 0; n < panels; n += run) few<UNIT, ZEROS>(x, n, n + run < panels ? n + run : panels, args);
        _tile_release();
    }
}

// Multiply more rows.
static void linear_many(const ExpandedArgs& args, ExpandSlab* expand_slab) {
    const QuantizedArgs& a = args.w;
    const ExpandedSizes s(args);
    // Of gated ones two panels at least, an even number: they share lines of y.
    const int64_t panels = (a.n + PANEL - 1) / PANEL, least = a.gated ? 2 : 1,
                  share = panels / (4 * omp_get_max_threads() * least),
                  run = (share < 1 ? 1 : share) * least;  // panels that a thread takes at once
    const int64_t steps = s.units * (args.unit / STEP), bytes = steps * TILE_BYTES;  // of a tile of x
    // As many tiles of x at once as stay in a core's cache; then W is read and expanded again for the next ones.
    const int64_t tiles = (a.m + TILE - 1) / TILE, most = CACHED / bytes,
                  rounds = most < 4 ? (tiles + 3) / 4 : (tiles + most - 1) / most,
                  at_once = ((tiles + rounds - 1) / rounds + 1) / 2 * 2;
    // A gated panel writes whole lines with the next one, in bf16.
    const bool away = (!a.gated || (a.y_type == BF16 && panels % 2 == 0)) &&
                      goes_past_caches(a.y, a.m, a.y_stride * (a.y_type == BF16 ? sizeof(bf16) : sizeof(float)));
    const int64_t sums = at_once * 2 * SUMS * sizeof(float), halves = at_once * SUMS * sizeof(bf16);
    static thread_local KeptMemory memory;
    char* const x = memory.of(at_once * bytes);
#pragma omp parallel if (a.n * a.k > 16384)
    {
        static thread_local KeptMemory own;
        configure_tiles();
        for (int64_t from = 0; from < tiles; from += at_once) {
            const int64_t now = tiles - from < at_once ? tiles - from : at_once;
            char* const here = own.of(sums + halves);
            const ExpandedRoom room = {x, (float*)here, from * TILE, now, steps, away, (bf16*)(here + sums)};
#pragma omp for schedule(static)
            for (int64_t t = 0; t < now; t++) {
                const int64_t row = (from + t) * TILE;
                turn_rows(a, row, a.m - row < TILE ? a.m - row : TILE, steps, TILE, 2 * TILE_BYTES,
                          x + (t / 2 * 2 * steps + t % 2) * TILE_BYTES);
            }
            Writing writing(args, room);
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t start = 0; start < panels; start += run)
                for (int64_t n = start; n < start + run && n < panels; n++)
                    many(args, s, n, room, expand_slab, writing);
            writing.rest();
#pragma omp barrier
        }
        _mm_sfence();  // what went past the caches may be read by other threads now
        _tile_release();
    }
}

template <int64_t UNIT>
static void linear(const ExpandedArgs& args) {
    if (args.w.m > TILE)
        linear_many(args, args.w.zeros ? expand_slab<UNIT, true> : expand_slab<UNIT, false>);
    else
        args.w.zeros ? linear_few<UNIT, true>(args) : linear_few<UNIT, false>(args);
}

EXPORT void glasshouse_linear_expanded_amx(const ExpandedArgs* args) {
    if (!args->w.m) return;
    args->unit == 128 ? linear<128>(*args) : linear<64>(*args);
}

struct ExpandedEmbedArgs {
    const int64_t* ids;  // [tokens]
    float* out;          // [tokens, k]
    int64_t tokens;
    ExpandedArgs table;  // all but x, y, bias and what describes them
};

// Look up row `id`, in fp32.
static void look_up(int64_t id, float* out, const ExpandedArgs& args, const ExpandedSizes& s) {
    const QuantizedArgs& a = args.w;
    const int64_t words = args.unit / 4, half = id % PANEL / TILE, o = id % TILE;
    const char* panel = a.w + id / PANEL * s.panel;
    for (int64_t k = 0; k < a.k; k++) {
        const int64_t p = k % args.unit, nibble = p / words;
        const uint8_t* codes =
            (const uint8_t*)panel + s.parts + k / args.unit * s.codes + (half * TILE + o) * (args.unit / 2);
        const char* group = panel + k / a.group * s.group;
        float value = a.table[codes[2 * (p % words) + nibble / 2] >> nibble % 2 * 4 & 15];
        if (a.zeros) value -= load_part_of(group + PANEL * part_size(a), a.part_type, half * TILE)[o];
        out[a.inputs ? a.inputs[k] : k] = value * load_part_of(group, a.part_type, half * TILE)[o];
    }
}

EXPORT void glasshouse_embed_expanded_amx(const ExpandedEmbedArgs* a) {
    const ExpandedSizes s(a->table);
#pragma omp parallel for if (a->tokens * a->table.w.k > 32768)
    for (int64_t t = 0; t < a->tokens; t++) look_up(a->ids[t], a->out + t * a->table.w.k, a->table, s);
}
#endif
