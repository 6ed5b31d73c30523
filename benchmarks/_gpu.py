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


def table(what: str, seconds: Mapping[str, float], peak: Mapping[str, float]) -> None:
    """A row for each side."""
    for name, value in seconds.items():
        row(f"{what}: {name}", 1e3 * value, "ms", note=f"{peak[name]:.0f} MiB more at its peak" if name in peak else "")


def ratio(what: str, seconds: Mapping[str, float], of: str, to: str, wanted: str = "") -> None:
    """A row for the ratio of two sides, where both ran."""
    if of in seconds and to in seconds:
        row(what, seconds[of] / seconds[to], "", wanted, f"{of} over {to}")
