"""CuPy, and CUDA kernels for any library's arrays on such a device; this package alone imports no CuPy."""
