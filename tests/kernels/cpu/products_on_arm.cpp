// Check the products of the variant for 64-bit ARM: right, and a row's the same alone and in company. test_neon.py runs it.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector>

extern "C" void glasshouse_linear(const int64_t*);
extern "C" void glasshouse_linear_panels(const int64_t*);

constexpr int64_t PANEL = 8;
static uint32_t state = 1;
static float number() { return float(int32_t(state = state * 1664525u + 1013904223u)) / 2147483648.0f; }
static uint16_t half(float x) {  // numbers of few digits: exact
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits >> 16;
}
static float cut(float x) {
    uint32_t bits = uint32_t(half(x)) << 16;
    memcpy(&x, &bits, 4);
    return x;
}

// Lay out W [n, k] as pack_weight in linear_ops.py does.
template <class T>
static std::vector<T> packed(const std::vector<T>& w, int64_t n, int64_t k) {
    std::vector<T> out(n * k);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < k; j++) {
            const int64_t lane = i % PANEL;
            const int64_t place = sizeof(T) == 4 ? lane : lane % (PANEL / 2) * 2 + lane / (PANEL / 2);
            out[(i / PANEL * k + j) * PANEL + place] = w[i * k + j];
        }
    return out;
}

template <class T>
static int check(const std::vector<T>& x, const std::vector<T>& w, const std::vector<float>& exact_x,
                 const std::vector<float>& exact_w, int64_t m, int64_t n, int64_t k, bool panels) {
    const int64_t type = sizeof(T) == 2;
    const std::vector<T> laid_out = panels ? packed(w, n, k) : w;
    auto run = [&](const T* rows, int64_t count, float* y) {
        const int64_t args[] = {
            int64_t(rows), int64_t(laid_out.data()), 0, int64_t(y), count, n, k, k, n, type, type, 0, 0};
        panels ? glasshouse_linear_panels(args) : glasshouse_linear(args);
    };
    std::vector<float> together(m * n), alone(n);
    run(x.data(), m, together.data());
    for (int64_t i = 0; i < m; i++) {
        run(x.data() + i * k, 1, alone.data());
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++) sum += double(exact_x[i * k + p]) * exact_w[j * k + p];
            if (fabs(sum - together[i * n + j]) > 1e-5 || memcmp(&alone[j], &together[i * n + j], 4)) {
                printf("wrong: %ld rows, output %ld of row %ld, panels %d, bf16 %ld: %g, alone %g, exact %g\n", long(m),
                       long(j), long(i), panels, long(type), together[i * n + j], alone[j], sum);
                return 1;
            }
        }
    }
    return 0;
}

int main() {
    int wrong = 0, checked = 0;
    for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 29})
        for (int64_t k : {32, 37}) {
            const int64_t n = 5 * PANEL;
            std::vector<float> x(m * k), w(n * k);
            std::vector<uint16_t> half_x, half_w;
            for (float& v : x) half_x.push_back(half(v = cut(number())));
            for (float& v : w) half_w.push_back(half(v = cut(number())));
            for (bool panels : {false, true}) {
                wrong += check(x, w, x, w, m, n, k, panels) + check(half_x, half_w, x, w, m, n, k, panels);
                checked += 2;
            }
        }
    printf("%d products checked, %d wrong\n", checked, wrong);
    return wrong != 0;
}
