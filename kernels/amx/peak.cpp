/* Loops of the tile instructions alone: what computing could reach with tiles that are full. */
#include "tiles.h"

/* Four independent sums hide the latency. Return the number of operations (2 for each product). */
extern "C" uint64_t moelab_amx_peak_int8(int64_t iterations) {
    configure_tiles(64, 16);
    each<8>([](auto tile) { zero_tile<tile>(); });
    for (int64_t i = 0; i < iterations; i++) each<4>([](auto c) { dot_int8<4 + c, c % 2, 2 + c / 2>(); });
    release_tiles();
    return (uint64_t)iterations * 4 * 2 * 16 * 16 * 64;
}

extern "C" uint64_t moelab_amx_peak_bf16(int64_t iterations) {
    configure_tiles(64, 16);
    each<8>([](auto tile) { zero_tile<tile>(); });
    for (int64_t i = 0; i < iterations; i++) each<4>([](auto c) { dot_bf16<4 + c, c % 2, 2 + c / 2>(); });
    release_tiles();
    return (uint64_t)iterations * 4 * 2 * 16 * 16 * 32;
}
