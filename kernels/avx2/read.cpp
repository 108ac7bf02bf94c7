/* Read loops of 32-byte vectors. */
#include <immintrin.h>

#include "read.h"

namespace {

struct vector {
    typedef __m256i type;
    static const uint64_t bytes = 32;
    static __m256i zero() { return _mm256_setzero_si256(); }
    static __m256i add(__m256i sum, const uint8_t *from) {
        return _mm256_add_epi64(sum, _mm256_loadu_si256((const __m256i *)from));
    }
    static uint64_t total(__m256i sum) {
        alignas(32) uint64_t words[4];
        _mm256_store_si256((__m256i *)words, sum);
        return words[0] + words[1] + words[2] + words[3];
    }
};

}  // namespace

extern "C" uint64_t moelab_avx2_read_1(const void *data, uint64_t bytes) {
    return read_streams<vector, 1, 8>(data, bytes);
}
extern "C" uint64_t moelab_avx2_read_2(const void *data, uint64_t bytes) {
    return read_streams<vector, 2, 4>(data, bytes);
}
extern "C" uint64_t moelab_avx2_read_4(const void *data, uint64_t bytes) {
    return read_streams<vector, 4, 2>(data, bytes);
}
extern "C" uint64_t moelab_avx2_read_1_pages(const void *data, uint64_t bytes) {
    return read_streams<vector, 1, 8, true>(data, bytes);
}
extern "C" uint64_t moelab_avx2_read_2_pages(const void *data, uint64_t bytes) {
    return read_streams<vector, 2, 4, true>(data, bytes);
}
