"""Analysis of the attention of one model, as numbers."""

import fnmatch
import inspect as signatures
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from dit_shd.analysis.inputs import DatasetInputs, FileInputs, Inputs, Time
from dit_shd.analysis.inspect_prompt import PromptFindings, inspect_prompt
from dit_shd.analysis.inspect_text import TextFindings, inspect_text, text_of
from dit_shd.analysis.map_sheets import Sheets, head_sheets
from dit_shd.analysis.survey import LayerMaps, LayerSurvey, Scope, layer_maps, survey
from dit_shd.analysis.synthetic_inputs import SyntheticInputs
from dit_shd.attention.recording.joint import Block
from dit_shd.core.config import cast, check_ranges, checked, option, resolve
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.places import MODEL, Place
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.sampled_run import timesteps_of
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.models.export import run_values
from dit_shd.models.language_model import text_config

ASSET_DATA = Plugin("digits", {"split": "validation"})
"""The data for models that ship with the package."""
GRID = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900)
"""Timesteps of alpha by default, of 1000."""
PICTURED = 300
"""Timestep of the maps by default, of 1000."""
EVERYWHERE = ("model", "layers", "seed", "out", "force")
"""Keys that every analysis reads."""
OF_TEXT = ("heads", "shown", "shown_heads", "samples", "data")
OF_PROMPT = ("prompt", "pipeline", "call")


