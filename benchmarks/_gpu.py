"""What the parts of gpu.py share: sizes, rows of the table, and times of sides in turn."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from gpu import MARK

Run = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    batch: Mapping[int, int] = field(default_factory=lambda: {256: 32, 1024: 8, 4096: 2, 8192: 1})
    """Samples of one layer by the number of tokens."""
    tokens: int | None = None
    """In place of any number of tokens; None: that number."""
    heads: tuple[int, int] = (12, 6)
    width: int = 64
    warm: int = 2
    """Runs of each side that are not counted: they compile."""
    repeats: int = 5
    seconds: float = 0.05
    """Of one timing at least."""
    layers: str | dict[str, str] = "sections"
    """Of SHD in a step."""
    images: Mapping[int, int] = field(default_factory=lambda: {256: 32, 4096: 2})
    """Of a training step by the number of tokens."""
    model: Mapping[str, int] = field(default_factory=dict)
    """Options of MDTv2 that make it small."""
    sampled: int = 64
    """Images that are sampled."""
    sampling_steps: int = 250
    compiler: str = "inductor"
    materialised_most: int = 4096
    """Tokens up to which the form that materialises maps is run."""

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


TRUE = Sizes(torch.device("cuda"))
TINY = Sizes(
    torch.device("cpu"), torch.float32, dict.fromkeys(TRUE.batch, 1), 16, (4, 2), 8, warm=0, repeats=0,
    images=dict.fromkeys(TRUE.images, 1), sampled=1, sampling_steps=2, compiler="aot_eager",
    layers={"de_blocks.1.attn": "de_blocks.1.attn"},
    model=dict(num_layers=4, decode_layer=2, attention_head_dim=4, num_classes=3),
)  # fmt: skip


def row(what: str, value: float | None = None, unit: str = "", wanted: str = "", note: str = "") -> None:
    """Print one row of the table."""
    print(f"\n{MARK}{json.dumps(dict(what=what, value=value, unit=unit, wanted=wanted, note=note))}", flush=True)


@contextmanager
def attempt(what: str):
    """An error inside is a row, and not the end of the part."""
    try:
        yield
    except Exception as error:
        row(what, unit="error", note=f"{type(error).__name__}: {str(error)[:300]}")


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(sides: Mapping[str, Run], sizes: Sizes, what: str) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds and peak MiB of each side; the sides take turns. One that fails is a row."""
    repetitions: dict[str, int] = {}
    peak: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    for name, run in sides.items():
        with attempt(f"{what}: {name}"):
            for _ in range(sizes.warm):
                run()
            if sizes.gpu:
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            once = _seconds(run, 1, sizes.device)
            if sizes.gpu:
                peak[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            repetitions[name], found[name] = max(1, min(50, round(sizes.seconds / max(once, 1e-9)))), []
            if not sizes.repeats:
                found[name].append(once)
    for _ in range(sizes.repeats):
        for name, count in repetitions.items():
            found[name].append(_seconds(sides[name], count, sizes.device))
    return {name: statistics.median(values) for name, values in found.items()}, peak


def _seconds(run: Run, count: int, device: torch.device) -> float:
    finish(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    finish(device)
    return (time.perf_counter() - start) / count


CALLS = 8
"""Calls in a row whose issuing is timed: few enough for a GPU's queue, which makes the CPU wait when it is full."""


def issued(sides: Mapping[str, Run], sizes: Sizes, what: str) -> dict[str, float]:
    """Rows of what the CPU and the GPU take by themselves; a size whose host time is the greater is bound by launches.

    Host: CPU time of issuing a call, without waiting for it. Events: between two events of the GPU around calls in a
    row. Replay: a CUDA graph of one call, in which nothing is issued by the CPU.

    Returns:
        Seconds of a replay of each side, where there is one.
    """
    found: dict[str, float] = {}
    for name, run in sides.items():
        with attempt(f"{what}: {name}, host"):
            hosts, events = zip(*(_host_and_events(run, sizes) for _ in range(max(1, sizes.repeats))))
            note = f"{1e3 * statistics.median(events):.3f} ms between events" if sizes.gpu else "on a CPU: the call"
            row(f"{what}: {name}, host", 1e3 * statistics.median(hosts), "ms", note=note)
    for name, run in sides.items() if sizes.gpu else ():  # at the end: a capture that fails may leave things behind
        try:
            found[name] = _replayed(run, sizes.repeats)
            row(f"{what}: {name}, replay", 1e3 * found[name], "ms", note="a CUDA graph")
        except Exception as error:
            row(f"{what}: {name}, replay", note=f"no CUDA graph can be made of it: {str(error)[:200]}")
    return found


def _host_and_events(run: Run, sizes: Sizes) -> tuple[float, float]:
    """Seconds of a call: issued, and on the GPU (0 on a CPU)."""
    calls = CALLS if sizes.gpu else 1
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if sizes.gpu else (None, None)
    finish(sizes.device)
    if first is not None:
        first.record()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    host = (time.perf_counter() - start) / calls
    if first is None or last is None:
        return host, 0.0
    last.record()
    finish(sizes.device)
    return host, first.elapsed_time(last) / 1e3 / calls


def _replayed(run: Run, repeats: int) -> float:
    """Seconds of a call as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return statistics.median(_seconds(graph.replay, CALLS, torch.device("cuda")) for _ in range(repeats))


def table(what: str, seconds: Mapping[str, float], peak: Mapping[str, float]) -> None:
    """A row for each side."""
    for name, value in seconds.items():
        row(f"{what}: {name}", 1e3 * value, "ms", note=f"{peak[name]:.0f} MiB more at its peak" if name in peak else "")


def ratio(what: str, seconds: Mapping[str, float], of: str, to: str, wanted: str = "") -> None:
    """A row for the ratio of two sides, where both ran."""
    if of in seconds and to in seconds:
        row(what, seconds[of] / seconds[to], "", wanted, f"{of} over {to}")
