"""One file per operation: reference, kernels, registration, dispatcher."""
