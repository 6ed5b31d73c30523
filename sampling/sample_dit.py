"""Sample: `accelerate launch sampling/sample_dit.py RUN key=value ...` (`--help` explains every key)."""

import sys

from dit_shd.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
