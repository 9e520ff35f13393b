"""AdaptiveLoader in the training loops of other frameworks, one file each.

There is none for Composer: its newest release (0.32.1) needs torch below 2.7.1, this project 2.11 or newer.
"""
