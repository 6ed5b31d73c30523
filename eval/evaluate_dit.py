"""Evaluate a file of samples: `python eval/evaluate_dit.py SAMPLES reference=REFERENCE key=value ...`."""

import sys

from dit_shd.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
