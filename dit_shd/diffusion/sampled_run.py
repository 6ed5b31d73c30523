"""What sampling takes from the run that a model is of, or from its pipeline: schedule, shift, and if guidance fits."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from dit_shd.core.config import make
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.guidance import Guidance
from dit_shd.diffusion.pipeline_scheduler import STEPS, scheduler_of
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models.export import run_values
from dit_shd.models.prediction import NOISE, prediction_of

UNGUIDED = "guidance=1"
WITHOUT_CLASSES = "guidance=0 guidance_schedule=constant guided_channels=null"


def of_run(config: SampleConfig) -> SampleConfig:
    """A SampleConfig with what its run, or its pipeline, knows: the steps of the noise schedule."""
    steps = timesteps_of(run_values(config.run))
    if not isinstance(steps, int):
        steps = scheduler_of(config.run).get(STEPS)
    return replace(config, diffusion_steps=steps) if isinstance(steps, int) else config


def timesteps_of(run: Mapping[str, Any]) -> object:
    """The steps of the noise schedule in the values of a run's config; None where there is none."""
    task = run.get("task")
    return task.get("timesteps") if isinstance(task, dict) else run.get("diffusion_steps")


def data_of(config: SampleConfig) -> str:
    """The name of the data that a run learned, or of an asset; empty where neither is known."""
    if config.run.startswith("asset:"):
        return config.run
    data = run_values(config.run).get("data")
    return str(data.get("name")) if isinstance(data, dict) else ""


def shifted(config: SampleConfig, model: nn.Module) -> SampleConfig:
    """A SampleConfig with the shift of the steps that a flow's run was trained with, if none is given.

    Args:
        config: What is sampled.
        model: Its model.
    """
    task = run_values(config.run).get("task")
    density = task.get("timestep_density") if isinstance(task, dict) else None
    if config.shift is not None or not isinstance(density, dict):
        return config
    run = make(TimestepDensity, density, f"{config.run}: task.timestep_density")
    return replace(config, shift=run.alpha(Denoiser(model).shape[1]))


def words_of_run(place: str, model: nn.Module) -> list[str]:
    """What `dit-shd sample` must be told of a model whose weights are away from their run, as its words.

    Args:
        place: The run.
        model: Its model.
    """
    config, run = shifted(of_run(SampleConfig(run=place)), model), run_values(place)
    words = list[str]()
    if prediction_of(model) == NOISE and config.diffusion_steps != SampleConfig.diffusion_steps:
        words.append(f"diffusion_steps={config.diffusion_steps}")
    if config.shift not in (SampleConfig.shift, 1):
        words.append(f"shift={config.shift}")
    return words + words_of_guidance(run)


def words_of_guidance(run: Mapping[str, Any]) -> list[str]:
    """What `dit-shd sample` must be told where its default guidance does not fit how a run was trained.

    Args:
        run: The values of its config.
    """
    if _dropout(run, "label_dropout") == 1:
        return [WITHOUT_CLASSES]
    return [UNGUIDED] if any(_of_guidance(run, "", "label_dropout", "a class")) else []


def remarks(config: SampleConfig) -> Iterator[str]:
    """Lines about a schedule that is not known, and guidance that does not fit how a class-conditional run was trained.

    Args:
        config: What is sampled.
    """
    run = run_values(config.run)
    task = run.get("task")
    if isinstance(task, dict) and "." in str(task.get("name")) and "timesteps" not in task:
        yield (
            f"diffusion_steps: the run's task {task['name']} has no key timesteps; a model of noise is drawn along the "
            f"linear schedule of {config.diffusion_steps} steps"
        )
    if config.guidance != 1 and config.guided_channels != 0:
        yield from _of_guidance(run, f"{config.guidance:g}", "label_dropout", "a class")
    dropped = _dropout(run, "label_dropout") == 1
    if dropped and (config.guidance != 0 or config.guidance_schedule != "constant"):
        yield (
            "labels: the run taught no prediction with a class (task.label_dropout=1); "
            f"{WITHOUT_CLASSES} samples without"
        )


def prompt_remarks(place: str, scale: float) -> Iterator[str]:
    """The same for a text-to-image model.

    Args:
        place: The run.
        scale: Of the guidance by predictions without text; 1 for none.
    """
    if scale != 1:
        yield from _of_guidance(run_values(place), f"{scale:g}", "text_dropout", "text")


def size_remarks(record: PipelineRecord, call: Mapping[str, Any]) -> Iterator[str]:
    """A line where a student has learned images of several sizes, and one of them is drawn that nobody has named.

    Args:
        record: Of the student.
        call: Arguments of the pipeline's call that were given.
    """
    if record.sizes and record.size is not None and not {"height", "width"} & call.keys():
        yield (
            f"size: the student learned images of {record.words_of_sizes} pixels (height, width); drawing "
            "{} x {}, which call='{{height: ..., width: ...}}' changes".format(*record.size)
        )


def drawn_size_remarks(call: Mapping[str, Any], drawn: tuple[int, ...]) -> Iterator[str]:
    """A line where a pipeline has drawn images of another size than it was asked for.

    Args:
        call: Arguments of its call.
        drawn: Height and width.
    """
    asked = call.get("height"), call.get("width")
    if None not in asked and asked != drawn:
        yield (
            f"size: {drawn[0]} x {drawn[1]} pixels (height, width) drawn, not {asked[0]} x {asked[1]}: pipelines may "
            "round them, or take their autoencoder to have another factor; call='{height: ..., width: ...}' says others"
        )


def _of_guidance(run: Mapping[str, Any], scale: str, key: str, condition: str) -> Iterator[str]:
    losses = run.get("losses")
    if isinstance(losses, list) and any(map(_teaches_guidance, losses)):
        yield (
            f"guidance: the run taught the teacher's guided prediction (losses: guidance), and {scale} guides it once "
            f"more; {UNGUIDED} samples what was taught"
        )
    if _dropout(run, key) == 0:
        yield (
            f"guidance: the run taught no prediction without {condition} (task.{key}=0), which guidance takes; "
            f"{UNGUIDED} does without"
        )


def _dropout(run: Mapping[str, Any], key: str) -> object:
    task = run.get("task")
    return task.get(key) if isinstance(task, dict) else None


def _teaches_guidance(loss: object) -> bool:
    value = loss.get("guidance") if isinstance(loss, dict) else None
    return value is not None and not Guidance.from_value(value, "losses.guidance").changes_nothing
