"""The scaling-law fit: one specification, a Numba, a Triton and a torch implementation."""
