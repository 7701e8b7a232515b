"""Containers of weights: which kind of file it is, and its tensors by the names in it.

Knows bytes. Must never know what a name stands for in the network.
"""
