"""Which block sizes of the kernels are the fastest on this GPU: a table for each kernel, bias and number of tokens.

    python benchmarks/gpu_blocks.py [--jobs 12] [--tokens 256 4096] [--out blocks.jsonl]

Every candidate is compiled first, by --jobs processes, and then timed alone, as replays of a CUDA graph. The sizes that
are in use are those of dit_shd/attention/kernels/blocks.py and dit_shd/squeezing/kernels/blocks.py.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _gpu import TRUE
from gpu_kernels import layers

from dit_shd.attention.kernels import captures as attention_captures
from dit_shd.attention.kernels.blocks import Blocks
from dit_shd.squeezing.backends import triton as backend
from dit_shd.squeezing.backends.job import Job
from dit_shd.squeezing.kernels import launch
from dit_shd.squeezing.kernels.captures import row_sums, values_met
from dit_shd.squeezing.squeeze import squeeze

CANDIDATES = [
    Blocks(rows, cols, warps, stages)
    for rows, cols, warps in (
        *((32, 32, 4), (64, 32, 4), (64, 64, 4), (64, 64, 8), (64, 128, 4), (64, 128, 8)),
        *((128, 32, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)),
    )
    for stages in (2, 3)
]
Run = Callable[[], object]


@contextmanager
def sizes_of(kind: str, blocks: Blocks) -> Iterator[None]:
    """With these blocks for one kind of kernel."""
    if kind in ("rows", "keys"):
        with patch.object(launch, f"of_{kind}", lambda *_: blocks):
            yield
    else:
        with patch.object(Blocks, f"of_{kind}", lambda *_: blocks):
            yield


def runs(tokens: int, bias: bool) -> Iterator[tuple[str, str, Run]]:
    """Name, kind of blocks and a run for everything that is launched."""
    teacher, student = layers(TRUE, tokens, bias=bias)
    teacher, fixed = teacher.detach(), student.detach()
    groups = [[2 * g, 2 * g + 1] for g in range(student.heads)]
    yield "values of pairs", "values", lambda: values_met(teacher, groups)
    yield "sums of rows", "values", lambda: row_sums(fixed, 1.0)
    squeezed = squeeze(teacher, student.heads, backend="triton")
    job = Job(teacher, fixed, squeezed, 1.0, "kl", 64, True, bias)
    yield "divergence, by rows", "rows", lambda: backend.run(job)
    yield "divergence, by keys", "keys", lambda: backend.run(job)
    q, k, v = (x.detach().requires_grad_() for x in (student.query, student.key, student.value))

    def own() -> torch.Tensor:
        return attention_captures.attention(q, k, v, student.scale, student.bias)

    leaves = (q, k, v, *(student.bias.leaves if student.bias else ()))
    out = own()
    upstream = torch.randn_like(out)
    with torch.no_grad():
        yield "attention", "values", own
    yield "attention, backward", "gradients", lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def cases(tokens: list[int]) -> Iterator[tuple[str, str, Run, Blocks]]:
    for n in tokens:
        for bias in (False, True):
            for name, kind, run in runs(n, bias):
                for blocks in CANDIDATES:
                    yield f"{name}, {n} tokens{', table' if bias else ''}", kind, run, blocks


def milliseconds(run: Run, replays: int = 20) -> float:
    """Of one run, by replays of a graph."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / replays


def compile_share(share: int, of: int, tokens: list[int]) -> None:
    """Run each of one process's candidates once."""
    for number, (_, kind, run, blocks) in enumerate(cases(tokens)):
        if number % of == share:
            try:
                with sizes_of(kind, blocks):
                    run()
            except Exception as error:  # too much shared memory, say: a row of the table later
                print(type(error).__name__, flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=8, help="processes that compile")
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 4096])
    options.add_argument("--out", type=Path, default=Path("blocks.jsonl"), help="every row")
    options.add_argument("--share", type=int, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.share is not None:
        return compile_share(args.share, args.jobs, args.tokens)
    command = [sys.executable, __file__, "--jobs", str(args.jobs), "--tokens", *map(str, args.tokens), "--share"]
    processes = [subprocess.Popen([*command, str(share)], stdout=subprocess.DEVNULL) for share in range(args.jobs)]
    for process in processes:
        process.wait()
    found: dict[str, list[tuple[float, tuple[int, ...]]]] = {}
    with args.out.open("w") as file:
        for name, kind, run, blocks in cases(args.tokens):
            row: dict[str, Any] = {"kernel": name, "blocks": astuple(blocks)}
            try:
                with sizes_of(kind, blocks):
                    row["ms"] = milliseconds(run)
                found.setdefault(name, []).append((row["ms"], astuple(blocks)))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {str(error)[:120]}"
            file.write(json.dumps(row) + "\n")
            file.flush()
    print("| kernel | fastest: ms (rows, keys, warps, stages) | | |\n|---|---|---|---|")
    for name, timings in found.items():
        best = sorted(timings)[:3]
        print(f"| {name} | {' | '.join(f'{ms:.3f} {blocks}' for ms, blocks in best)} |")


if __name__ == "__main__":
    main()
