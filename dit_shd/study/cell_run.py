"""One cell from its config to its row: train, sample, evaluate, each an ordinary command.

    train.yaml   the config        run/          the run folder       samples.npz   the images
    logs/        what was printed  stages.json   what is done         row.json      the result

A stage that is done is not run again; one that was cut off goes on by the rules of its command.
"""

import itertools
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dit_shd.core.environment import about_process
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.json_files import read_lines, read_object
from dit_shd.core.run_files import EVALUATIONS, INPUTS, METRICS, RUN_CONFIG
from dit_shd.core.signals import Stopped
from dit_shd.core.yaml_files import as_json, dump, read_yaml
from dit_shd.study import origins
from dit_shd.study.design import Cell, Evaluator, Study
from dit_shd.study.processes import DIT_SHD, Commands, Usage, commit
from dit_shd.study.results import PROGRAM, ROW, CellResult, read_results, rounded, write_row
from dit_shd.study.settings import canonical_sha256

POINTS = 60
"""Of a loss curve that a row keeps."""
STOPPED = "stopped by a signal; the same command goes on from what is saved"
CONFIG = "train.yaml"
SAMPLES = "samples.npz"
STAGES = "stages.json"


def run_cell(study: Study, cell: Cell, folder: Path, references: Mapping[str, str], commands: Commands) -> CellResult:
    """Run what is left of a cell and write its row; a failure is a row, too.

    Args:
        study: The cell's study.
        cell: What is run.
        folder: The cell's own.
        references: Evaluator of `dit-shd evaluate` -> what its samples are compared with.
        commands: Runs them.

    Raises:
        Stopped: By a signal; the cell goes on later.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = not cell.model and _same_run(cell, folder)
    if not cell.model:
        write_text(folder / CONFIG, dump({**cell.training, "run": str(folder / "run")}))
    stages = _Stages(folder, cell, commands, trained)
    error = ""
    programs = {f"evaluate-{name}": evaluator.program for name, evaluator in study.evaluators.items()}
    for name, words in stages_of(study, folder, cell, references).items():
        error = stages.run(name, words, programs.get(name, ""))
        if error:
            break
    figures: dict[str, float] = {}
    try:
        figures = {} if error else figures_of(study, folder)
    except UserError as refused:  # of what a program wrote
        error = str(refused)
        stages.forget(f"evaluate-{name}" for name, evaluator in study.evaluators.items() if evaluator.program)
    result = CellResult(
        cell=cell.number,
        variant=cell.variant,
        seed=cell.seed,
        sha256=cell.sha256,
        status="failed" if error else "done",
        error=error,
        failures=_earlier_failures(folder, cell),
        config_sha256=_config_sha256(folder / "run" / RUN_CONFIG),
        figures=figures,
        seconds={name: round(usage.seconds, 1) for name, usage in stages.usage.items()},
        cpu_seconds={name: round(usage.cpu_seconds, 1) for name, usage in stages.usage.items()},
        uncounted=stages.cut,
        memory_mib=round(max((usage.memory_mib for usage in stages.usage.values()), default=0.0)),
        curve=thinned(read_lines(folder / "run" / METRICS)),
        versions={
            **about_process()["versions"],
            "commit": commit(),
            **origins.of_weights(cell, folder / SAMPLES, folder / "run" / INPUTS),
            **origins.of_sampling(study, folder / SAMPLES),
            **(origins.of_evaluators(study, folder) if figures else {}),
            **{f"{PROGRAM} {name}": digest for name, digest in stages.programs.items() if digest},
        },
        data=origins.of_data(folder / "run" / INPUTS),
        early=_early(folder / "run") if figures else "",
        finished=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    )
    write_row(folder, result)
    return result


def _same_run(cell: Cell, folder: Path) -> bool:
    """Whether there is a run of the cell's training; one of an earlier version of the study is renamed."""
    if not (folder / CONFIG).is_file() or not (folder / "run").is_dir():
        return False
    old = {key: value for key, value in read_yaml(folder / CONFIG).items() if key != "run"}
    if old == cell.training:
        return True
    names = (f"run-{canonical_sha256(old)[:8]}{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
    os.replace(folder / "run", next(folder / name for name in names if not (folder / name).exists()))
    return False


def stages_of(study: Study, folder: Path, cell: Cell, references: Mapping[str, str]) -> dict[str, list[str]]:
    """Stage -> the words of its command, in the order in which they run."""
    stages = {} if cell.model else {"train": [DIT_SHD, "train", str(folder / CONFIG)]}
    if study.evaluators:
        sampling = {"seed": cell.seed, **study.sampling, "out": str(folder / SAMPLES), "force": True}
        stages["sample"] = [DIT_SHD, "sample", cell.model or str(folder / "run"), *assignments(sampling)]
    for name, evaluator in study.evaluators.items():
        stages[f"evaluate-{name}"] = _evaluation(name, evaluator, references.get(name, ""), folder)
    return stages


def _evaluation(name: str, evaluator: Evaluator, reference: str, folder: Path) -> list[str]:
    """The words that score the samples of a cell's folder."""
    if evaluator.program:
        samples, out = str(folder / SAMPLES), str(folder / f"{name}.json")
        words = shlex.split(evaluator.program)
        return [word.replace("{samples}", samples).replace("{out}", out) for word in words]
    keys = {
        "reference": reference,
        **({} if evaluator.size is None else {"crop": True}),
        "features": evaluator.features.as_value(),
        "metrics": [metric.as_value() for metric in evaluator.metrics],
        "out": str(folder / f"{name}.json"),
        "page": False,
        "force": True,
    }
    return [DIT_SHD, "evaluate", str(folder / SAMPLES), *assignments(keys)]


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Values as key=value of a command line."""
    return [f"{key}={as_json(value)}" for key, value in values.items()]


class _Stages:
    """Which stages of a cell are done, and what they took.

    Args:
        folder: The cell's.
        cell: What is run.
        commands: Runs it.
        trained: Whether the run in the folder is of the cell's training, whatever its samples were and their figures:
            it is done if it was, and what it took is part of the cost.
    """

    def __init__(self, folder: Path, cell: Cell, commands: Commands, trained: bool):
        self.file, self.folder, self.sha256, self.commands = folder / STAGES, folder, cell.sha256, commands
        known = read_object(self.file) or {}
        same, self.training = known.get("sha256") == cell.sha256, canonical_sha256(cell.training)
        usage = {name: Usage(**usage) for name, usage in known.get("usage", {}).items()}
        cut = [*known.get("cut", []), *filter(None, [known.get("begun")])]
        done: list[str] = known.get("done", [])
        self.usage = {name: usage[name] for name in usage if same or (trained and name == "train")}
        self.cut = [name for name in dict.fromkeys(cut) if same or (trained and name == "train")]
        """Stages that a kill cut off; what they had taken by then is not known."""
        trained = trained and known.get("training") == self.training
        self.done = [name for name in done if same or (trained and name == "train")]
        self.programs: dict[str, str] = known.get("programs", {}) if same else {}
        """Evaluator -> the hash of its program's files when it ran."""
        self._write()  # before anything runs: what is known of earlier settings is not of what a kill leaves

    def run(self, name: str, words: list[str], program: str) -> str:
        """Run a stage's command, unless it is done: what it failed with, or nothing.

        Args:
            name: The stage.
            words: Its command.
            program: As the study file has it, of an evaluator that is one.

        Raises:
            Stopped: By a signal.
        """
        if name in self.done:
            return ""
        self._result(name).unlink(missing_ok=True)  # of other settings: a program that writes none has failed
        if program:
            self.programs[name.removeprefix("evaluate-")] = origins.of_program(program)
        self._write(begun=name)
        outcome = self.commands.run(words, self.folder / "logs" / f"{name}.log")
        self.usage[name] = self.usage.get(name, Usage()) + outcome.usage
        if outcome.done:
            self.done.append(name)
        self._write()
        if outcome.signal:
            raise Stopped(outcome.signal, STOPPED)
        return outcome.error

    def _result(self, name: str) -> Path:
        """The file that a stage writes, if it writes one alone."""
        return self.folder / (SAMPLES if name == "sample" else f"{name.removeprefix('evaluate-')}.json")

    def forget(self, names: Iterable[str]) -> None:
        """Have stages run again by the next try."""
        forgotten = set(names)
        self.done = [name for name in self.done if name not in forgotten]
        self._write()

    def _write(self, begun: str = "") -> None:
        known = {
            "sha256": self.sha256,
            "training": self.training,
            "done": self.done,
            "usage": {name: asdict(usage) for name, usage in self.usage.items()},
            "programs": self.programs,
            "begun": begun,
            "cut": self.cut,
        }
        write_text(self.file, json.dumps(known))


def figures_of(study: Study, folder: Path) -> dict[str, float]:
    """All figures by name; of a name that several evaluators have, each says whose it is, whatever their order.

    Raises:
        UserError: A program wrote something else than numbers by name.
    """
    scores: dict[str, dict[str, float]] = {}
    for name, evaluator in study.evaluators.items():
        file = folder / f"{name}.json"
        program = evaluator.program
        scores[name] = _figures_of_program(file) if program else json.loads(file.read_text("utf-8"))["figures"]
    givers = Counter(figure for values in scores.values() for figure in values)
    figures = {
        figure if givers[figure] == 1 else f"{figure} by {name}": value
        for name, values in scores.items()
        for figure, value in values.items()
    }
    for line in read_lines(folder / "run" / EVALUATIONS)[-1:]:
        numbers = {key: value for key, value in line.items() if isinstance(value, (int, float)) and key != "step"}
        figures |= {f"training/{key}": value for key, value in numbers.items()}
    return figures


def _early(run: Path) -> str:
    """Of which step a run's last evaluation is, unless it is of the last one."""
    config = run / RUN_CONFIG
    steps = read_yaml(config).get("steps") if config.is_file() else None
    evaluated = [line.get("step") for line in read_lines(run / EVALUATIONS)[-1:]]
    return f"step {evaluated[0]} of {steps}" if evaluated and steps and evaluated[0] != steps else ""


def _figures_of_program(file: Path) -> dict[str, float]:
    """What an evaluator's program wrote to {out}."""
    wanted = f"{file}: wanted figures as JSON, name -> number, by the evaluator's program, found"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{wanted} {'no file' if isinstance(error, OSError) else 'no JSON'}") from error
    numbers = isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())
    if not numbers or not values:
        raise UserError(f"{wanted} {json.dumps(values)[:100]}")
    return values


def _earlier_failures(folder: Path, cell: Cell) -> list[str]:
    """What the same cell failed with before."""
    rows = [row for row in read_results(folder / ROW) if row.sha256 == cell.sha256 and not row.done]
    return [error for row in rows for error in (*row.failures, row.error)]


def thinned(lines: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """Loss terms (keys such as plain/noise) of at most POINTS lines of a metrics.jsonl, the last one with them.

    None where a line has no such term: of a step that was left out, or once the loss has ended.
    """
    every = -(-len(lines) // POINTS) or 1
    kept = lines[::-every][::-1]
    terms = dict.fromkeys(key for line in kept for key in line if key == "step" or key.count("/") == 1)
    return {key: [rounded(line[key]) if key in line else None for line in kept] for key in terms}


def _config_sha256(file: Path) -> str:
    if not file.is_file():
        return ""
    return canonical_sha256({key: value for key, value in read_yaml(file).items() if key != "run"})
