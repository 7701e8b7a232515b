"""Files for other runtimes, each compared with the network in PyTorch before it takes its name.

Knows weights and what runs exported files. Must never know training or the command line.
"""
