"""A study as its file describes it: what is varied, over which seeds, and how each run is measured.

    title: Does attention supervision help?          seeds: [0, 1, 2]
    config: ../../configs/digits_output.yaml         sampling: {count: 500, steps: 50}
    settings: {steps: 600}                           evaluators:
    grid:                                              digits: {features: digits, reference: digits}
      start: {teacher: {initialisation.weights: teacher}, random: {}}
      loss:
        output: {}
        shd: {losses: [{name: output}, {name: shd, weight: 0.1}]}

A variant is one level of each factor of `grid`, named by the levels (`teacher-shd`), or one of `models`, which are
sampled and scored as they are; a cell is a variant and a seed.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dit_shd.core.config import REQUIRED, check_ranges, make, option
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.yaml_files import read_yaml, replaced
from dit_shd.evaluation.reference_statistics import LARGEST
from dit_shd.study.settings import applied, canonical_sha256, in_turn, seeded

Settings = dict[str, Any]
"""Key (dots reach inside, as in optimizer.lr) -> value."""
NAME = re.compile(r"\w[\w.+]*")
"""Of a level or an evaluator: a part of a file's name."""
RESERVED = ("run", "seed", "dry_run")
"""Keys of training that are the study's to set."""
RECORDS = ("row", "samples", "stages")
"""Names of a cell's own json files, among those of its evaluators."""


@dataclass(frozen=True)
class Evaluator:
    """One evaluation of a cell's samples: by `dit-shd evaluate`, whose keys it has, or by a program."""

    reference: str = option("", "images, dataset[:split] or a statistics file")
    size: int | None = option(
        None, "side of the samples, to which reference images are cut; empty: they are of one size", range=(1, LARGEST)
    )
    features: Plugin = option(Plugin("inception"), "feature network")
    metrics: list[Plugin] = option([Plugin("frechet")], "metrics")
    program: str = option(
        "",
        "in place of these: a command with {samples} and {out}, which writes figures as JSON, name -> number; "
        "runs with programs=true only",
    )

    def identity(self) -> list[Any]:
        """All that decides its figures."""
        if self.program:
            return [self.program]
        cut = [] if self.size is None else [self.size]
        return [self.features.as_value(), self.reference, [metric.as_value() for metric in self.metrics], *cut]

    def check(self, where: str) -> None:
        """Either a reference or a program that can be run.

        Raises:
            UserError: Neither, both, a program without its two places, or a number out of its range.
        """
        check_ranges(self, f"{where}.")
        if bool(self.reference) == bool(self.program):
            number = "both" if self.program else "neither"
            raise UserError(f"{where}: wanted a reference (for dit-shd evaluate) or a program, found {number}")
        if self.program and self != Evaluator(program=self.program):
            raise UserError(
                f"{where}: size, features and metrics are of dit-shd evaluate, not of a program; leave them out"
            )
        _words(self.program, f"{where}.program")
        missing = [place for place in ("{samples}", "{out}") if self.program and place not in self.program]
        if missing:
            raise UserError(f"{where}.program: wanted a command with {{samples}} and {{out}}, found no {missing[0]}")


@dataclass(frozen=True)
class Claim:
    """A claim about two variants, to be judged by the results."""

    text: str = option(REQUIRED, "the claim in words")
    better: str = option(REQUIRED, "the variant that is said to be better")
    than: str = option(REQUIRED, "the other one")
    source: str = option("", "who makes it, and where")


