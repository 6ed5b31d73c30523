"""The config of a training run: every key with its default and its meaning."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dit_shd.core.config import cast, make, option, resolve, resumable_keys
from dit_shd.core.errors import UserError
from dit_shd.core.places import MODEL, Place
from dit_shd.core.plugins import Plugin
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.initialisation.initialise import Initialisation
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.schedule import shares_as_steps
from dit_shd.distillation.teachers import TEACHER
from dit_shd.models.families import FAMILIES
from dit_shd.models.lora import Lora
from dit_shd.models.quantization import Precision
from dit_shd.profiling.estimate import EstimateConfig
from dit_shd.tasks import TASKS, Task
from dit_shd.training.optim import OptimizerConfig

TASK = "diffusion"
AUTO_SIZE = "auto"
"""In the place of micro_batch_size: it is found when a run begins."""
MOVED = {
    "diffusion_steps": "timesteps",
    "min_snr_gamma": "min_snr_gamma",
    "label_dropout": "label_dropout",
    "mask_ratio": "mask_ratio",
}
"""Keys of before the first release -> of the task diffusion."""
MOVED_KEYS = (*MOVED, "evaluation", "from")
"""Keys that are taken and stand elsewhere: those that are the task's now, and `from`, which is no name in Python."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `losses: []` is plain training; with losses a teacher is needed."""

    run: Path = option(
        Path("runs/train"),
        "the run folder; the same command again resumes it",
        resumable=True,
        heading="What is learned",
    )
    task: Plugin = option(Plugin(TASK), "what is learned: {name: diffusion, mask_ratio: 0.3, ...}")
    data: Plugin = option(Plugin("digits"), "dataset: {name: digits | npz, ...}")
    vae: Place | None = option(
        "auto",
        "autoencoder of the data's latents, kept for sampling: auto (as the data tell), a folder, hub:OWNER/NAME, "
        "pixels, or null to train without it",
        resumable=True,
    )
    student: Plugin = option(
        Plugin("mdt"),
        "model to train: {name: mdt, size: S/2, ...}, num_classes is the data's if not given; or {like: teacher, "
        "num_layers: 14, ...}",
        heading="Models and losses",
    )
    teacher: Place | dict[str, Place] | None = option(
        None, f"{MODEL}; of several {{gpt2: PATH, llama: PATH}}, by the names that losses read them by"
    )
    teacher_precision: Precision = option(
        "no",
        "hold and run the teacher in bfloat16 (bf16; maps stay float32), with its linear maps in 8 or 4 bits "
        "(int8, fp8, int4: torchao; nf4: bitsandbytes; int4 and nf4 on a GPU; of diffusers' and our classes)",
    )
    teacher_offload: Literal["no", "blocks"] = option(
        "no", "blocks: the teacher stays in main memory, and each block comes to the GPU while it runs", resumable=True
    )
    check_teacher: Literal["refuse", "warn", "no"] = option(
        "refuse",
        "what to do with a teacher that predicts no better than a line does, or no better for its labels",
        resumable=True,
    )
    losses: list[Plugin] = option(
        [],
        "distillation terms: [{name: shd, weight: 2}, {name: output}]; a weight may go by step or by share of the run: "
        "{0: 0.3, 20%: 0.3, 30%: 0}",
    )
    base_weight: float | dict[int, float] = option(
        1.0, "factor of the task's own loss, likewise; 0 where the teacher alone is learned from"
    )
    initialisation: Initialisation = option(Initialisation(), "how a new run's student begins")
    from_run: Place | None = option(
        None, "from=RUN: a new run whose student begins with the weights of another run, or of a model"
    )
    seed: int = option(
        0,
        "every random draw is a function of it; a loss may have a seed of its own (losses.0.seed)",
        range=(0, 2**63 - 1),
        heading="Steps",
    )
    steps: int = option(400_000, "optimizer steps in all; may be raised to go on", range=(1, 1e12), resumable=True)
    batch_size: int = option(256, "images of one optimizer step, over all processes", range=(1, 1e9))
    micro_batch_size: int | Literal["auto"] | None = option(
        None,
        "images of one forward in one process; empty: batch_size / processes; auto: the most that fit into memory",
        range=(1, 1e9),
        resumable=True,
    )
    optimizer: OptimizerConfig = option(OptimizerConfig(), "")
    lora: Lora = option(Lora(), "")
    ema: float | list[float] = option(
        0.9999, "decay of the weight average; of several the first is sampled from", range=(0, 1)
    )
    ema_warmup: bool = option(False, "begin with short averages: rate min(ema, (1 + n) / (10 + n)) at step n")
    precision: Literal["no", "bf16", "fp16"] = option(
        "no", "mixed precision; maps, softmax and KL stay float32", heading="Speed and memory"
    )
    compile: bool = option(
        False, "torch.compile the blocks of both models (needs a compiler; a minute or so at first)", resumable=True
    )
    gradient_checkpointing: bool = option(
        False, "compute the student's blocks again in the backward: less memory", resumable=True
    )
    sharding: Literal["no", "fsdp2"] = option(
        "no", "fsdp2: slices of both models' weights in every process", resumable=True
    )
    log_every: int = option(
        10, "steps between lines of metrics.jsonl", range=(1, 1e12), resumable=True, heading="What is kept and logged"
    )
    checkpoint_every: int = option(
        10_000,
        "steps between checkpoints (and exports of the student); what is evaluated is saved first, too",
        range=(1, 1e12),
        resumable=True,
    )
    keep_checkpoints: int = option(2, "newest checkpoints kept", range=(1, 1e6), resumable=True)
    keep_every: int = option(
        0,
        "checkpoints of steps that are a multiple of this are kept for good; 0 for none",
        range=(0, 1e12),
        resumable=True,
    )
    skip_bad_steps: int = option(
        0,
        "steps with a NaN or infinite loss or gradient to leave out before it is an error",
        range=(0, 1e12),
        resumable=True,
    )
    gradient_norms_every: int = option(
        0,
        "steps between norms of every term's gradient, in one micro batch, which cost about a step of it",
        range=(0, 1e12),
        resumable=True,
    )
    peak_tflops: float | None = option(
        None,
        "of one device, for the utilisation (MFU); empty: known GPUs by name",
        range=(0.001, 1e6),
        resumable=True,
    )
    validate_every: int = option(
        0, "steps between evaluations of the averaged weights; 0 for none", range=(0, 1e12), resumable=True
    )
    tracker: str | None = option(None, "an accelerate tracker by name: tensorboard, wandb, ...", resumable=True)
    dry_run: bool = option(
        False,
        "say what the run would take, by count and by one real step, and write nothing",
        resumable=True,
        heading="Before a run",
    )
    estimate: EstimateConfig = option(EstimateConfig(), "", resumable=True)

    @classmethod
    def migrated(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values in which the keys that are the task's now have moved to the task, and `from` is `from_run`.

        Weights by shares of the run (20%) become weights by step.

        A task without a name (task.mask_ratio=null on the command line) is the default one.

        Args:
            values: From YAML and the command line.

        Raises:
            UserError: A key stands in both places with different values.
        """
        values = _by_step(values)
        if "from" in values:
            given = values["from"]
            if given == "":
                raise UserError("from: wanted the run or model to begin with, found an empty text")
            values = {key: value for key, value in values.items() if key != "from"}
            _once(values, "from_run", given, "from")
        if isinstance(values.get("task"), dict) and "name" not in values["task"]:
            values = {**values, "task": {"name": TASK, **values["task"]}}
        if isinstance(values.get("student"), dict) and "like" in values["student"] and "name" not in values["student"]:
            values = {**values, "student": _like(values["student"], values.get("teacher"))}
        old = [key for key in (*MOVED, "evaluation") if key in values]
        if not old:
            return values
        kept = {key: value for key, value in values.items() if key not in old}
        moved = {MOVED[key]: values[key] for key in old if key in MOVED}
        if "evaluation" in old:
            evaluation = cast(dict[str, Any], values["evaluation"], "config.evaluation")
            moved["evaluation"] = {key: value for key, value in evaluation.items() if key != "every"}
            if "every" in evaluation:
                _once(kept, "validate_every", evaluation["every"], "evaluation.every")
        task = Plugin.from_value(values.get("task", TASK), "task")
        options = dict(task.options)
        for key, value in moved.items():
            _once(options, key, value, f"task.{key}")
        return {**kept, "task": {"name": task.name, **options}}

    @property
    def teachers(self) -> dict[str, str]:
        """The place of each teacher, by name; losses that name none read the first."""
        if self.teacher is None:
            return {}
        return self.teacher if isinstance(self.teacher, dict) else {TEACHER: self.teacher}

    @property
    def ema_rates(self) -> tuple[float, ...]:
        """The decay of every weight average; the first is sampled from."""
        return tuple(self.ema) if isinstance(self.ema, list) else (self.ema,)


def _once(values: dict[str, Any], key: str, value: object, name: str) -> None:
    """Move a value from another place."""
    if values.setdefault(key, value) != value:
        raise UserError(f"config: {name} stands in another place, too, and differs: {values[key]} and {value}")


def _by_step(values: dict[str, Any]) -> dict[str, Any]:
    """Values whose losses have steps where they had shares of the run."""
    steps = cast(int, values.get("steps", TrainConfig.steps), "config.steps")
    losses = values.get("losses")
    values = dict(values)
    if "base_weight" in values:
        values["base_weight"] = shares_as_steps(values["base_weight"], steps, "base_weight")
    if isinstance(losses, list):
        values["losses"] = [
            {key: shares_as_steps(value, steps, f"losses.{i}.{key}") for key, value in loss.items()}
            if isinstance(loss, dict)
            else loss
            for i, loss in enumerate(losses)
        ]
    return values


def _like(student: dict[str, Any], teacher: object) -> dict[str, Any]:
    """`{like: teacher, num_layers: 14}` as the keywords of the family diffusers."""
    like = student["like"]
    if like == TEACHER:
        if not isinstance(teacher, str):
            raise UserError("student.like: teacher is wanted, and teacher=... names no single one")
        like = teacher
    changes = {key: value for key, value in student.items() if key not in ("like", "config")}
    return {"name": "diffusers", "like": like, "config": {**(student.get("config") or {}), **changes}}


def sized(config: TrainConfig, defaults: Mapping[str, Any]) -> TrainConfig:
    """The config whose student has the keywords that follow from data and task (number of classes, prediction).

    Keywords of the config come first. A run that an earlier version began without them keeps its family's defaults.

    Args:
        config: The config of the run.
        defaults: Keywords of families; those that the student's family does not have are left out.
    """
    student, file = filled(config.student, defaults), config.run / RUN_CONFIG
    saved = read_yaml(file).get("student") if file.is_file() else None
    new = student.options.keys() - config.student.options.keys()
    if isinstance(saved, dict) and saved.get("name") == student.name and not new & saved.keys():
        return config
    return replace(config, student=student)


def filled(family: Plugin, defaults: Mapping[str, Any]) -> Plugin:
    """A family of models with default keywords.

    Args:
        family: Its name, and the keywords of the config, which come first.
        defaults: Keywords; those that the family does not have are left out.
    """
    known = inspect.signature(FAMILIES.find(family.name)).parameters
    missing = {key: value for key, value in defaults.items() if key in known and key not in family.options}
    return Plugin(family.name, {**family.options, **missing})


def may_change(task: Task[Any]) -> list[str]:
    """The keys that may differ when a run is resumed."""
    return [*resumable_keys(TrainConfig), *(f"task.{key}" for key in sorted(task.resumable))]


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that an earlier version began, with the keys of this version.

    Args:
        values: Of config.yaml; returned as they are if they are no config.
    """
    try:
        return resolve(resolved(make(TrainConfig, values)))
    except UserError:
        return values


def resolved(config: TrainConfig) -> TrainConfig:
    """The config with the defaults of task, data and losses written out (a model's are in its own config.json).

    A loss that draws and has no seed gets the run's: seeds of a study are then seeds of all that is drawn.
    """
    data, task = DATASETS.filled(config.data, "data"), TASKS.filled(config.task, "task")
    built = TASKS.build(task, "task")
    passes = [*built.passes, *sorted(built.all_passes.difference(built.passes))]
    losses = [LOSSES.filled(p, f"losses.{i}", {"seed": config.seed}) for i, p in enumerate(config.losses)]
    return replace(config, task=task, data=data, losses=[_with_passes(p, passes) for p in losses])


def _with_passes(loss: Plugin, passes: list[str]) -> Plugin:
    """A loss of all passes names them, so that a saved config does not depend on the task."""
    everywhere = loss.options.get("passes", ()) is None
    return Plugin(loss.name, {**loss.options, "passes": passes}) if everywhere else loss
