// Attention of a chunk of a prompt where vectors multiply fp32 only (AVX2): see attention.cpp for the task.
//
// Scores and weighted values are products of matrices, and both go by the tile of linear_panels.cpp, 6 queries by two vectors:
//
//   K of KEYS positions is turned, [dim, position], so that a vector holds one dimension of 8 positions
//   for 6 queries at a time, so that what they need stays in the first cache:
//     scores [6, position]  =  q [6, dim] x K turned
//     softmax, query by query
//     o [6, dim]  +=  weights [6, position] x V [position, dim]
//
// 64 positions of 64 dimensions are 16 KiB of K and as much of V; to turn them takes less than a tenth of the time with 126 queries a task.
#pragma once

constexpr int HEIGHT = 6;

// c [M, H vectors] = a [M, inner] x b [inner, H vectors], or added onto what c holds. Strides: from row to row, in numbers.
template <int M, int H>
static INLINE void product(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, float* c, int64_t c_stride, bool onto) {
    vec sums[M][H];
    for (int i = 0; i < M; i++)
        for (int h = 0; h < H; h++) sums[i][h] = onto ? load(c + i * c_stride + h * VEC) : vec{};
    for (int64_t k = 0; k < inner; k++) {
        vec row[H];
        for (int h = 0; h < H; h++) row[h] = load(b + k * b_stride + h * VEC);
        for (int i = 0; i < M; i++)
            for (int h = 0; h < H; h++) sums[i][h] += a[i * a_stride + k] * row[h];
    }
    for (int i = 0; i < M; i++)
        for (int h = 0; h < H; h++) store(c + i * c_stride + h * VEC, sums[i][h]);
}

// The same for `rows` <= HEIGHT rows and as many columns as there are, a multiple of VEC.
static void products(int64_t rows, int64_t columns, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t inner, float* c,
                     int64_t c_stride, bool onto) {
    int64_t j = 0;
    for (; j + 2 * VEC <= columns; j += 2 * VEC) switch (rows) {
            case 1: product<1, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto); break;
            case 2: product<2, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto); break;
            case 3: product<3, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto); break;
            case 4: product<4, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto); break;
            case 5: product<5, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto); break;
            default: product<HEIGHT, 2>(a, a_stride, b + j, b_stride, inner, c + j, c_stride, onto);
        }
    if (j < columns)
        for (int64_t i = 0; i < rows; i++) product<1, 1>(a + i * a_stride, a_stride, b + j, b_stride, inner, c + i * c_stride + j, c_stride, onto);
}

// K of `keys` positions, turned: to[d * KEYS + j]. at: where each starts, with places for VEC more than there are keys.
template <class KV>
static INLINE void turn_keys(float* to, const KV* k, const int64_t* at, int64_t keys, int64_t dim) {
    for (int64_t j = 0; j < keys; j += VEC)
        for (int64_t d = 0; d < dim; d += VEC) {
            const int64_t lanes = dim - d < VEC ? dim - d : VEC;
            vec rows[VEC];
            for (int i = 0; i < VEC; i++) rows[i] = lanes == VEC ? load(k + at[j + i] + d) : load_part(k + at[j + i] + d, lanes);
            transpose(rows);
            for (int i = 0; i < lanes; i++) store(to + (d + i) * KEYS + j, rows[i]);
        }
}

// Queries (in x.q, times scale), m, l and o are as `attend` has made them.
template <class KV>
static void attend_panels(Scratch& x, const AttentionArgs& a, const Task& t) {
    const int64_t queries = t.tokens * t.heads, start = a.context_lens[t.row] - (a.query_start[t.row + 1] - a.query_start[t.row]) + t.token;
    Ahead<KV> here, next;
    here.k = next.k = (const KV*)a.k, here.v = next.v = (const KV*)a.v, here.numbers = next.numbers = t.kv_heads * a.dim;
    next.find(a, t, t.first);
    for (int64_t first = t.first; first < t.last; first += KEYS) {
        next.ask_all();  // what is left of it
        here = next;
        for (int64_t j = here.keys; j % VEC; j++) here.at[j] = here.at[0];  // any place that exists: its score is hidden
        next.find(a, t, first + KEYS);
        for (int64_t g = 0; g < t.kv_heads; g++) {
            turn_keys(x.k, here.k + g * a.dim, here.at, here.keys, a.dim);
            for (int64_t j = 0; j < here.keys; j++) {
                stage(x.v + j * x.pitch, here.v + here.at[j] + g * a.dim, a.dim);
                next.ask_k(), next.ask_v();
            }
            for (int64_t i = 0; i < queries; i += HEIGHT) {
                const int64_t rows = queries - i < HEIGHT ? queries - i : HEIGHT, last = start + (i + rows - 1) / t.heads - first;
                const int64_t keys = last + 1 < here.keys ? last + 1 : here.keys;  // that any of these queries sees
                if (keys <= 0) continue;
                float *s = x.s[0], *q = x.q + (g * queries + i) * x.pitch, *o = x.state.o + (g * queries + i) * x.pitch;
                products(rows, (keys + VEC - 1) / VEC * VEC, q, x.pitch, x.k, KEYS, a.dim, s, KEYS, false);
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t position = start + (i + r) / t.heads - first, low = a.window ? position - a.window + 1 : 0;
                    softmax(x, g * queries + i + r, x.s[r], float(a.soft_cap), keys, low, position + 1 < keys ? position + 1 : keys);
                }
                products(rows, x.pitch, s, KEYS, x.v, x.pitch, keys, o, x.pitch, true);
            }
        }
    }
}
