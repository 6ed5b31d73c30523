"""One part of gpu.py, in a process of its own: prints rows; at true sizes on a GPU, or tiny (--rehearse) on a CPU.

A part's file is imported when it is asked for: where a package is missing, the other parts go on.
"""

import argparse
import importlib

from _gpu import TINY, TRUE

FILES = {
    "card": "gpu_kernels", "values": "gpu_kernels", "kernels": "gpu_kernels", "attention": "gpu_kernels",
    "step": "gpu_models", "compiled": "gpu_models", "sampling": "gpu_models", "tests": "gpu_tests",
}  # fmt: skip
"""The file of each part, which has a function of its name."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("part", help="its name, and perhaps a number of tokens or a word")
    options.add_argument("--rehearse", action="store_true")
    args = options.parse_args()
    name, *rest = args.part.split()
    given = [int(word) if word.isdigit() else word for word in rest]
    getattr(importlib.import_module(FILES[name]), name)(TINY if args.rehearse else TRUE, *given)


if __name__ == "__main__":
    main()
