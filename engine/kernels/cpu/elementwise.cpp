// Compute the operations between the products: each reads its numbers once and writes once, in one pass where torch makes
// several.
//
// They are bound by memory and by the cost of a call. Rows are divided among threads only when there is enough to do:
// waking threads takes about a microsecond.
#include "simd.h"

// Work below this many numbers stays with the calling thread.
constexpr int64_t ALONE = 32768;

// Go through 0 .. n - 1 a vector at a time: body(i, lanes, load, store) with lanes < VEC for the last, incomplete one.
template <class Body>
static INLINE void by_vectors(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) body(i, VEC);
    if (i < n) body(i, n - i);
}
template <class T>
static INLINE vec get(const T* p, int64_t lanes) {
    return lanes == VEC ? load(p) : load_part(p, lanes);
}
template <class T>
static INLINE void put(T* p, vec v, int64_t lanes) {
    lanes == VEC ? store(p, v) : store_part(p, v, lanes);
}
// Add up the lanes that count.
static INLINE vec only(vec v, int64_t lanes) {
    float part[VEC];
    if (lanes == VEC) return v;
    store(part, v);
    return load_part(part, lanes);
}

// ---------------------------------------------------------------------------- residual sum + RMSNorm or LayerNorm

struct NormArgs {
    const void *x, *residual;   // [rows, width]; residual null: no sum, and x is the residual stream itself
    const void *weight, *bias;  // [width], or null
    void *out, *total;          // [rows, width]; total = x + residual
    int64_t rows, width, x_stride, residual_stride;
    int64_t type, x_type, residual_type;  // type: of weight, bias and out; total: fp32 if x or residual is
    int64_t center;                       // LayerNorm (subtract the mean), else RMSNorm
    double eps;
};

template <class T, class X, class Residual>
static void norm(const NormArgs& a) {
    typedef std::conditional_t<std::is_same_v<X, Residual>, X, float> Stream;
#pragma omp parallel for if (a.rows * a.width > ALONE)
    for (int64_t row = 0; row < a.rows; row++) {
        const T *weight = (const T*)a.weight, *bias = (const T*)a.bias;
        const X* x = (const X*)a.x + row * a.x_stride;
        const Residual* residual = (const Residual*)a.residual + row * a.residual_stride;
        T* out = (T*)a.out + row * a.width;
        Stream* total = (Stream*)a.total + row * a.width;
        const Stream* from = a.residual ? total : (const Stream*)a.x + row * a.x_stride;
        vec plain = {}, squares = {};
        by_vectors(a.width, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
            vec v;
            if (a.residual) {
                v = round_like(get(x + i, lanes) + get(residual + i, lanes), total);  // the norm is computed from it
                put(total + i, v, lanes);
            } else {
                v = get(from + i, lanes);
            }
            plain = plain + v;
            squares = squares + v * v;
        });
        float mean = 0, spread = sum(squares) / a.width;
        if (a.center) {  // the variance from differences: squares minus mean squared would lose digits
            mean = sum(plain) / a.width;
            vec differences = {};
            by_vectors(a.width, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
                vec d = only(get(from + i, lanes) - mean, lanes);
                differences = differences + d * d;
            });
            spread = sum(differences) / a.width;
        }
        float factor = 1.0f / sqrtf(spread + float(a.eps));
        by_vectors(a.width, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
            vec v = (get(from + i, lanes) - mean) * factor;
            if (weight) v = v * get(weight + i, lanes);
            if (bias) v = v + get(bias + i, lanes);
            put(out + i, v, lanes);
        });
    }
}

EXPORT void glasshouse_norm(const NormArgs* a) {
    if (a->type == BF16) {
        WITH_TYPE(a->x_type, X, WITH_TYPE(a->residual_type, Residual, norm<bf16, X, Residual>(*a)));
    } else {
        norm<float, float, float>(*a);
    }
}

// ----------------------------------------------------------------------------------------- silu(gate) * up

struct SiluArgs {
    const void* x;  // [rows, 2 * width], gate then up
    void* out;      // [rows, width]
    int64_t rows, width, x_stride, type;
};

template <class T>
static void silu_and_mul(const SiluArgs& a) {
#pragma omp parallel for if (a.rows * a.width > ALONE / 4)
    for (int64_t row = 0; row < a.rows; row++) {
        const T *gate = (const T*)a.x + row * a.x_stride, *up = gate + a.width;
        T* out = (T*)a.out + row * a.width;
        by_vectors(a.width, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
            put(out + i, silu(get(gate + i, lanes)) * get(up + i, lanes), lanes);
        });
    }
}

