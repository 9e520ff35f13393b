"""One folder per operation: reference, registration and dispatcher in its front file, kernels by device beside it."""
