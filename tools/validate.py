"""`inception-v4 validate`, for torchrun and for MindCV habits: python tools/validate.py --help"""

import sys

from inception_v4.cli.main import main

if __name__ == "__main__":
    main(["validate", *sys.argv[1:]])
