"""`inception-v4 export`, for MindCV and ModelZoo habits: python tools/export.py --help"""

import sys

from inception_v4.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
