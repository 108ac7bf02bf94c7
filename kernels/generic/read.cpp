/* Read loops in plain C++. */
#include "read.h"

namespace {

struct word {
    typedef uint64_t type;
    static const uint64_t bytes = 8;
    static uint64_t zero() { return 0; }
    static uint64_t add(uint64_t sum, const uint8_t *from) { return sum + *(const uint64_t *)from; }
    static uint64_t total(uint64_t sum) { return sum; }
};

}  // namespace

extern "C" uint64_t moelab_generic_read_1(const void *data, uint64_t bytes) {
    return read_streams<word, 1, 32>(data, bytes);
}
extern "C" uint64_t moelab_generic_read_4(const void *data, uint64_t bytes) {
    return read_streams<word, 4, 8>(data, bytes);
}