@dataclass(frozen=True)
class Study:
    """The keys of a study file."""

    title: str = option(REQUIRED, "what the study is about")
    config: str = option(
        REQUIRED,
        "the training config that every cell begins with, relative to the study file; all other paths of a study "
        "count from where the command runs",
    )
    grid: dict[str, dict[str, Settings]] = option(REQUIRED, "factor -> level -> training settings")
    seeds: list[int] = option(REQUIRED, "training seeds; sampling takes the same one")
    question: str = option("", "what it is to answer, and how it was decided before it ran")
    settings: Settings = option({}, "training settings of every cell")
    order: list[list[str]] = option([], "blocks of variants that run first, each seed by seed; all others follow")
    sampling: Settings = option({}, "keys of dit-shd sample")
    evaluators: dict[str, Evaluator] = option({}, "name -> how samples are scored")
    figure: str = option("", "the figure that decides; empty: the first one of the first evaluator")
    higher_is_better: bool | None = option(None, "of that figure; empty: as its name says, as of FD or IS")
    baseline: dict[str, str] = option({}, "factor -> level that every other level is compared with; or none")
    claims: list[Claim] = option([], "what is judged in words")
    relevant: float = option(0.0, "smallest difference of the figure that would matter", range=(0, 1e12))
    models: dict[str, str] = option({}, "name -> model, run or pipeline that is scored as it is, beside: a teacher")
    prepare: list[str] = option([], "dit-shd commands that run once, before any cell")
    cpu_hours: float | None = option(None, "no cell begins once the study's cells have taken so many", range=(0, 1e9))

    def check(self) -> None:
        """Refuse what is wrong in the file by itself; what its cells' commands would refuse is in checks.py.

        Raises:
            UserError: Names that are no file names, unknown variants, keys that the study sets itself.
        """
        check_ranges(self, "study.")
        if not self.grid or not all(self.grid.values()):
            raise UserError("study.grid: wanted at least one factor with at least one level, found none")
        levels = [level for levels in self.grid.values() for level in levels]
        for name in [*self.grid, *levels, *self.evaluators, *self.models]:
            if not NAME.fullmatch(name):
                raise UserError(f"study: '{name}': wanted a name of letters, digits, _ . and +")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"study.seeds: wanted different whole numbers, at least one, found {self.seeds}")
        for name, evaluator in self.evaluators.items():
            if name in RECORDS:
                raise UserError(f"study.evaluators.{name}: {name}.json is a record of a cell; choose another name")
            evaluator.check(f"study.evaluators.{name}")
        for one, other in itertools.combinations(self.variants, 2):
            if self.variants[one] == self.variants[other]:  # a later factor may set all that an earlier one does
                raise UserError(f"study.grid: {one} and {other} are one run, with the same settings; wanted others")
        self._refuse_replaced()
        for line in self.prepare:
            words = _words(line, "study.prepare")
            if refused := next((word for word in words if word == "study" or word.startswith("--")), None):
                raise UserError(f"study.prepare: '{line}': wanted a command of dit-shd with KEY=VALUE, found {refused}")
        for name in self.models.keys() & self.variants.keys():
            raise UserError(f"study.models.{name}: a variant of the grid has this name; choose another")
        places = {"settings": self.settings} | {f"grid.{k}.{v}": s for k, g in self.grid.items() for v, s in g.items()}
        for where, settings in places.items():
            for key in settings.keys() & set(RESERVED):
                raise UserError(f"study.{where}: {key} is the study's to set; leave it out")
        for where, name in self._named_variants():
            if name not in self.names:
                raise UserError(f"study.{where}: no variant '{name}'. Known: {', '.join(self.names)}")
        for claim in self.claims:
            if claim.better == claim.than:
                raise UserError(f"study.claims: wanted two variants, found {claim.better} and itself")
        for factor, level in self.baseline.items():
            if level not in self.grid.get(factor, {}):
                raise UserError(
                    f"study.baseline: wanted a factor of the grid and one of its levels, found {factor}: {level}"
                )

    def _refuse_replaced(self) -> None:
        """Refuse settings inside of a value that comes after them: they would be dropped without a word."""
        for levels in itertools.product(*self.grid.values()):
            places = {"settings": self.settings}
            places |= {f"grid.{factor}.{level}": self.grid[factor][level] for factor, level in zip(self.grid, levels)}
            keys = [(key, place) for place, settings in places.items() for key in settings]
            for inner, outer in replaced([key for key, _ in keys]):
                place, later = dict(keys)[inner], dict(keys)[outer]
                raise UserError(
                    f"study.{place}: {inner} is lost in {'-'.join(levels)}, as {outer} of study.{later} comes after it "
                    f"and is a whole value; write it into that {outer}, or put its factor or line after it"
                )

    def _named_variants(self) -> list[tuple[str, str]]:
        """Where a variant is named, and its name."""
        ordered = [("order", name) for block in self.order for name in block]
        return ordered + [("claims", name) for claim in self.claims for name in (claim.better, claim.than)]

    @property
    def names(self) -> list[str]:
        """The names of all variants: models, then those of the grid."""
        return [*self.models, *self.variants]

    @cached_property
    def variants(self) -> dict[str, Settings]:
        """Variant of the grid -> its settings, over those of every cell."""
        variants = {}
        for levels in itertools.product(*self.grid.values()):
            settings = [factor[level] for factor, level in zip(self.grid.values(), levels)]
            variants["-".join(levels)] = in_turn(*settings)
        return variants

    @cached_property
    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs (variant, what it is compared with), each once: claims, then each level with the baseline's."""
        pairs: list[tuple[str, str]] = []
        for claim in self.claims:
            pair = claim.better, claim.than
            if pair not in pairs and pair[::-1] not in pairs:
                pairs.append(pair)
        for levels in itertools.product(*self.grid.values()):
            named = dict(zip(self.grid, levels))
            for factor, level in self.baseline.items():
                other = "-".join({**named, factor: level}.values())
                pair = ("-".join(levels), other)
                if named[factor] != level and pair not in pairs and pair[::-1] not in pairs:
                    pairs.append(pair)
        return pairs


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    number: int
    variant: str
    seed: int
    training: Mapping[str, Any] = field(repr=False, compare=False)
    """The whole training config, without `run`; empty for a model."""
    sha256: str
    """Of all that decides its figures: training, sampling, evaluation."""
    model: str = field(default="", compare=False)
    """What is sampled in place of a run; nothing is trained then."""

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"