EXPORT void glasshouse_silu_and_mul(const SiluArgs* a) { WITH_TYPE(a->type, T, silu_and_mul<T>(*a)); }

// ------------------------------------------------------------------------------ what a step begins with: rows of tables

struct EmbedArgs {
    const int64_t *ids, *positions;      // [tokens]; positions null: one table only
    const void *table, *position_table;  // [entries, width]
    float* out;                          // [tokens, width] = table[ids] + position_table[positions]
    int64_t tokens, width, type;
    int64_t layout;  // of the table, which may be the LM head too and then lies as the product reads it
};

enum Layout : int64_t { PLAIN = 0, TILES = 1, PANELS = 2 };  // linear_ops.py

// Read row `id` of a table laid out for linear_amx.cpp: pairs of places lie 16 pairs apart, in one of the two tiles of each
// step.
static void from_tiles(const void* table, int64_t id, int64_t width, float* out) {
    const bf16* pairs = (const bf16*)table + 2 * (id / 32 * 16 * width + id / 16 % 2 * 256 + id % 16);
    for (int64_t k = 0; k < width; k++) out[k] = to_float(pairs[2 * (k / 32 * 512 + k / 2 % 16 * 16) + k % 2]);
}
// Read it from panels (linear_panels.cpp): places lie a panel apart. In bf16 two numbers are adjacent: two places of an
// output where the CPU multiplies pairs, else the outputs i and i + VEC.
template <class T>
static void from_panels(const T* table, int64_t id, int64_t width, float* out) {
    constexpr int64_t PANEL = 2 * VEC;
    const int64_t i = id % PANEL;
    const T* from = table + id / PANEL * PANEL * width;
#if defined(__AVX512BF16__)
    if (sizeof(T) == 2) {
        for (int64_t k = 0; k < width; k++) out[k] = to_float(from[k / 2 * 2 * PANEL + 2 * i + k % 2]);
        return;
    }
#endif
    from += sizeof(T) == 2 ? i % VEC * 2 + i / VEC : i;
    for (int64_t k = 0; k < width; k++) out[k] = to_float(from[k * PANEL]);
}

template <class T>
static void embed(const EmbedArgs& a) {
#pragma omp parallel for if (a.tokens * a.width > ALONE)
    for (int64_t t = 0; t < a.tokens; t++) {
        float* out = a.out + t * a.width;
        const T* row = (const T*)a.table + a.ids[t] * a.width;
        if (a.layout == TILES)
            from_tiles(a.table, a.ids[t], a.width, out);
        else if (a.layout == PANELS)
            from_panels((const T*)a.table, a.ids[t], a.width, out);
        else
            by_vectors(a.width,
                       [&](int64_t i, int64_t lanes) INLINE_LAMBDA { put(out + i, get(row + i, lanes), lanes); });
        if (!a.positions) continue;
        const T* place = (const T*)a.position_table + a.positions[t] * a.width;
        by_vectors(a.width, [&](int64_t i, int64_t lanes)
                                INLINE_LAMBDA { put(out + i, get(out + i, lanes) + get(place + i, lanes), lanes); });
    }
}

EXPORT void glasshouse_embed(const EmbedArgs* a) { WITH_TYPE(a->type, T, embed<T>(*a)); }

// Compute the angles by which heads are rotated, of every token: position * inv_freq.
struct AnglesArgs {
    const int64_t* positions;  // [tokens]
    const float* inv_freq;     // [half]
    float *cos, *sin;          // [tokens, 2 * half], times scale; sin negated in its first half
    int64_t tokens, half;
    double scale;
};

EXPORT void glasshouse_angles(const AnglesArgs* args) {
    const AnglesArgs& a = *args;
    const float scale = float(a.scale);
#pragma omp parallel for if (a.tokens * a.half > ALONE / 32)
    for (int64_t t = 0; t < a.tokens; t++) {
        float *c = a.cos + 2 * t * a.half, *s = a.sin + 2 * t * a.half;
        for (int64_t i = 0; i < a.half; i++) {
            float angle = float(a.positions[t]) * a.inv_freq[i];
            c[i] = c[i + a.half] = cosf(angle) * scale;
            s[i + a.half] = sinf(angle) * scale;
            s[i] = -s[i + a.half];
        }
    }
}

