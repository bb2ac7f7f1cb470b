"""CUDA kernels, bound as ``segfuse._cuda``."""
