"""``benchmarks/run_gpu.sh tests|speed``: what a few minutes with a GPU are used for, in one folder of results."""
