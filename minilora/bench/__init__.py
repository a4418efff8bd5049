"""Benchmarks: each prints ratios measured in one process, with the CPU and the BLAS kernel named."""
