"""Where a run's files live, and whether they may be written there: the lock of a run directory.

Knows folders, files and who writes into them. Must never know what is in a file.
"""
