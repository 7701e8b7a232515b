"""The command line: arguments in, results and exit codes out, one file per subcommand.

Knows what to call. Must never compute anything itself, nor import torch before a command needs it.
"""
