"""The scaling-law fit: one objective (objective.py), one step (step_algebra.py), and each written in Numba and Triton.

Dimensions as suffixes: K domains, T steps of a history, M points that are kept of it, P parameters (log_beta, log_eps,
alpha), S searches of a domain, G starts of a search. Names without a suffix are scalars.
"""
