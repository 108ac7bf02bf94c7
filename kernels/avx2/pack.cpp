/* pack.h and quantise_pack.h for AVX2. */
#include "quantise_pack.h"

extern "C" int32_t moelab_avx2_pack(int32_t weight_format, void *tiles, const void *source, const uint16_t *scale,
                                    int64_t rows, int64_t columns) {
    return pack_format(weight_format, tiles, source, scale, rows, columns);
}

extern "C" int32_t moelab_avx2_quantise_pack(int32_t weight_format, void *tiles, int32_t source_format,
                                             const void *source, int64_t rows, int64_t columns) {
    return quantise_format(weight_format, tiles, source_format, source, rows, columns);
}
