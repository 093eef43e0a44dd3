"""Speed, memory and error on a CUDA device."""
