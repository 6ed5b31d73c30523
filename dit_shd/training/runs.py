"""Training from Python in one call: `train("digits_shd", steps=100)`, and the run that it leaves."""

import html
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dit_shd.core.config import make
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.rng import kept_generators
from dit_shd.core.shipped_configs import read_config
from dit_shd.models.loading import load
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.trainer import Trainer

WHOLE = ("teacher", "base_weight", "layers")
"""Keys whose mappings, by names or steps of the user's, are values as a whole."""
GROUPS = ("optimizer",)
"""Keys with a `name` of which the other keys are not that name's alone."""
_one_run = threading.Lock()
CURVE = (420, 120)
"""Width and height of the curve in a notebook, in pixels."""


@dataclass(frozen=True)
class TrainedRun:
    """A run folder and how far the run in it is."""

    path: Path
    step: int
    """The last step that was taken."""
    steps: int
    """All steps of the run."""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps: loss, terms, learning rate."""
        return RunFolder(self.path).metrics()

    def student(self) -> nn.Module:
        """The student with its averaged weights."""
        return load(self.path)

    def _repr_html_(self) -> str:
        rows = self.metrics
        last = {k: v for k, v in rows[-1].items() if k == "loss" or k.count("/") == 1} if rows else {}
        cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{v:.4g}</td></tr>" for k, v in last.items())
        head = f"{html.escape(str(self.path))}: step {self.step:,} of {self.steps:,}"
        return f"<p>{head}</p>{_curve([row['loss'] for row in rows if 'loss' in row])}<table>{cells}</table>"


def train(config: str | Path | Mapping[str, object], *, progress: bool = True, **changes: Any) -> TrainedRun:
    """Train to the end, or go on with a run that is in its folder already; Ctrl-C saves and ends.

    For the steps one by one: `dit_shd.training.trainer.train(config)`.

    Args:
        config: Values, a YAML file, the name of an experiment that ships with dit_shd, or a run folder.
        progress: Whether to show a bar, in a notebook as a widget.
        changes: Keys of TrainConfig that take the place of the config's; those of a group (optimizer) are merged.

    Returns:
        The run, whose step is smaller than steps where it was interrupted.

    Raises:
        UserError: A config that cannot work; nothing has been written then. Or another run trains in this process.
    """
    if not isinstance(config, (str, Path, Mapping)):
        raise UserError(f"train: wanted values, a YAML file or a name, found {type(config).__name__}")
    if not _one_run.acquire(blocking=False):
        raise UserError(
            "train: another run trains in this process, and both would draw from torch's one generator; wait"
        )
    with ExitStack() as stack:
        stack.callback(_one_run.release)
        stack.enter_context(kept_generators(current_device()))
        values = dict(config) if isinstance(config, Mapping) else read_config(config)
        trainer = Trainer.from_config(make(TrainConfig, merged(values, changes)))
        done, total = trainer.first_step, trainer.config.steps
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(trainer.stop.listening())
        bar = stack.enter_context(_bar(trainer, progress))
        for step in trainer.run_steps():
            done = step.number
            bar.update()
            if "loss" in step.metrics:
                bar.set_postfix(loss=f"{step.metrics['loss']:.4f}", refresh=False)
    return TrainedRun(trainer.config.run, done, total)


def _bar(trainer: Trainer, shown: bool) -> Any:  # noqa: ANN401 - a bar of the terminal or of a notebook
    from tqdm.auto import tqdm

    hidden = not (shown and trainer.accelerator.is_main_process)
    name = trainer.config.run.name
    return tqdm(total=trainer.config.steps, initial=trainer.first_step, desc=name, unit="step", disable=hidden)


def merged(values: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, Any]:
    """Values with changes in their place; of a mapping that names no plug-in and is not WHOLE, key by key.

    A student `like` the teacher is another one than the config's, as one by name is.
    """
    result = dict(values)
    if "from_run" in changes:  # of Python, where from is no keyword
        result.pop("from", None)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, str) and key not in WHOLE:  # `task: flow_matching` is short for {name: flow_matching}
            before = {"name": before}
        mappings = key not in WHOLE and isinstance(before, Mapping) and isinstance(value, Mapping)
        other = mappings and key not in GROUPS and ("name" in value or "like" in value)  # type: ignore[operator]
        both = mappings and not other
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def _curve(losses: list[float]) -> str:
    """The losses as an SVG polyline."""
    if len(losses) < 2:
        return ""
    low, high = min(losses), max(losses)
    width, height = CURVE
    points = " ".join(
        f"{i * width / (len(losses) - 1):.1f},{height * (high - loss) / ((high - low) or 1):.1f}"
        for i, loss in enumerate(losses)
    )
    line = f'<polyline points="{points}" fill="none" stroke="currentColor"/>'
    return f'<svg width="{width}" height="{height}" role="img"><title>loss by step</title>{line}</svg>'
