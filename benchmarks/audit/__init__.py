"""What the compilers make of the GPU kernels, on a machine without a GPU. ``python -m benchmarks.audit --help``"""
