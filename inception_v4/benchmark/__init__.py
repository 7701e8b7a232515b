"""Honest timings of this network, its exports and its loader beside other programs'.

Knows every room below as its user would. Must never be known by one of them.
"""
