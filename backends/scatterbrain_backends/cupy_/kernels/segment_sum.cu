// Sums of rows that stand in order of their segments, added to one row a segment. One thread block owns a segment
// and some columns; which lane adds which rows, and in which order, depends on the segment's length alone.
#include "common.cuh"

constexpr int MOST_THREADS = 256;

// rows (n_rows, width), order (n_rows): the row at each place; first, last (n_segments): a segment's places;
// total (n_segments, width).
template <class T>
__global__ void __launch_bounds__(MOST_THREADS)
    segment_sum(const T* __restrict__ rows, const Index* __restrict__ order, const Index* __restrict__ first,
                const Index* __restrict__ last, T* __restrict__ total, int width) {
    __shared__ T parts[MOST_THREADS];
    const Index segment = blockIdx.x;
    const int column = blockIdx.y * blockDim.x + threadIdx.x;
    T* const own = parts + threadIdx.y * blockDim.x + threadIdx.x;
    T sum = T(0);
    const Index end = last[segment] - (MUT == 2);
    if (column < width)
        for (Index place = first[segment] + threadIdx.y; place < end; place += blockDim.y)
            sum += rows[order[place] * width + column];
    *own = sum;
    for (int step = blockDim.y / 2; step > 0; step /= 2) {
        if (MUT != 1) __syncthreads();
        if (threadIdx.y < step) *own += own[step * blockDim.x];
    }
    if (threadIdx.y != 0 || column >= width) return;
    total[segment * width + column] = *own + (MUT == 3 ? T(0) : total[segment * width + column]);
}
