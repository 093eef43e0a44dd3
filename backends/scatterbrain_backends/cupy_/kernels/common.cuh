// What all kernels share. MUT == n plants bug n, for the tests of the tests; on the CPU it may be a variable.
#ifndef MUT
#define MUT 0
#endif

#define MINUS_INFINITY (-1e300 * 1e300)  // NVRTC knows no INFINITY

typedef long long Index;  // the integers of the core's index arrays

// Four neighbours, moved 16 bytes at a time.
template <class T>
struct alignas(16) Four {
    T at[4];
};

template <class T>
__device__ __forceinline__ Four<T> four(const T* from) {
    return *reinterpret_cast<const Four<T>*>(from);
}

#ifdef CUDA_HOST_SHIM
#define DYNAMIC_SHARED(name) unsigned char* name = shim::dynamic_shared()
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }
