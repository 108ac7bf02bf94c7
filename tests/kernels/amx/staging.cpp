/* Two expansions through one buffer, each loaded into its tile: what GCC 12's intrinsics let the compiler take apart at
 * -O3. With INTRINSICS the loads are those, without a barrier. */
#include <immintrin.h>

#include "amx/tiles.h"

typedef bytes unaligned __attribute__((aligned(1)));

static inline void expand(const uint8_t *from, uint8_t *buffer) {
    for (int line = 0; line < 16; line++)
        *(bytes *)(buffer + line * 64) = (*(const unaligned *)(from + line * 64) & (uint8_t)15) << 4;
}

extern "C" __attribute__((visibility("default"))) void stage(const uint8_t *first, const uint8_t *second, uint8_t *to) {
    alignas(64) uint8_t buffer[1024];
    configure_tiles(64, 16);
    expand(first, buffer);
#ifdef INTRINSICS
    _tile_loadd(4, buffer, 64);
    expand(second, buffer);
    _tile_loadd(5, buffer, 64);
#else
    load_tile<4>(buffer, 64);
    expand(second, buffer);
    load_tile<5>(buffer, 64);
#endif
    store_tile<4>(to, 64);
    store_tile<5>(to + 1024, 64);
    release_tiles();
}
