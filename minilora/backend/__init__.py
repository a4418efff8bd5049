"""Where arrays live, and the kernels that work on them. Kernels take plain arrays and know nothing of the package."""
