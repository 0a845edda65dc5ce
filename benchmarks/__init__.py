"""Measurements: every file under benchmarks/kernels mirrors an operation of kernels/."""
