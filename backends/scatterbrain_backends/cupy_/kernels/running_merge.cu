// Running merges of partial results exp(ref) * acc along the blocks of a segment, in their order. One thread owns a
// row and a column of a whole segment: nothing is added by two, and what comes later changes no bit.
#include "common.cuh"

constexpr int MOST_THREADS = 256;
constexpr int AHEAD = 4;  // blocks that are read before the first of them is merged: a segment is walked by one thread

// The block behind the last of a segment, whose numbers stand together but in any order of the segments.
__device__ __forceinline__ Index end_of_segment(const Index* segment, Index first, Index n) {
    Index inside = first, outside = n;
    while (outside - inside > 1) {
        const Index middle = inside + (outside - inside) / 2;
        if (segment[middle] == segment[first])
            inside = middle;
        else
            outside = middle;
    }
    return MUT == 1 && outside < n ? outside + 1 : outside;
}

// A NaN is the larger of any two, which fmax would drop.
template <class T>
__device__ __forceinline__ T larger_or_nan(T a, T b) {
    if (MUT == 2) return larger(a, b);
    return a > b || a != a ? a : b;
}

template <class T>
struct Merged {
    T ref, acc;

    __device__ __forceinline__ void add(T other_ref, T other_acc) {
        const T top = larger_or_nan(ref, other_ref);
        const T base = top == T(MINUS_INFINITY) && MUT != 3 ? T(0) : top;  // both saw nothing
        const T own = MUT == 4 ? T(1) : exp_of(ref - base);
        acc = acc * own + other_acc * exp_of(other_ref - base);
        ref = top;
    }
};

// ref, ref_out (n, rows); acc, acc_out (n, rows, columns); segment (n). Thread blocks x: the first block of a segment
// has it whole, others have nothing to do.
template <class T>
__global__ void __launch_bounds__(MOST_THREADS, 2)
    running_merge(const T* __restrict__ ref, const T* __restrict__ acc, const Index* __restrict__ segment,
                  T* __restrict__ ref_out, T* __restrict__ acc_out, Index n, int rows, int columns) {
    const Index first = blockIdx.x;
    if (first > 0 && segment[first] == segment[first - 1] && MUT != 5) return;
    const Index end = end_of_segment(segment, first, n);
    const Index entries = Index(rows) * columns, step = Index(gridDim.y) * blockDim.x;
    for (Index entry = Index(blockIdx.y) * blockDim.x + threadIdx.x; entry < entries; entry += step) {
        const Index row = MUT == 6 ? entry % rows : entry / columns;
        Merged<T> merged = {T(MINUS_INFINITY), T(0)};
        for (Index block = first; block < end; block += AHEAD) {
            Merged<T> next[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (block + i < end) next[i] = {ref[(block + i) * rows + row], acc[(block + i) * entries + entry]};
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                if (block + i >= end) continue;
                merged.add(next[i].ref, next[i].acc);
                acc_out[(block + i) * entries + entry] = merged.acc;
                if (entry == row * columns) ref_out[(block + i) * rows + row] = merged.ref;
            }
        }
    }
}
