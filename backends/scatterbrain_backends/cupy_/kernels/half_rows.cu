// Rows of floats as rows of half precision: times the factor that gives the very entries that came, padded with zeros to
// a stride that is read 16 bytes at a time.
#include "mma.cuh"

// x (n, columns), of which the first `width` are taken; to (n, stride), stride even. A thread has two neighbours.
template <class H>
__global__ void half_rows(const float* __restrict__ x, HalfBits* __restrict__ to, Index n, int columns, int width,
                          int stride, float factor) {
#if HAS_MMA
    const int n_words = stride / 2;
    const Index word = Index(blockIdx.x) * blockDim.x + threadIdx.x, row = word / n_words;
    if (row >= n) return;
    const int c = int(word % n_words) * 2;
    const float* const own = x + row * (MUT == 1 ? width : columns);
    const float low = c < width || MUT == 2 ? own[c] : 0.f, high = c + 1 < width ? own[c + 1] : 0.f;
    if (MUT == 3) factor = 1.f;
    reinterpret_cast<unsigned*>(to)[word] = packed<H>(low * factor, high * factor);
#else
    __trap();
#endif
}
