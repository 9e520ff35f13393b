"""The scaling-law fit: one specification, a Numba and a Triton implementation."""