@dataclass(frozen=True)
class InspectConfig:
    """What to analyse. Timesteps count 0 to 1000, or the steps of the run's schedule."""

    model: Place = option("", MODEL)
    heads: int | None = option(None, "student heads of the merge plan; empty: half of the layer's, rounded up")
    layers: list[int | str] | None = option(None, "depths, names or patterns of layers; empty: all self-attention")
    shown: list[int | str] | None = option(None, "of them, drawn beside the page; empty: first, middle, last")
    shown_heads: list[int] | None = option(None, "of a language model, drawn beside the page; empty: three")
    tokens: list[int] | None = option(None, "query tokens whose maps are drawn; empty: three on the diagonal")
    timestep: int | None = option(None, f"of the maps; empty: {PICTURED} of 1000")
    timesteps: list[int] | None = option(None, f"of alpha; empty: {', '.join(map(str, GRID))} of 1000")
    samples: int = option(16, "images (or random inputs) behind the similarity of heads and alpha", range=(1, 1e6))
    batch_size: int = option(4, "samples of one forward", range=(1, 1e6))
    data: Plugin | None = option(
        None, "images for a class-conditional model, text for a language model; empty: the run's"
    )
    inputs: Path | None = option(None, "npz or safetensors of the forward's arguments, a.b for entries of a dictionary")
    time: Time = option("auto", "the unit of the model's timestep: steps, fraction (t / 1000), or auto: detected")
    block: Block | None = option(None, "of joint text-image attention; empty: image if it is known, else joint")
    image: list[int] | None = option(None, "range of the image's tokens in a joint sequence: [first, last + 1]")
    prompt: str | None = option(
        None, "of a text-to-image pipeline or run: which image tokens attend to which words of it"
    )
    pipeline: Place | None = option(None, "with prompt: of a run, its pipeline; empty: where it was")
    call: dict[str, Any] = option(
        {}, "with prompt: arguments of the pipeline's own call: {num_inference_steps: 28, guidance_scale: 5, ...}"
    )
    seed: int = option(0, "of the noise, the choice of images and random inputs")
    out: Path | None = option(None, "the folder; empty: inspect_<name> here")
    force: bool = option(False, "replace what an earlier inspect left in the folder")

    def check(self, steps: int) -> None:
        """Check that the values are in their ranges, for a schedule of so many steps.

        Raises:
            UserError: Naming the key, the range and the value.
        """
        check_ranges(self)
        if self.image is not None and len(self.image) != 2:
            raise UserError(f"image: wanted [first, last + 1], found {self.image}")
        if self.inputs is not None and self.data is not None:
            raise UserError("inputs, data: wanted one of the two, found both")
        for key in ("timesteps", "tokens", "layers", "shown", "shown_heads"):
            if getattr(self, key) == []:
                raise UserError(f"{key}: wanted at least one, or no such key for a choice of them, found none")
        if (self.call or self.pipeline) and self.prompt is None:
            raise UserError("call, pipeline: are for prompt=..., which is missing")
        for t in [*(self.timesteps or ()), *([] if self.timestep is None else [self.timestep])]:
            if not 0 <= t < steps:
                raise UserError(f"timesteps: wanted 0 to {steps - 1}, found {t}")


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of an analysis, from which its page is made."""

    config: InspectConfig
    model: nn.Module
    inputs: Inputs
    scope: Scope
    timestep: int
    timesteps: list[int]
    maps: dict[str, LayerMaps]
    layers: list[LayerSurvey]
    shown: list[str]
    sheets: Sheets
    """Of the first sample: maps of many query tokens at several timesteps."""


def inspect(config: InspectConfig) -> Findings | TextFindings | PromptFindings:
    """Analyse a model's attention.

    Args:
        config: The model, and what to analyse.

    Returns:
        The findings; of a language model those over a text, with a prompt those of the prompt's words.

    Raises:
        UserError: No such model, or one whose attention cannot be recorded.
    """
    config = checked(config, "inspect")
    if config.prompt is not None:
        _refuse_idle(config, OF_PROMPT, "with prompt=...")
        return inspect_prompt(config.model, config.prompt, config.pipeline, config.call, config.layers, config.seed)
    run = run_values(config.model)
    model = loading.load(config.model).eval().requires_grad_(False)
    if text_config(model) is not None:
        return _of_text(config, model, run)
    parameters = signatures.signature(model.forward).parameters
    if "hidden_states" not in parameters:
        words = f"holds {type(model).__name__}, whose forward takes {', '.join([*parameters][:4])}"
        raise UserError(f"{config.model}: {words}; wanted a transformer (hidden_states)")
    to_accelerator(model)
    steps = schedule_length(run)
    timestep = PICTURED * steps // 1000 if config.timestep is None else config.timestep
    timesteps = sorted(set(config.timesteps or (t * steps // 1000 for t in GRID)))
    inputs = inputs_of(config, model, run)
    scope = Scope(config.layers, config.block, None if config.image is None else slice(*config.image))
    with tqdm(desc="one sample", unit="layer") as bar:
        scope, maps = layer_maps(model, inputs, scope, timestep, config.tokens, bar.update)
    shown = _shown(list(maps), config.shown)
    with tqdm(total=len(timesteps) * len(inputs.batches) * len(maps), desc="all samples", unit="layer") as bar:
        layers = survey(model, inputs, scope, timesteps, config.heads, bar.update)
    with tqdm(desc="one sample, all timesteps", unit="layer") as bar:
        sheets = head_sheets(model, inputs, scope, maps, timesteps, config.heads, bar.update)
    return Findings(config, model, inputs, scope, timestep, timesteps, maps, layers, shown, sheets)


def _refuse_idle(config: InspectConfig, read: Sequence[str], case: str) -> None:
    default = InspectConfig()
    names = [one.name for one in fields(config) if one.name not in (*EVERYWHERE, *read)]
    if idle := [name for name in names if getattr(config, name) != getattr(default, name)]:
        raise UserError(
            f"{', '.join(idle)}: {case} only {', '.join((*EVERYWHERE, *read))} are read; leave the others out"
        )


def _of_text(config: InspectConfig, model: nn.Module, run: dict[str, Any]) -> TextFindings:
    _refuse_idle(config, OF_TEXT, "of a language model")
    to_accelerator(model)
    data = text_of(config.data, run, config.model)
    findings = inspect_text(model, data, config.samples, config.seed, Scope(config.layers), config.heads)
    shown = _shown(list(findings.maps), config.shown)
    return replace(findings, name=config.model, shown=shown, shown_heads=config.shown_heads)


def numbers(findings: Findings) -> dict[str, Any]:
    """The numbers of the page as JSON; heads and plans count from 0, as in squeeze(plan=...)."""
    return {
        "settings": resolve(findings.config),
        "inputs": findings.inputs.words,
        "block": findings.scope.block,
        "timesteps": findings.timesteps,
        "layers": {
            layer.layer: {
                "heads": layer.heads,
                "tokens": layer.tokens,
                "plan": layer.plan,
                "matched_plan": layer.matched,
                "similarity": layer.cosines.round(6).tolist(),
                "alpha_mean": layer.alpha.mean(1).round(6).tolist(),
                "alpha_std": layer.alpha.std(1).round(6).tolist(),
                "clamped": layer.clamped.round(6).tolist(),
                "residual": layer.residual.round(6).tolist(),
            }
            for layer in findings.layers
        },
    }


def to_accelerator(model: nn.Module) -> None:
    """Move a model to a GPU, if there is one."""
    model.to(current_device())


def inputs_of(config: InspectConfig, model: nn.Module, run: dict[str, Any]) -> Inputs:
    """The inputs that a config asks for: of a file, of data, or random.

    Args:
        config: What to analyse.
        model: Whose forward takes them.
        run: The config of its run folder, if it is one.

    Raises:
        UserError: Data for a model that takes more than images and labels.
    """
    if config.inputs is not None:
        return FileInputs(model, config.inputs, config.time)
    size, count = config.batch_size, config.samples
    batches = [range(first, min(first + size, count)) for first in range(0, count, size)]
    run_data = cast(Plugin, run["data"], "data") if "data" in run else None
    data = config.data or run_data or (ASSET_DATA if config.model.startswith("asset:") else None)
    if data is None:
        return SyntheticInputs(model, batches, config.seed, config.time)
    if loading.why_not_conditional(model) is not None:
        whose = "data" if config.data is not None else f"{data.name}, the data of {config.model}"
        raise UserError(
            f"{whose}: {type(model).__name__} takes more than images and labels; use inputs=FILE, or dit-shd inspect "
            "of a pipeline with prompt=TEXT"
        )
    schedule = Schedule.linear(schedule_length(run))
    return DatasetInputs(model, DATASETS.build(data, "data"), schedule, batches, config.seed)


def schedule_length(run: dict[str, Any]) -> int:
    """The length of the noise schedule."""
    return cast(int, timesteps_of(run) or 1000, "task.timesteps")


def short_name(source: str) -> str:
    """A model's name for a folder."""
    if source.startswith("asset:"):
        return source.removeprefix("asset:")
    path = Path(source).resolve()
    return path.stem if path.is_file() else path.name


def _shown(names: Sequence[str], wanted: Sequence[int | str] | None) -> list[str]:
    """The layers whose maps are drawn."""
    if wanted is None:
        return [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})]
    chosen: set[str] = set()
    for pattern in wanted:
        if isinstance(pattern, int):
            matching = [names[pattern]] if -len(names) <= pattern < len(names) else []
        else:
            matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UserError(f"shown: no layer fits '{pattern}'. Layers: {', '.join(names)}")
        chosen.update(matching)
    return [name for name in names if name in chosen]
