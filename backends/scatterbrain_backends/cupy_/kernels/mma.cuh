// Products of 16-bit floats on tensor cores, m16n8k16 into float, with what loads and packs their operands: PTX from
// sm_80 on. On the CPU the same is done by exchange between the lanes of a warp.
#include "common.cuh"

struct Float16 {};
struct BFloat16 {};
typedef short HalfBits;  // 16 bits of either, in the arrays of libraries that may have no such dtype

// Kernels that use it are compiled for other architectures too, and stop there.
#if defined(CUDA_HOST_SHIM) || __CUDA_ARCH__ >= 800
#define HAS_MMA 1
#else
#define HAS_MMA 0
#endif

#ifndef CUDA_HOST_SHIM

// Two floats, rounded, in one word: `low` in its low half.
template <class H>
__device__ __forceinline__ unsigned packed(float low, float high);
template <>
__device__ __forceinline__ unsigned packed<Float16>(float low, float high) {
    unsigned x;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}
template <>
__device__ __forceinline__ unsigned packed<BFloat16>(float low, float high) {
    unsigned x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}

// One half of a word as a float.
template <class H>
__device__ __forceinline__ float unpacked(unsigned x, int is_high);
template <>
__device__ __forceinline__ float unpacked<Float16>(unsigned x, int is_high) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"((unsigned short)(is_high ? x >> 16 : x)));
    return y;
}
template <>
__device__ __forceinline__ float unpacked<BFloat16>(unsigned x, int is_high) {
    return __uint_as_float(is_high ? x & 0xffff0000u : x << 16);
}

// Four matrices of 8 rows of 16 bytes; lane 8 * i + r gives the address of row r of matrix i, and gets in to[i] the
// entries 2 * (lane % 4) and the next of its row lane / 4.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void load_transposed(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}

// d += A B for A (16, 16) by rows and B (16, 8) by columns. With g = lane / 4 and t = lane % 4 a lane has of A the
// pairs [g][2t], [g + 8][2t], [g][2t + 8], [g + 8][2t + 8], of B [2t][g], [2t + 8][g], and of d the entries
// [g][2t], [g][2t + 1], [g + 8][2t], [g + 8][2t + 1].
#define MULTIPLY_ADD(H, type)                                                                                        \
    template <>                                                                                                      \
    __device__ __forceinline__ void multiply_add<H>(float& d0, float& d1, float& d2, float& d3,                      \
                                                    const unsigned (&a)[4], unsigned b0, unsigned b1) {              \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                          \
            ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                   \
            : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)                                                                 \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                         \
    }
template <class H>
__device__ __forceinline__ void multiply_add(float& d0, float& d1, float& d2, float& d3, const unsigned (&a)[4],
                                             unsigned b0, unsigned b1);
MULTIPLY_ADD(Float16, "f16")
MULTIPLY_ADD(BFloat16, "bf16")

#else

inline unsigned bits_of(Float16, float x) {
    const _Float16 half = _Float16(x);
    unsigned short bits;
    __builtin_memcpy(&bits, &half, 2);
    return bits;
}

inline unsigned bits_of(BFloat16, float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, 4);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to even
}

inline float float_of(Float16, unsigned short bits) {
    _Float16 x;
    __builtin_memcpy(&x, &bits, 2);
    return float(x);
}

inline float float_of(BFloat16, unsigned short bits) {
    const unsigned word = unsigned(bits) << 16;
    float x;
    __builtin_memcpy(&x, &word, 4);
    return x;
}

template <class H>
unsigned packed(float low, float high) {
    return bits_of(H{}, low) | bits_of(H{}, high) << 16;
}

template <class H>
float unpacked(unsigned x, int is_high) {
    return float_of(H{}, (unsigned short)(is_high ? x >> 16 : x));
}

inline void load_matrices(unsigned (&to)[4], const void* row) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++)
        to[i] = static_cast<const unsigned*>(__shfl_sync(0xffffffffu, row, 8 * i + lane / 4))[lane % 4];
}

inline void load_transposed(unsigned (&to)[4], const void* row) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        unsigned halves[2];
        for (int h = 0; h < 2; h++)
            halves[h] = static_cast<const unsigned short*>(
                __shfl_sync(0xffffffffu, row, 8 * i + 2 * (lane % 4) + h))[lane / 4];
        to[i] = halves[0] | halves[1] << 16;
    }
}

template <class H>
void multiply_add(float& d0, float& d1, float& d2, float& d3, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const unsigned b[2] = {b0, b1};
    float* const d[2][2] = {{&d0, &d1}, {&d2, &d3}};
    for (int k = 0; k < 16; k++) {
        const int of_row = k % 8 / 2, part = k / 8;
        float of_a[2], of_b[2];
        for (int i = 0; i < 2; i++)
            of_a[i] = unpacked<H>(__shfl_sync(0xffffffffu, a[i + 2 * part], 4 * g + of_row), k % 2);
        for (int n = 0; n < 2; n++)
            of_b[n] = unpacked<H>(__shfl_sync(0xffffffffu, b[part], 4 * (2 * t + n) + of_row), k % 2);
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < 2; n++) *d[i][n] += of_a[i] * of_b[n];
    }
}

#endif