def _words(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UserError(f"{where}: wanted the words of a command, found {line!r} ({error})") from error


def read_study(file: Path) -> Study:
    """A study from its file, checked.

    Raises:
        UserError: The file, or what it says, is not a study.
    """
    study = make(Study, read_yaml(file), "study")
    study.check()
    return study


def cells_of(study: Study, file: Path) -> list[Cell]:
    """All cells in the order in which they run: blocks, in each block seed by seed.

    Args:
        study: What is varied.
        file: The study's, which `config` is relative to.

    Raises:
        UserError: No such config, or two variants that are one run.
    """
    base = read_yaml(file.parent / study.config)
    cells = [_cell(study, base, number, *chosen) for number, chosen in enumerate(_ordered(study))]
    known: dict[tuple[int, str], str] = {}
    for cell in cells:
        other = known.setdefault((cell.seed, cell.sha256), cell.variant)
        if other != cell.variant:
            raise UserError(
                f"study: {other} and {cell.variant} are one run, with the same "
                f"{'model' if cell.model else 'config'}; wanted others"
            )
    return cells


def _ordered(study: Study) -> list[tuple[str, int]]:
    first = {name for block in study.order for name in block}
    blocks: list[Sequence[str]] = [
        *study.order,
        [name for name in (*study.variants, *study.models) if name not in first],
    ]
    return list(dict.fromkeys((variant, seed) for block in blocks for seed in study.seeds for variant in block))


def _cell(study: Study, base: Mapping[str, Any], number: int, variant: str, seed: int) -> Cell:
    evaluators = {name: evaluator.identity() for name, evaluator in study.evaluators.items()}
    if variant in study.models:
        model = study.models[variant]
        return Cell(number, variant, seed, {}, canonical_sha256([model, study.sampling, evaluators]), model)
    values = applied(dict(base), in_turn(study.settings, study.variants[variant]))
    training = {key: seeded(value, seed) for key, value in values.items() if key != "run"} | {"seed": seed}
    return Cell(number, variant, seed, training, canonical_sha256([training, study.sampling, evaluators]))
