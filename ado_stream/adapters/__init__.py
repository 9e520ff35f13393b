"""ado-stream in other people's training loops, one file each.

There is none for Composer: its newest release (0.32.1) asks for torch below 2.7.1, this project for 2.11 or newer.
"""
