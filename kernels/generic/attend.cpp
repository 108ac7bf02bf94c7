/* Attention in plain C++. */
#include "attend.h"

namespace {

struct vector {
    typedef float type;
    static const int width = 1, scored_keys = 4, mixed_heads = 1, mixed_vectors = 8;
    static float load(const float *from) { return *from; }
    static float load(const uint16_t *from) { return bf16_to_float(*from); }
    static float set(float x) { return x; }
    static float zero() { return 0.0f; }
    static float fma(float a, float b, float c) { return a * b + c; }
    static void store(float *to, float x) { *to = x; }
};

}  // namespace

MOELAB_ATTEND(generic, vector)
