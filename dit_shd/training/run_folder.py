"""The run folder: all that resuming and sampling need.

config.yaml      resolved                     metrics.jsonl   the numbers of each logged step (deterministic)
checkpoints/     step_<n>/, newest last       timing.jsonl    seconds (not deterministic)
student/         EMA weights, diffusers format with a model card and their step (training.json)
evaluations/     samples drawn during training   calibration.json   the calibration of losses (head plans)
vae/, autoencoder.json   the autoencoder of the latents, which sampling decodes with; of pixels only that they are
from.json   the run or model whose weights it began with (from=RUN)
initialisation.json   which layers, heads and channels of the teacher the student began with
inputs.json      a hash of the teachers and the number of samples, compared when the run goes on
bad_steps/       batches whose loss or gradient was not finite
tracked.jsonl    the steps that the tracker has, so that it gets each once

A checkpoint is a folder of safetensors files, state.json and manifest.json, which has the sha256 of each. It is
written, synced and renamed; one that does not agree with its manifest is set aside for the one before. No pickles.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_folder, cannot_be_written, recover, remove, sync, write_text
from dit_shd.core.hashing import sha256
from dit_shd.core.json_files import cut_last_lines, read_lines
from dit_shd.core.lock import LOCK, Lock
from dit_shd.core.resumable import differences
from dit_shd.core.run_files import CHECKPOINTS, LOGS, METRICS, RUN_CONFIG, STUDENT
from dit_shd.core.yaml_files import dump, parse_yaml, read_yaml
from dit_shd.training.checkpoint import MANIFEST, damage, flat, step_of, unflat
from dit_shd.training.run_place import refuse_other

Completed = Callable[[dict[str, Any]], dict[str, Any]]
NO_STEP = 2**62
SHARES = " Weights by shares of a run (20%) stand in its config.yaml as steps; to raise steps, write those."
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its config, checkpoints, logs and exported students."""

    path: Path
    lock: Lock | None = None
    """Of the main process, while it may write."""

    @classmethod
    def open(cls, path: Path, config: str, resumable: Collection[str] = (), completed: Completed = dict) -> "RunFolder":
        """Make a run folder, or reopen the one that holds the same config. The main process locks it until release().

        Args:
            path: The path of the folder, which need not exist.
            config: Resolved, as YAML.
            resumable: Its keys that may differ on resume.
            completed: Gives the config of a run that an earlier version began the keys of this version.

        Raises:
            UserError: The folder is in use, or holds another config, or something that is not a run.
        """
        locks: list[Lock] = []

        def begin() -> None:
            _check(path, config, resumable, completed)
            try:
                path.mkdir(parents=True, exist_ok=True)
                sync(path.parent)
            except OSError as error:
                raise UserError(f"{path}: cannot be made a run folder ({error.strerror})") from error
            locks.append(Lock(path / LOCK, "dit-shd train"))
            _check(path, config, resumable, completed)  # again, under the lock
            for place in (path, path / CHECKPOINTS):
                recover(place)
            _keep_given(path / RUN_CONFIG)
            write_text(path / RUN_CONFIG, config)
            (path / CHECKPOINTS).mkdir(exist_ok=True)
            sync(path)

        run_on_main(begin)
        return cls(path.absolute(), locks[0] if locks else None)  # a script may change its folder between steps

    def release(self) -> None:
        """Let others use the folder."""
        if self.lock is not None:
            self.lock.release()

    @property
    def student(self) -> Path:
        """The exported student with the weights of the first average."""
        return self.path / STUDENT

    def student_of(self, rate: float, rates: Sequence[float]) -> Path:
        """The exported student of one weight average: student/ for the first of all rates."""
        return self.student if rate == rates[0] else self.path / f"{STUDENT}_ema_{rate:g}"

    def checkpoints(self) -> list[Path]:
        """All of them, sound or not, oldest first."""
        folders = (self.path / CHECKPOINTS).glob("step_*")
        return sorted((f for f in folders if re.fullmatch(r"step_\d+", f.name)), key=step_of)

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint's folder."""
        return (self.checkpoints() or [None])[-1]

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        optimizer: dict[str, Any],
        extra: dict[str, Any],
        keep: int,
        keep_every: int = 0,
    ) -> None:
        """Write a checkpoint whole or not at all, then drop all but the newest `keep` and the milestones.

        Args:
            step: The last that was taken, from 1.
            tensors: The tensors, by file and name.
            optimizer: Its state_dict().
            extra: Plain data.
            keep: Newest checkpoints that stay.
            keep_every: Checkpoints of steps that are a multiple of it are never dropped; 0 for none.

        Raises:
            UserError: It could not be written; those before it are as they were.
        """
        self._check_latest()
        held, groups = flat(optimizer)
        with atomic_folder(self.path / CHECKPOINTS / f"step_{step:08d}") as folder:
            for name, state in {**tensors, "optimizer": held}.items():
                save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, "optimizer": groups, **extra}))
            sums = {file.name: sha256(file) for file in sorted(folder.iterdir())}
            (folder / MANIFEST).write_text(json.dumps(sums, separators=(",", ":")))
            for log in LOGS:  # the lines of the steps that it holds
                if (self.path / log).exists():
                    sync(self.path / log)
        for old in self.checkpoints()[:-keep]:
            if not keep_every or step_of(old) % keep_every:
                remove(old)

    def pick(self) -> str | None:
        """The name of the newest sound checkpoint, None where there is none at all; damaged ones are set aside.

        Raises:
            UserError: There are damaged ones alone: to begin anew would be no resuming.
        """
        damaged: dict[Path, str] = {}
        for folder in reversed(self.checkpoints()):
            reason = damage(folder)
            if reason is None:
                for bad, words in damaged.items():
                    aside = _aside(bad)
                    _log.warning("%s: %s; kept as %s, going on from %s", bad, words, aside.name, folder.name)
                return folder.name
            damaged[folder] = reason
        reasons = [f"{folder.name}: {reason}" for folder, reason in damaged.items()]
        reasons += [file.name for file in sorted((self.path / CHECKPOINTS).glob("step_*.damaged*"))]
        if reasons:
            raise UserError(
                f"{self.path / 'checkpoints'}: no checkpoint is sound ({'; '.join(reasons)[:300]}); put a copy of one "
                f"back, or move {self.path} away to begin anew"
            )
        return None

    def load(self, name: str | None = None) -> dict[str, Any] | None:
        """A checkpoint: tensors by file, `optimizer` as a state_dict, and state.json's numbers.

        Args:
            name: As pick() gives it; None for the one that it gives now.

        Returns:
            None where there is no checkpoint.

        Raises:
            UserError: It is no checkpoint of a run.
        """
        name = name or self.pick()
        if name is None:
            return None
        folder = self.path / CHECKPOINTS / name
        try:
            files = [folder / Path(file).name for file in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))]
            loaded: dict[str, Any] = {file.stem: load_file(file) for file in files if file.suffix == ".safetensors"}
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            if step_of(folder) != state["step"]:
                raise ValueError("state.json is of another step")
            return {**loaded, **state, "optimizer": unflat(loaded["optimizer"], state["optimizer"])}
        except Exception as error:  # what agrees with its manifest can still be of another program
            raise UserError(
                f"{folder}: not a checkpoint ({error_line(error)}); move it away to resume from the one before"
            ) from error

    def log(self, file: str, numbers: dict[str, Any]) -> None:
        """Append a row to a log.

        Args:
            file: Its name.
            numbers: With their step.

        Raises:
            UserError: It could not be written.
        """
        self._check_latest()
        try:
            with open(self.path / file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(numbers) + "\n")
        except OSError as error:
            raise cannot_be_written(self.path / file, error) from error

    def _check_latest(self) -> None:
        """Refuse to write what another loop over the same run writes, as of a notebook that has begun it anew."""
        if self.lock is not None and not self.lock.is_latest:
            raise UserError(f"{self.path}: the run was taken up again in this process since; go on there")
        if self.lock is not None and not self.lock.is_in_place:
            raise UserError(
                f"{self.path}: the folder was moved, removed or replaced while the run was at work; nothing more is "
                "written: take it up again where it is now"
            )

    def forget_after(self, step: int) -> None:
        """Drop the rows of later steps, which the newest checkpoint does not have: they are about to be taken again."""
        for file in map(self.path.joinpath, LOGS):
            if file.exists():
                cut_last_lines(file, lambda row: _step(row) <= step)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return self.rows(METRICS)

    def rows(self, log: str) -> list[dict[str, Any]]:
        """The rows of a log by its file name, those that are whole and of a step; none where there is none."""
        return [row for row in read_lines(self.path / log) if _step(row) < NO_STEP]


