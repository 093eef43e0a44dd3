// One number for each row, which orders rows by bucket and then by rank: the bucket above the 32 bits of the rank.
#include "common.cuh"

constexpr Index BITS_OF_RANK = 32;

// Positions stand for themselves.
__device__ __forceinline__ unsigned ordered(Index rank) { return unsigned(rank); }

// Floats in their order, 0 beside -0, and NaN behind all.
__device__ __forceinline__ unsigned ordered(const float& rank) {
    const unsigned sign = 0x80000000u, infinity = 0x7f800000u;
    const unsigned bits = *reinterpret_cast<const unsigned*>(&rank);
    if ((bits & ~sign) > infinity && MUT != 1) return ~0u;
    if ((bits & ~sign) == 0 && MUT != 2) return sign;
    return bits & sign && MUT != 3 ? ~bits : bits | sign;
}

// bucket, rank, number (n). Buckets are below 2**31, so that numbers are not negative.
template <class T>
__global__ void sort_numbers(const Index* __restrict__ bucket, const T* __restrict__ rank, Index* __restrict__ number,
                             Index n) {
    const Index row = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row < n) number[row] = bucket[row] << (MUT == 4 ? BITS_OF_RANK - 1 : BITS_OF_RANK) | Index(ordered(rank[row]));
}
