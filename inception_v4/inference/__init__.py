"""A network that is ready to run, from weights or an exported file: evaluate, validate, predict, score outputs.

Knows weights, runtimes, the graphs it keeps for them, and batches. Must never know an optimizer, a training run or how
files are exported for others.
"""
