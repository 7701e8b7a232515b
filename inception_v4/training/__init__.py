"""One run from its settings to its weights: job, step, optimizer, schedule, checkpoints, log, curves.

Knows everything below it. Must never know the command line, another runtime or a benchmark.
"""
