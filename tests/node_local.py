"""Run under torchrun: the `inception-v4` command, each process in a folder of its own, as on machines with own disks.

Process r works in node<r>, below the current directory: relative paths are its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from inception_v4.cli.main import main

if __name__ == "__main__":
    folder = Path(f"node{os.environ['RANK']}")
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    sys.exit(main())
