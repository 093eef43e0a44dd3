// For each query the slots of its bucket among the sorted keys, and how many of these keys do not come after it. The
// numbers are those of sort_numbers.cu.
#include "common.cuh"

constexpr Index BITS_OF_RANK = 32, EVERY_RANK = (Index(1) << BITS_OF_RANK) - 1;

// The first slot whose number is larger, from among [from, to].
__device__ __forceinline__ Index first_above(const Index* numbers, Index from, Index to, Index number) {
    while (from < to) {
        const Index middle = from + (to - from) / 2;
        if (MUT == 1 ? numbers[middle] < number : numbers[middle] <= number)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

// key_number (n_keys), ascending; query_number, start, stop, rank (n_queries), by row.
__global__ void bucket_intervals(const Index* __restrict__ key_number, const Index* __restrict__ query_number,
                                 Index* __restrict__ start, Index* __restrict__ stop, Index* __restrict__ rank,
                                 Index n_keys, Index n_queries) {
    const Index row = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= n_queries) return;
    const Index number = query_number[row], first = number & ~EVERY_RANK;
    const Index lo = first_above(key_number, 0, n_keys, first - 1);
    const Index hi = first_above(key_number, lo, n_keys, MUT == 2 ? number : first | EVERY_RANK);
    start[row] = lo;
    stop[row] = hi;
    rank[row] = first_above(key_number, lo, hi, number) - (MUT == 3 ? 0 : lo);
}
