"""The demo: a corpus from this machine's Python, two short runs, one report."""
