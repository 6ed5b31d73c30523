"""Timing and memory for the benchmarks: sides in turn, medians, memory by child processes."""

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch


def parser(doc: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--repeats", type=int, default=5, help="timed runs of each side, taken in turn; medians count")
    found.add_argument("--threads", type=int, default=1, help="CPU threads")
    found.add_argument("--child", help=argparse.SUPPRESS)
    return found


def parse(options: argparse.ArgumentParser, memory: Callable[[dict], float] | None = None) -> argparse.Namespace:
    """The arguments, with threads set and the header printed; a child measures its memory, prints it and leaves."""
    args = options.parse_args()
    if args.child and memory is not None:
        case = json.loads(args.child)
        torch.set_num_threads(case["threads"])
        print(json.dumps(memory(case)))
        sys.exit()
    torch.set_num_threads(args.threads)
    print(header(), f"{args.threads} thread(s), {args.repeats} repeats", flush=True)
    return args


def in_turn(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that a slow minute of the machine hits all of them.

    With time.process_time as clock they are CPU seconds of all threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(repeats):
        for name, run in sides.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak_mib() -> float:
    """Peak resident memory of this process so far, in MiB (what Linux calls VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def reset_peak() -> float:
    """Forget the peak so far: from now on it begins at what is in use, which is returned in MiB (Linux alone)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and kept would hide what is asked for next
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_mib()


def extra_mib(run: Callable[[], object]) -> float:
    """What `run` adds to this process's resident memory at its peak, in MiB. Once in a process."""
    before = peak_mib()
    run()
    return peak_mib() - before


def child(case: Mapping[str, Any], *options: str) -> dict[str, Any]:
    """Run this script again with --child CASE in a process of its own; it prints one line of JSON last."""
    command = [sys.executable, sys.argv[0], "--child", json.dumps(case), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def header() -> str:
    """Date, processor and versions, for the record."""
    cpu = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    avx = "AVX512-BF16" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "no AVX512-BF16"
    return f"{date.today()}, {cpu} ({avx}), Python {platform.python_version()}, torch {torch.__version__}"
