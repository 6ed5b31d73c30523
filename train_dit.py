"""Train or distil: `accelerate launch train_dit.py configs/x.yaml key=value ...` (`--help` explains every key)."""

import sys

from dit_shd.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
