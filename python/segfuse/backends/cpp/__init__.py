"""C++ kernels, bound as ``segfuse._cpp``."""
