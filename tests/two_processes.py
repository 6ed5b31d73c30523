"""What two processes do for tests, all by one launch: `torchrun --nproc_per_node 2 tests/two_processes.py FOLDER`.

FOLDER/jobs.json names jobs of tests/two_process_jobs; the same two processes do them one after the other, each in a
folder of its own, FOLDER/NAME. The first that fails ends the launch; its name is the last that is printed.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from two_process_jobs import job


def main(folder):
    torch.set_num_threads(1)
    leave = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *_: None  # as commands do at their end; the next job works in it
    for name in json.loads((folder / "jobs.json").read_text()):
        print(name, flush=True)
        AcceleratorState._reset_state()
        job(name).work(folder / name)
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
