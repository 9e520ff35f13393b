"""Policies tried without a training run: a closed loop on synthetic domains, controlled differences, replay.

synthetic_domains       the true loss of every domain as a function of the samples drawn so far
default_spec            22 domains with the names and weights of The Pile's
worlds                  the situations in which mixtures matter, as specs
closed_loop             a policy and synthetic domains in a closed loop, from a spec
oracle                  the best that any mixture can do on synthetic domains
controlled_experiments  domains equal but for one property: a domain's share under ADO, and by ADO's formulas
controlled_plot         the figure of these experiments
recorded_run            the mixtures of another policy on a recorded run
"""
