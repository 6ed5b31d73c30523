"""An accelerate tracker (tensorboard, wandb, ...): it gets a run's config, and the numbers of each step once.

A run that goes on from a checkpoint takes the steps after it again, with the same numbers. The steps that its tracker
has are kept in tracked.jsonl and are not sent again: trackers append, and none of them can remove a row.
"""

import json
from typing import TYPE_CHECKING, Any

from dit_shd.core.config import resolve
from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_lines
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator


FILE = "tracked.jsonl"


class Tracker:
    """The tracker of a run. Every process calls its methods; without `config.tracker` they do nothing.

    Args:
        config: The config of the run.
        folder: The folder of the run.
        accelerator: The accelerator of the run.

    Raises:
        UserError: The tracker cannot begin (no account, no network).
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, accelerator: "Accelerator"):
        self.name, self.folder, self.accelerator = config.tracker, folder, accelerator
        if self.name is None:
            return
        self.sent: dict[str, int] = run_on_main(self._begin)
        """Kind -> the last step that was sent."""
        try:
            accelerator.init_trackers("dit_shd", config=hyperparameters(resolve(config)))
        except Exception as error:  # each has its own
            raise UserError(f"tracker: {self.name} cannot begin ({error_line(error)})") from error

    def log(self, kind: str, numbers: dict[str, float], step: int) -> None:
        """Send the numbers of a step, unless they were sent before.

        Args:
            kind: Training or evaluation.
            numbers: The numbers, by name.
            step: The step, from 1.
        """
        if self.name is None or step <= self.sent.get(kind, -1):
            return
        if self.accelerator.is_main_process:  # first: a kill between the two leaves one out, and sends none twice
            self.folder.log(FILE, {"tracker": self.name, "kind": kind, "step": step})
        self.accelerator.log(numbers, step=step)

    def _begin(self) -> dict[str, int]:
        """The last step that was sent by kind. Half a line of a kill is dropped, of the others the last are kept."""
        last: dict[tuple[str, str], int] = {}
        file = self.folder.path / FILE
        for row in read_lines(file):
            try:
                key, step = (str(row["tracker"]), str(row["kind"])), int(row["step"])
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
            last[key] = max(step, last.get(key, -1))
        rows = [{"tracker": tracker, "kind": kind, "step": step} for (tracker, kind), step in last.items()]
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        return {kind: step for (tracker, kind), step in last.items() if tracker == self.name}


def hyperparameters(values: object, name: str = "") -> dict[str, Any]:
    """A resolved config in the form of trackers: flat, with dots (optimizer.lr, losses.0.name), numbers and texts.

    Args:
        values: As resolve() gives them, or a part of them.
        name: The name of the part.
    """
    if isinstance(values, dict) and values:
        items = values.items()
    elif isinstance(values, list) and any(isinstance(value, (dict, list)) for value in values):
        items = enumerate(values)
    else:
        plain = values is None or isinstance(values, (bool, int, float, str))
        return {name: values if plain else json.dumps(values)}
    return {
        k: v for key, value in items for k, v in hyperparameters(value, f"{name}.{key}" if name else str(key)).items()
    }
