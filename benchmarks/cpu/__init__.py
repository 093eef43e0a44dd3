"""Time, memory and error on the CPU, beside Torch's own attention and other packages."""