// ------------------------------------------------------------------------------------------------- max(x, 0)

struct ReluArgs {
    void* x;  // [count], changed in place
    int64_t count, type;
};

template <class T>
static void relu(const ReluArgs& a) {
    T* x = (T*)a.x;
#pragma omp parallel for schedule(static) if (a.count > ALONE)
    for (int64_t start = 0; start < a.count; start += ALONE / 8) {
        int64_t left = a.count - start;
        by_vectors(left < ALONE / 8 ? left : ALONE / 8, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
            vec v = get(x + start + i, lanes);
            put(x + start + i, v < 0.0f ? vec{} : v, lanes);  // NaN stays NaN
        });
    }
}

EXPORT void glasshouse_relu(const ReluArgs* a) { WITH_TYPE(a->type, T, relu<T>(*a)); }

// ------------------------------------------------- rotary positions (and the norms before them) + write to the cache

struct RotateArgs {
    const void* x;                // [tokens, heads + values, dim]: q, then k (turned), then v (written as it is)
    const float *cos, *sin;       // [tokens, dim], sin negated in its first half; cos null: nothing is turned
    const void *q_norm, *k_norm;  // [dim] or null: RMSNorm of each head before it turns
    float* out;                   // [tokens, out_heads, dim]: the first out_heads heads
    void *k_pages, *v_pages;      // [blocks * block_size, kv_heads, dim] or null: not written
    const int64_t* slots;         // [tokens], where in the pages
    int64_t tokens, heads, out_heads, kv_heads, dim, x_stride;
    int64_t type, norm_type, kv_type;  // type: of x
    double eps;
};

// Rotate one head: dimension i turns with dimension i + dim / 2.
template <class T, class Norm, class Out>
static INLINE void turn(const T* x, const float* cos, const float* sin, const Norm* weight, float eps, Out* out,
                        int64_t dim) {
    float factor = 1.0f;
    if (weight) {
        vec squares = {};
        by_vectors(dim, [&](int64_t i, int64_t lanes)
                            INLINE_LAMBDA { squares = squares + get(x + i, lanes) * get(x + i, lanes); });
        factor = 1.0f / sqrtf(sum(squares) / dim + eps);
    }
    auto value = [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
        return weight ? round_like(get(x + i, lanes) * factor * get(weight + i, lanes), x) : get(x + i, lanes);
    };
    if (!cos) {
        by_vectors(dim, [&](int64_t i, int64_t lanes) INLINE_LAMBDA { put(out + i, value(i, lanes), lanes); });
        return;
    }
    int64_t half = dim / 2;
    by_vectors(half, [&](int64_t i, int64_t lanes) INLINE_LAMBDA {
        vec left = value(i, lanes), right = value(half + i, lanes);
        put(out + i, left * get(cos + i, lanes) + right * get(sin + i, lanes), lanes);
        put(out + half + i, right * get(cos + half + i, lanes) + left * get(sin + half + i, lanes), lanes);
    });
}

template <class T, class Norm, class KV>
static void rotate(const RotateArgs& a) {
    const float eps = a.eps;
#pragma omp parallel for if (a.tokens * a.heads * a.dim > ALONE)
    for (int64_t token = 0; token < a.tokens; token++) {
        const T* x = (const T*)a.x + token * a.x_stride;
        const float *cos = a.cos ? a.cos + token * a.dim : nullptr, *sin = a.sin + token * a.dim;
        for (int64_t h = 0; h < a.out_heads; h++)
            turn(x + h * a.dim, cos, sin, (const Norm*)a.q_norm, eps, a.out + (token * a.out_heads + h) * a.dim, a.dim);
        if (!a.k_pages) continue;
        for (int64_t h = 0; h < a.kv_heads; h++) {
            int64_t place = (a.slots[token] * a.kv_heads + h) * a.dim;
            const T *k = x + (a.out_heads + h) * a.dim, *v = k + a.kv_heads * a.dim;
            turn(k, cos, sin, (const Norm*)a.k_norm, eps, (KV*)a.k_pages + place, a.dim);
            turn<T, Norm, KV>(v, nullptr, nullptr, nullptr, eps, (KV*)a.v_pages + place, a.dim);
        }
    }
}

