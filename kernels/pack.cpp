/* Repacking for loading: the fastest of the builds of pack.h and quantise_pack.h that this CPU runs; the bytes are
 * the same. */
#include "pack.h"
#include "quantise_pack.h"

#ifdef MOELAB_AVX2
extern "C" int32_t moelab_avx2_pack(int32_t, void *, const void *, const uint16_t *, int64_t, int64_t);
extern "C" int32_t moelab_avx2_quantise_pack(int32_t, void *, int32_t, const void *, int64_t, int64_t);
static bool has_avx2() { return moelab_isa_supported("avx2") == 1; }
#endif

extern "C" MOELAB_API int32_t moelab_pack(int32_t weight_format, void *tiles, const void *source, const uint16_t *scale,
                                          int64_t rows, int64_t columns) {
    if (rows < 1 || columns < 1) return MOELAB_BAD_SHAPE;
#ifdef MOELAB_AVX2
    if (has_avx2()) return moelab_avx2_pack(weight_format, tiles, source, scale, rows, columns);
#endif
    return pack_format(weight_format, tiles, source, scale, rows, columns);
}

extern "C" MOELAB_API int32_t moelab_quantise_pack(int32_t weight_format, void *tiles, int32_t source_format,
                                                   const void *source, int64_t rows, int64_t columns) {
    if (rows < 1 || columns < 1) return MOELAB_BAD_SHAPE;
    if (source_format != MOELAB_FLOAT32 && source_format != MOELAB_BF16) return MOELAB_UNSUPPORTED;
#ifdef MOELAB_AVX2
    if (has_avx2()) return moelab_avx2_quantise_pack(weight_format, tiles, source_format, source, rows, columns);
#endif
    return quantise_format(weight_format, tiles, source_format, source, rows, columns);
}
