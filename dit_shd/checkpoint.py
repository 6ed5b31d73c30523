"""The run folder: all that resuming and sampling need.

config.yaml      resolved                     metrics.jsonl   the numbers of each logged step (deterministic)
checkpoints/     step_<n>/, newest last       timing.jsonl    seconds (not deterministic)
student/         EMA weights, diffusers format with a model card
evaluations/     samples drawn during training   calibration.json   what losses found out before training (head plans)
"""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dit_shd.config import dump, read_yaml
from dit_shd.errors import UserError
from dit_shd.models._public import read_tensors

CHANGEABLE = (
    "run", "steps", "micro_batch_size", "compile", "gradient_checkpointing", "sharding", "log_every",
    "checkpoint_every", "keep_checkpoints", "gradient_norms_every", "evaluation", "tracker",
    "dry_run", "estimate",
)  # fmt: skip
"""Keys of the config that may differ when a run is resumed."""

LOGS = ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")
"""Rows by step; only the second one differs when a run is repeated."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @classmethod
    def open(cls, path: Path, config: Any, write: bool = True) -> "RunFolder":
        """Make a run folder, or reopen the one that holds the same config.

        Args:
            write: False in all processes but the main one, which has been here before them.

        Raises:
            UserError: the folder holds another config, or something that is not a run.
        """
        new = dump(config)
        file = path / "config.yaml"
        if file.exists():
            check_same(path, read_yaml(file), new)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and is not a run folder; choose another run=FOLDER")
        if write:
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text(file, new)
            except OSError as error:
                raise UserError(f"{path}: cannot be made a run folder ({error.strerror})") from error
        return cls(path)

    @property
    def student(self) -> Path:
        return self.path / "student"

    def student_of(self, rate: float, config: Any) -> Path:
        """Where the student of one weight average goes: student/ for the first one."""
        return self.student if rate == config.ema_rates[0] else self.path / f"student_ema_{rate:g}"

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*[0-9]"))

    def save(self, step: int, tensors: dict[str, dict[str, Tensor]], optimizer: dict, extra: dict, keep: int) -> None:
        """Write a checkpoint whole or not at all, then drop all but the newest `keep`."""
        final = self.path / "checkpoints" / f"step_{step:08d}"
        with replacing(final) as folder:
            for name, state in tensors.items():
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in state.items()},
                    folder / f"{name}.safetensors",
                )
            torch.save(optimizer, folder / "optimizer.pt")
            (folder / "state.json").write_text(json.dumps({"step": step, **extra}))
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint: `student` and other tensor files by name, `optimizer`, and state.json's numbers."""
        folder = self.newest
        if folder is None:
            return None
        try:
            loaded: dict[str, Any] = {file.stem: read_tensors(file) for file in folder.glob("*.safetensors")}
            loaded["optimizer"] = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if folder.name != f"step_{state['step']:08d}":
                raise ValueError("state.json is of another step")
            return loaded | state
        except Exception as error:  # damaged or hostile: nothing in it was executed
            reason = "it wants to execute code" if isinstance(error, pickle.UnpicklingError) else str(error)
            raise UserError(
                f"{folder}: not a readable checkpoint ({' '.join(reason.split())[:150]}); "
                "move it away to resume from the one before"
            ) from error

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint's folder."""
        return (self.checkpoints() or [None])[-1]

    def log(self, file: str, numbers: dict[str, Any]) -> None:
        with open(self.path / file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(numbers) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop logged steps that the newest checkpoint does not have: they are about to be run again."""
        for name in LOGS:
            file = self.path / name
            if file.exists():
                text = file.read_text(encoding="utf-8", errors="replace")
                kept = [line for line in text.splitlines() if _step(line) <= step]
                write_text(file, "".join(line + "\n" for line in kept))

    def metrics(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def check_same(path: Path, old: dict[str, Any], new_text: str) -> None:
    """Refuse a folder whose config differs in more than what may change on resume."""
    import yaml

    new = yaml.safe_load(new_text)
    changed = [k for k in sorted(old.keys() | new.keys()) if k not in CHANGEABLE and old.get(k) != new.get(k)]
    if changed:
        shown = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:3])
        raise UserError(
            f"{path}: already holds a run with another config ({shown}); choose another run=FOLDER. "
            f"May change on resume: {', '.join(CHANGEABLE)}."
        )


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return 2**62  # half a line from a kill


def write_text(file: Path, text: str) -> None:
    """Replace a file's text in one step."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


class replacing:
    """A folder that appears whole under its name when the block ends without an error, and not otherwise.

    A kill between its two renames leaves the old folder under `.NAME.old`; the next one puts it back first.
    """

    def __init__(self, final: Path):
        self.final, self.part = final, final.with_name(f".{final.name}.part")
        self.old = final.with_name(f".{final.name}.old")

    def __enter__(self) -> Path:
        if self.old.exists() and not self.final.exists():
            os.replace(self.old, self.final)
        for leftover in (self.part, self.old):
            shutil.rmtree(leftover, ignore_errors=True)
        self.part.mkdir(parents=True)
        return self.part

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.part, ignore_errors=True)
            return
        for file in self.part.rglob("*"):  # safetensors writes for the owner only
            if file.is_file():
                file.chmod(0o666 & ~_umask())
        if self.final.exists():
            os.replace(self.final, self.old)
        os.replace(self.part, self.final)
        shutil.rmtree(self.old, ignore_errors=True)
