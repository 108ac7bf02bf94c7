/* Each tile instruction on operands of any shape, for the tests of the emulator against NumPy. */
#include <stdint.h>
#include <string.h>

#define API __attribute__((visibility("default")))

struct __attribute__((aligned(64))) configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

#define LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")

API void configure(const void *configuration) {
    __asm__ volatile("ldtilecfg (%0)" ::"r"(configuration) : "memory");
}
API void read_configuration(void *to) { __asm__ volatile("sttilecfg (%0)" ::"r"(to) : "memory"); }
API void release(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* c [m rows of n numbers] += a [m rows of k four-byte quads] x b [k rows of n quads]; strides in bytes. Kinds: ssd,
 * sud, usd, uud, bf16. */
API void dot(int kind, int m, int n, int k, void *c, int64_t c_stride, const void *a, int64_t a_stride, const void *b,
             int64_t b_stride) {
    struct configuration shape;
    memset(&shape, 0, sizeof(shape));
    shape.palette = 1;
    shape.rows[5] = (uint8_t)m, shape.row_bytes[5] = (uint16_t)(4 * n);
    shape.rows[0] = (uint8_t)m, shape.row_bytes[0] = (uint16_t)(4 * k);
    shape.rows[7] = (uint8_t)k, shape.row_bytes[7] = (uint16_t)(4 * n);
    configure(&shape);
    LOAD(5, c, c_stride);
    LOAD(0, a, a_stride);
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm7" ::"r"(b), "r"(b_stride) : "memory");
    switch (kind) {
    case 0: __asm__ volatile("tdpbssd %tmm7, %tmm0, %tmm5"); break;
    case 1: __asm__ volatile("tdpbsud %tmm7, %tmm0, %tmm5"); break;
    case 2: __asm__ volatile("tdpbusd %tmm7, %tmm0, %tmm5"); break;
    case 3: __asm__ volatile("tdpbuud %tmm7, %tmm0, %tmm5"); break;
    default: __asm__ volatile("tdpbf16ps %tmm7, %tmm0, %tmm5"); break;
    }
    STORE(5, c, c_stride);
    release();
}

/* The same 16 rows of 64 bytes copied through a tile by 8 forms of address, `to` has room for 8 copies. */
API void every_address(const uint8_t *from, uint8_t *to) {
    static struct configuration shape = {.palette = 1, .row_bytes = {64}, .rows = {16}};
    __asm__ volatile("ldtilecfg %0" ::"m"(shape)); /* relative to RIP */
#define COPY(number, registers, load)                                                     \
    __asm__ volatile(registers "\n\t" load ::"r"(from) : "memory", "rax", "rcx", "rbx",   \
                     "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15");               \
    STORE(0, to + number * 1024, 64)
    COPY(0, "mov %0, %%r12\n\tmov $64, %%r13", "tileloadd (%%r12,%%r13,1), %%tmm0");
    COPY(1, "mov %0, %%r13\n\tmov $32, %%r12", "tileloadd (%%r13,%%r12,2), %%tmm0");
    COPY(2, "lea -100(%0), %%r8\n\tmov $16, %%r15", "tileloadd 100(%%r8,%%r15,4), %%tmm0");
    COPY(3, "lea -100000(%0), %%r9\n\tmov $8, %%r14", "tileloadd 100000(%%r9,%%r14,8), %%tmm0");
    COPY(4, "lea 100(%0), %%rax\n\tmov $64, %%rcx", "tileloadd -100(%%rax,%%rcx,1), %%tmm0");
    /* Rows from the last to the first; then no index: one row 16 times. */
    COPY(5, "lea 960(%0), %%rbx\n\tmov $-64, %%r10", "tileloadd (%%rbx,%%r10,1), %%tmm0");
    COPY(6, "mov %0, %%r11", "tileloadd (%%r11), %%tmm0");
    __asm__ volatile("tilezero %tmm0");
    STORE(0, to + 7 * 1024, 64);
    release();
}

/* What the hardware refuses, by number; 3 to 5 set up one operand of the wrong shape. */
API void wrong(int number) {
    struct configuration shape = {.palette = 1, .rows = {4, 4, 4}, .row_bytes = {16, 16, 16}};
    if (number == 3) shape.rows[1] = 3;
    if (number == 4) shape.rows[2] = 3;
    if (number == 5) shape.row_bytes[2] = 12;
    if (number >= 2) configure(&shape);
    if (number < 2) __asm__ volatile("tilezero %tmm3");
    if (number == 2) __asm__ volatile(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc1"); /* tdpbssd %tmm1, %tmm1, %tmm0 */
    if (number < 6) __asm__ volatile("tdpbssd %tmm2, %tmm1, %tmm0");
    __asm__ volatile("ud2");
}
