"""Which blocks of a model a student of fewer can keep: linear probes on calibration batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dit_shd.analysis.inputs import Time, on_device, try_out
from dit_shd.analysis.inspect import InspectConfig, inputs_of, schedule_length, to_accelerator
from dit_shd.analysis.redundancy import LinearFits, best_intervals, plan_of
from dit_shd.core.config import check_ranges, option
from dit_shd.core.errors import UserError
from dit_shd.core.places import MODEL, Place
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.initialisation.depth import depth_key
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models import loading
from dit_shd.models.blocks import STREAM, named_blocks, recorded
from dit_shd.models.export import run_values

GRID = (100, 300, 500, 700, 900)
"""Timesteps of calibration by default, of 1000."""


@dataclass(frozen=True)
class DepthConfig:
    """What to look for. Timesteps count 0 to 1000, or the steps of the run's schedule."""

    model: Place = option("", MODEL)
    keep: int | None = option(None, "blocks of the student; empty: half of the teacher's, rounded up", range=(1, 1e4))
    blocks: str | None = option(None, "the list of blocks that is cut; empty: the longest")
    longest: int = option(4, "most blocks that one stands for; memory grows with it", range=(1, 1e3))
    samples: int = option(64, "images (or random inputs) at each timestep", range=(2, 1e6))
    batch_size: int = option(8, "samples of one forward", range=(1, 1e6))
    timesteps: list[int] | None = option(None, f"of calibration; empty: {', '.join(map(str, GRID))} of 1000")
    data: Plugin | None = option(None, "dataset for a class-conditional model; empty: that of the run folder")
    inputs: Path | None = option(None, "npz or safetensors of the forward's arguments, a.b for entries of a dictionary")
    time: Time = option("auto", "the unit of the model's timestep: steps, fraction (t / 1000), or auto: detected")
    seed: int = option(0, "of the noise, the choice of images and random inputs")
    student: bool = option(True, "also write the student with the weights of the blocks that it keeps")
    out: Path | None = option(None, "the folder; empty: depth_<name> here")


def find_plan(config: DepthConfig) -> tuple[nn.Module, KeptPlan]:
    """Run a model on calibration batches and divide its blocks.

    Args:
        config: The model, and how many blocks to keep.

    Returns:
        The model and the plan.

    Raises:
        UserError: No such model or list of blocks, several lists of which none is cut by a key of the config and none
            was named, nothing to leave out, blocks whose widths differ, or too few samples for a fit.
    """
    check_ranges(config)
    run = run_values(config.model)
    model = loading.load(config.model).eval().requires_grad_(False)
    to_accelerator(model)
    blocks = _blocks(model, config)
    names = list(blocks)
    keep = config.keep or -(-len(names) // 2)
    _check_keep(keep, names, config)
    steps = schedule_length(run)
    of_inputs = InspectConfig(
        config.model,
        timesteps=config.timesteps,
        samples=config.samples,
        batch_size=config.batch_size,
        data=config.data,
        inputs=config.inputs,
        time=config.time,
        seed=config.seed,
    )
    of_inputs.check(steps)
    inputs = inputs_of(of_inputs, model, run)
    if inputs.batches[-1].stop < 2:
        raise UserError("inputs: wanted 2 samples or more (maps are fitted to one half, judged on the other), found 1")
    timesteps = config.timesteps or [t * steps // 1000 for t in GRID]
    try_out(model, inputs, max(timesteps[0], 1))
    fits = LinearFits(config.longest)
    tokens, width = 0, 0
    for t in tqdm(timesteps, desc="timesteps"):
        for samples in inputs.batches:
            keywords = on_device(inputs.keywords(samples, t), model)
            borders = list(_borders(blocks, lambda keywords=keywords: model(**keywords, return_dict=False)))
            shapes = {tuple(border.shape) for border in borders}
            if len(borders) != len(names) + 1 or len(shapes) > 1 or borders[0].ndim != 3:
                raise UserError(
                    f"blocks: wanted tokens [b,n,e] of one shape at all blocks of a list, found {sorted(shapes)}"
                )
            tokens, width = tokens + borders[0].shape[0] * borders[0].shape[1], borders[0].shape[2]
            fits.add(borders, samples.start)
    if tokens < 8 * width:  # half of them are fitted to
        raise UserError(
            f"samples: {tokens} tokens are too few to fit maps of {width} channels; wanted {8 * width} or more"
        )
    error = cache(fits.error)
    intervals = best_intervals(error, len(names), keep, config.longest)
    return model, plan_of(names, intervals, [error(*interval) for interval in intervals])


def _blocks(model: nn.Module, config: DepthConfig) -> dict[str, nn.Module]:
    """The blocks of one list."""
    wanted = config.blocks
    lists: dict[str, dict[str, nn.Module]] = {}
    for name, block in named_blocks(model).items():
        lists.setdefault(name.rpartition(".")[0], {})[name] = block
    if not lists or (wanted is not None and wanted not in lists):
        raise UserError(
            f"blocks: wanted one of {', '.join(lists) or 'none: the model has no list of blocks'}, found {wanted}"
        )
    if wanted is not None:
        return lists[wanted]
    longest = max(lists, key=lambda name: len(lists[name]))
    if config.student and len(lists) > 1 and depth_key(model, dict(getattr(model, "config", {})), longest) is None:
        counts = ", ".join(f"{name} ({len(members)})" for name, members in lists.items())
        raise UserError(
            f"blocks: {type(model).__name__} has several lists of blocks, {counts}, and no key of its config is the "
            f"number of {longest}: no student of fewer can be written; student=false makes a plan alone"
        )
    return lists[longest]


def _check_keep(keep: int, names: list[str], config: DepthConfig) -> None:
    """Refuse a number of blocks that leaves none out, or makes runs that are too long, before anything runs."""
    count, of_list = len(names), names[0].rpartition(".")[0]
    if keep == count:
        raise UserError(
            f"keep: {of_list} has {count} block{'s' * (count > 1)}, keep={keep} leaves out none; wanted fewer, or "
            "another list of blocks, blocks=NAME"
        )
    least = -(-count // config.longest)
    if not least <= keep < count:
        raise UserError(
            f"keep: wanted {least} to {count - 1} of the {count} blocks of {of_list} (runs of at most "
            f"{config.longest}, longest), found {keep}"
        )


@torch.no_grad()
def _borders(blocks: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """What goes into the first block, and what every block gives, in order."""
    borders: list[Tensor] = []

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        borders.append(kwargs[STREAM] if STREAM in kwargs else args[0])

    first = next(iter(blocks.values())).register_forward_pre_hook(read, with_kwargs=True)
    with first, recorded(blocks, lambda _, output: borders.append(output)):
        run()
    return borders
