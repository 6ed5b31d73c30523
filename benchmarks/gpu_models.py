"""Parts of gpu.py: training steps and sampling, eager and compiled."""

import time
from dataclasses import replace
from typing import Any

import torch
from _gpu import Sizes, attempt, finish, ratio, row, timed
from step import TASK, batches, models
from torch._dynamo.utils import counters

from dit_shd.diffusion.sampler import sample
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.output import Output
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families.mdt import MDTv2
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.hardware import known_peak
from dit_shd.profiling.step import StepShape
from dit_shd.training.compilation import compile_blocks

SIDES = ("without SHD", "with SHD")
WANTED = {256: "<= 1.1", 4096: "<= 1.35"}
"""SHD's share of a step by the number of tokens."""
FIRST_STEP = "<= 60"
"""Seconds of a compiled step, compilation included."""


def step(sizes: Sizes, tokens: int) -> None:
    """A training step B/2 -> S/2 with and without SHD, eager."""
    images = sizes.images[tokens]
    how = f"{tokens} tokens, batch {images}, eager"
    seconds = _times({name: _Step(sizes, tokens, images, name) for name in SIDES}, sizes, images, how)
    ratio(f"{how}: SHD's share", seconds, "with SHD", "without SHD", WANTED[tokens])


def compiled(sizes: Sizes, tokens: int) -> None:
    """The same step with compiled blocks beside the eager one; each side's row comes as soon as it has compiled."""
    images, seconds = sizes.images[tokens], dict[str, float]()
    how = f"{tokens} tokens, batch {images}"
    for name in reversed(SIDES):
        with attempt(f"{how}, compiled: {name}"):
            side = _Step(sizes, tokens, images, name)
            compile_blocks(side.student, side.teacher, backend=sizes.compiler)
            counters.clear()
            start = time.perf_counter()
            side()
            finish(sizes.device)
            graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
            note = f"{graphs} graphs compiled, {breaks} breaks; the other side's serve this one, too"
            row(f"{how}, compiled: first step {name}", time.perf_counter() - start, "s", FIRST_STEP, note)
            sides = {f"compiled, {name}": side}
            if name == "with SHD":
                sides[f"eager, {name}"] = _Step(sizes, tokens, images, name)
            seconds |= _times(sides, sizes, images, how)
            ratio(f"{tokens} tokens: compiled over eager", seconds, "eager, with SHD", "compiled, with SHD", ">= 1.3")
    ratio(f"{how}, compiled: SHD's share", seconds, "compiled, with SHD", "compiled, without SHD")


def _times(sides: dict[str, "_Step"], sizes: Sizes, images: int, how: str) -> dict[str, float]:
    """Seconds of a step of each side, and their rows."""
    seconds, peak = timed(sides, sizes, how)
    best = known_peak(sizes.device)
    for name, value in seconds.items():
        done = sides[name].operations() * images / value / 1e12
        note = f"{1e3 * value:.1f} ms, {done:.3g} TFLOP/s"
        note += "" if best is None else f", {done / best:.1%} of {best:.0f} (MFU)"
        note += f", {peak[name]:.0f} MiB more at its peak" if name in peak else ""
        row(f"{how}: {name}", images / value, "images a second", note=note)
    return seconds


class _Step:
    """One optimizer step, plain and masked pass, autocast; on a GPU the teacher is in bfloat16, as in the configs."""

    def __init__(self, sizes: Sizes, tokens: int, images: int, name: str):
        tokens, self.device = sizes.tokens or tokens, sizes.device
        self.teacher, self.student = (model.to(sizes.device) for model in models(tokens, low=sizes.gpu, **sizes.model))
        # in a rehearsal the kernels, too, which auto would not take on a CPU
        shd = SHD(backend="auto" if sizes.gpu else "triton", layers=sizes.layers)
        self.losses = [Output(), shd] if name == "with SHD" else [Output()]
        self.distiller, self.task = Distiller(TASK, self.student, self.losses), TASK
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4)
        classes = self.student.config.num_classes
        self.batches = [_moved(batch, sizes.device, classes) for batch in batches(tokens, images)]

    def __call__(self) -> None:
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.distiller(batch, self.teacher)[0]
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def operations(self) -> float:
        """Of one image."""
        shape = StepShape(self.task, self.losses, 1, torch.optim.AdamW, "AdamW")
        return step_operations(shape, self.student, self.teacher).total


def _moved(batch: Any, device: torch.device, classes: int) -> Any:
    fields = {k: v.to(device) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, **fields | {"labels": fields["labels"] % classes})


def sampling(sizes: Sizes, how: str = "eager") -> None:
    """Images a second of S/2 with guidance, in bfloat16; eager or compiled."""
    model = MDTv2.from_options("S/2", sample_size=8 if sizes.tokens else 32, **sizes.model).to(sizes.device).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    options: dict[str, Any] = dict(
        steps=sizes.sampling_steps, batch_size=sizes.sampled, vae=None, precision="bf16", compile=how == "compiled"
    )
    start = time.perf_counter()
    sample(model, sizes.sampled, **{**options, "steps": 2})
    finish(sizes.device)
    row(f"S/2, {how}: first steps", time.perf_counter() - start, "s", note="compiling, if so configured")
    start = time.perf_counter()
    sample(model, sizes.sampled, **options)
    finish(sizes.device)
    value = time.perf_counter() - start
    note = f"{sizes.sampled} latents of S/2, {sizes.sampling_steps} steps, guidance 3.8"
    row(f"S/2, {how}", sizes.sampled / value, "images a second", note=note)
