"""Kernels that Numba compiles at their first call, where the C++ extension is missing: CPU only."""
