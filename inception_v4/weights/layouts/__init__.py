"""Layouts of weights: what other projects call this network's parameters, one file each, and the registry.

Knows names and shapes. Must never know how a file holds them.
"""
