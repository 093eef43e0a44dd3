// Codes of rows, a bit for each hyperplane, and their products with one more direction, in one pass over the rows. A
// lane has a row and a warp four directions; every product is summed column by column, so that equal rows tie.
#include "common.cuh"

constexpr int ROWS = 32, COLUMNS = 32, OF_WARP = 4, MOST_WARPS = 8;

// x (n, dim); directions (n_directions, dim): n_bits normals, the first of which gives the highest bit, and one more
// where there is a projection; code, projection (n). Warps y: the directions OF_WARP * y, ...
template <class T>
__global__ void __launch_bounds__(ROWS* MOST_WARPS, 4)
    hyperplane_codes(const T* __restrict__ x, const T* __restrict__ directions, Index* __restrict__ code,
                     T* __restrict__ projection, Index n, int dim, int n_bits, int n_directions) {
    __shared__ T rows[ROWS][COLUMNS + 1];
    __shared__ Four<T> normals[COLUMNS][MOST_WARPS + 1];  // transposed: a quad is what a warp reads at a time
    __shared__ int parts[MOST_WARPS][ROWS];
    const int lane = threadIdx.x, warp = threadIdx.y, n_warps = blockDim.y;
    const Index first = Index(blockIdx.x) * ROWS, row = first + lane;
    T sums[OF_WARP] = {};
    for (int column = 0; column < dim; column += COLUMNS) {
        const int own = column + lane;
        if (MUT != 1) __syncthreads();
        for (int r = warp; r < ROWS; r += n_warps)
            if (first + r < n && own < dim) rows[r][lane] = x[(first + r) * dim + own];
        for (int k = warp; k < n_directions; k += n_warps)
            if (own < dim) normals[lane][k / OF_WARP].at[k % OF_WARP] = directions[Index(k) * dim + own];
        if (MUT != 2) __syncthreads();
        for (int c = 0; c < min(COLUMNS, dim - column); c++) {
            const Four<T> normal = normals[c][warp];
#pragma unroll
            for (int k = 0; k < OF_WARP; k++) sums[k] += rows[lane][c] * normal.at[k];
        }
    }
    int bits = 0;
#pragma unroll
    for (int k = 0; k < OF_WARP; k++) {
        const int direction = OF_WARP * warp + k;
        const bool is_above = MUT == 3 ? sums[k] > T(0) : sums[k] >= T(0);
        if (direction < n_bits) bits |= int(is_above) << (MUT == 4 ? direction : n_bits - 1 - direction);
        if (direction == (MUT == 6 ? 0 : n_bits) && n_bits < n_directions && row < n) projection[row] = sums[k];
    }
    parts[warp][lane] = bits;
    if (MUT != 5) __syncthreads();
    if (warp > 0 || row >= n) return;
    for (int other = 1; other < n_warps; other++) bits |= parts[other][lane];
    code[row] = bits;
}
