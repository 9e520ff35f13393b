"""What a mixture does to a model, by small real runs that a sceptic can repeat: `python -m benchmarks learning`.

scenarios  which text is in the corpus, which of it is wanted, which policies are tried: data
corpora    the text: given or the Python environment's, and the domains that are made for a scenario
trial      runs: all policies of a seed branch from one beginning
outcome    paired differences with intervals, as a table and a picture
"""
