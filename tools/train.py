"""`inception-v4 train`, for torchrun and for MindCV habits: python tools/train.py --help"""

import sys

from inception_v4.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
