/* Read loops of 64-byte vectors. */
#include <immintrin.h>

#include "read.h"

namespace {

struct vector {
    typedef __m512i type;
    static const uint64_t bytes = 64;
    static __m512i zero() { return _mm512_setzero_si512(); }
    static __m512i add(__m512i sum, const uint8_t *from) { return _mm512_add_epi64(sum, _mm512_loadu_si512(from)); }
    static uint64_t total(__m512i sum) { return (uint64_t)_mm512_reduce_add_epi64(sum); }
};

}  // namespace

extern "C" uint64_t moelab_avx512_read_1(const void *data, uint64_t bytes) {
    return read_streams<vector, 1, 8>(data, bytes);
}
extern "C" uint64_t moelab_avx512_read_2(const void *data, uint64_t bytes) {
    return read_streams<vector, 2, 4>(data, bytes);
}
extern "C" uint64_t moelab_avx512_read_4(const void *data, uint64_t bytes) {
    return read_streams<vector, 4, 4>(data, bytes);
}
extern "C" uint64_t moelab_avx512_read_1_pages(const void *data, uint64_t bytes) {
    return read_streams<vector, 1, 8, true>(data, bytes);
}
extern "C" uint64_t moelab_avx512_read_2_pages(const void *data, uint64_t bytes) {
    return read_streams<vector, 2, 4, true>(data, bytes);
}
