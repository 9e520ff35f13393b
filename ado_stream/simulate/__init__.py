"""Policies tried without a training run: a closed loop on synthetic domains, controlled differences, replay.

synthetic        the true loss of every domain as a function of what was drawn so far
default_spec     22 domains named and weighted like The Pile's
loop             a policy and synthetic domains in a closed loop, from a spec
controlled       domains alike but for one thing: the share that ADO gives, and the share that its formulas give
controlled_plot  its picture
replay           the mixtures another policy would have chosen on a recorded run
"""