def is_begun(path: Path) -> bool:
    """Whether a run folder has a checkpoint to go on from."""
    return RunFolder(path).newest is not None


def check_same(path: Path, old: dict[str, Any], new_text: str, resumable: Collection[str]) -> None:
    """Refuse a folder whose config differs in keys that may not change on resume.

    Args:
        path: The path of the folder.
        old: Its config.
        new_text: The config, as YAML.
        resumable: Keys that may change; a key of a part as part.key.

    Raises:
        UserError: Up to three keys that differ.
    """
    changed = differences(_fixed(old, resumable), _fixed(parse_yaml(new_text), resumable))
    if changed:
        raise UserError(
            f"{path}: already holds a run with another config ({changed}); choose another run=FOLDER. "
            f"May change on resume: {', '.join(resumable)}.{SHARES if 'weight.' in changed else ''}"
        )


def _fixed(values: dict[str, Any], resumable: Collection[str]) -> dict[str, Any]:
    """The keys of a config that may not change; a part's key is named as part.key."""
    fixed = {key: value for key, value in values.items() if key not in resumable}
    for part, _, inner in (name.partition(".") for name in resumable):
        if inner and isinstance(fixed.get(part), dict):
            fixed[part] = {key: value for key, value in fixed[part].items() if key != inner}
    return fixed


def _step(row: dict[str, Any]) -> int:
    try:
        return int(row["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return NO_STEP


def _check(path: Path, new: str, resumable: Collection[str], completed: Completed) -> None:
    """Refuse a folder that holds another config, or something that is not a run."""
    refuse_other(path)
    if (path / RUN_CONFIG).exists():
        check_same(path, completed(read_yaml(path / RUN_CONFIG)), new, resumable)
        _check_steps(path, parse_yaml(new).get("steps"))


def _keep_given(file: Path) -> None:
    """Copy a config that somebody wrote into the folder, with comments or a base, before it is written resolved."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    copy = file.with_name("config.given.yaml")
    if text and dump(parse_yaml(text)) != text and not copy.exists():
        write_text(copy, text)


def _check_steps(path: Path, steps: object) -> None:
    """Refuse fewer steps than a run has taken, which would stand in its config as all that there were."""
    newest = RunFolder(path).newest
    taken = 0 if newest is None else step_of(newest)
    if isinstance(steps, int) and steps < taken:
        raise UserError(f"{path}: already at step {taken:,}, and steps={steps} are fewer; raise steps=N to go on")


def _aside(folder: Path) -> Path:
    """Rename a damaged checkpoint to a name that is free."""
    names = (folder.with_name(f"{folder.name}.damaged{n or ''}") for n in range(10**6))
    free = next(name for name in names if not name.exists())
    os.replace(folder, free)
    return free