EXPORT void glasshouse_rotate(const RotateArgs* a) {
    WITH_TYPE(a->type, T, WITH_TYPE(a->norm_type, Norm, WITH_TYPE(a->kv_type, KV, rotate<T, Norm, KV>(*a))));
}

struct WriteArgs {
    const void *k, *v;                          // [tokens, kv_heads, dim], heads side by side
    void *k_pages, *v_pages;                    // [blocks * block_size, kv_heads, dim]
    const int64_t* slots;                       // [tokens]
    int64_t tokens, width, k_stride, v_stride;  // width: kv_heads * dim
    int64_t k_type, v_type, kv_type;
};

template <class T, class KV>
static void write(const void* from, void* pages, int64_t stride, const WriteArgs& a) {
#pragma omp parallel for if (a.tokens * a.width > ALONE)
    for (int64_t token = 0; token < a.tokens; token++) {
        const T* x = (const T*)from + token * stride;
        KV* to = (KV*)pages + a.slots[token] * a.width;
        by_vectors(a.width, [&](int64_t i, int64_t lanes) INLINE_LAMBDA { put(to + i, get(x + i, lanes), lanes); });
    }
}

EXPORT void glasshouse_write_kv(const WriteArgs* a) {
    WITH_TYPE(a->k_type, T, WITH_TYPE(a->kv_type, KV, write<T, KV>(a->k, a->k_pages, a->k_stride, *a)));
    WITH_TYPE(a->v_type, T, WITH_TYPE(a->kv_type, KV, write<T, KV>(a->v, a->v_pages, a->v_stride, *a)));
}

// ------------------------------------------------------------------------------------ argmax over the vocabulary

struct ArgmaxArgs {
    const void* x;  // [rows, width]
    int64_t* out;   // [rows]: index of the largest; the first one of equals; -1 if it isn't finite or there is a NaN
    int64_t rows, width, x_stride, type;
};

template <class T>
static void argmax(const ArgmaxArgs& a) {
    constexpr int64_t PIECE = 1024;
#pragma omp parallel for if (a.rows > 1 && a.rows * a.width > ALONE)
    for (int64_t row = 0; row < a.rows; row++) {
        const T* x = (const T*)a.x + row * a.x_stride;
        float best = -INFINITY;
        ivec strange = {};  // -1 in a lane that met a NaN, which no comparison chooses
        int64_t index = 0;
        for (int64_t start = 0; start < a.width; start += PIECE) {  // the first piece with the largest number
            int64_t end = start + PIECE < a.width ? start + PIECE : a.width, i = start;
            vec top = vec{} - INFINITY;
            for (; i + VEC <= end; i += VEC) {
                vec v = load(x + i);
                strange |= v != v;
                top = vmax(v, top);
            }
            float here = largest(top);
            for (; i < end; i++) {
                float v = to_float(x[i]);
                strange[0] |= -int32_t(v != v);
                here = v > here ? v : here;
            }
            if (here > best) best = here, index = start;
        }
        bool finite = best > -INFINITY && best < INFINITY;
        for (int lane = 0; lane < VEC; lane++) finite &= !strange[lane];
        while (finite && to_float(x[index]) != best) index++;
        a.out[row] = finite ? index : -1;
    }
}

EXPORT void glasshouse_argmax(const ArgmaxArgs* a) { WITH_TYPE(a->type, T, argmax<T>(*a)); }

// ------------------------------------------------------------------------------- forbid tokens, by a set of bits

struct MaskArgs {
    float* logits;         // [*, width], changed: -infinity where the bit is 0
    const int32_t* masks;  // [rows, words], bit t % 32 of word t / 32 is token t's
    const int64_t* rows;   // [rows], which line of logits each mask is for; none twice
    int64_t count, width, words, stride;
};

EXPORT void glasshouse_mask_logits(const MaskArgs* a) {
#pragma omp parallel for if (a->count > 1 && a->count * a->width > ALONE)
    for (int64_t row = 0; row < a->count; row++) {
        float* logits = a->logits + a->rows[row] * a->stride;
        const int32_t* mask = a->masks + row * a->words;
        for (int64_t start = 0; start < a->width; start += 32) {
            uint32_t word = uint32_t(mask[start / 32]);
            int64_t n = a->width - start < 32 ? a->width - start : 32;
            if (word == 0xFFFFFFFFu) continue;
            for (int64_t i = 0; i < n; i++) logits[start + i] = (word >> i) & 1 ? logits[start + i] : -INFINITY;
        }
    }
}
