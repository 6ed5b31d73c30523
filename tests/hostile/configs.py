"""Configs: values, YAML text, names of plug-ins, run folders."""

import random
import sys
from functools import cache
from pathlib import Path

import torch
import yaml
from diffusers.configuration_utils import FrozenDict

from dit_shd.core.config import make
from dit_shd.core.yaml_files import dump, override, read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import sample
from dit_shd.distillation.losses import LOSSES
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.metrics import METRICS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks import TASKS
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig, resolved
from dit_shd.training.run_folder import RunFolder

from . import PWNED, Class
from .damage import WEIRD, bent_bytes, bent_values

CONFIGS = Path(__file__).parents[2] / "configs"
TAGS = [
    f"run: !!python/object/apply:os.system ['touch {PWNED}']",
    f"run: !!python/object/apply:builtins.open ['{PWNED}', 'w']",
    "run: !!python/name:os.system",
    "a: &a [x,x,x,x]\n" + "\n".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefg", "bcdefgh")),
    "[" * 3000,
    "? {a: 1}\n: 2",
    "run: 1\nrun: 2",
    "\ttabs: 1",
    "steps: 0x7fffffffffffffffffff",
    "2001-01-01: 3",
]  # fmt: skip


@cache
def whole() -> tuple[dict, ...]:
    return tuple(read_yaml(file) for file in sorted(CONFIGS.glob("digits*.yaml")))


def settled(values: object) -> TrainConfig:
    """All that is checked before data or a model is there."""
    config = make(TrainConfig, values)  # type: ignore[arg-type]
    checks.ranges(config)
    losses, task = [LOSSES.build(plugin) for plugin in config.losses], TASKS.build(config.task, "task")
    checks.teaching(config, losses)
    checks.passes(task, losses)
    task.check_evaluation(torch.nn.Identity(), None)
    return resolved(config)


def bent_train(draw: random.Random, folder: Path) -> object:
    values = draw.choice(whole())
    for _ in range(draw.choice([1, 1, 2, 5])):
        values = bent_values(draw, values)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return settled(read_yaml(folder / "config.yaml"))


def bent_text(draw: random.Random, folder: Path) -> object:
    text = (CONFIGS / "digits_shd.yaml").read_bytes()
    data = draw.choice(TAGS).encode() if draw.random() < 0.4 else bent_bytes(draw, text)
    (folder / "config.yaml").write_bytes(data)
    return settled(read_yaml(folder / "config.yaml"))


def assignments(draw: random.Random, folder: Path) -> object:
    keys = [
        "steps",
        "optimizer.lr",
        "losses",
        "losses.0.weight",
        "task.mask_ratio",
        "mask_ratio",
        "student.name",
        "data",
        "",
        ".",
        "a.b.c",
        "run",
        "=",
        "x=y",
    ]
    given = [f"{draw.choice(keys)}={draw.choice(WEIRD)}" for _ in range(draw.choice([1, 2, 6]))]
    cls = draw.choice([TrainConfig, SampleConfig, EvaluateConfig])
    found = make(cls, override(dict(whole()[0]) if cls is TrainConfig else {}, given))
    return found.check() if isinstance(found, SampleConfig) else found


def solver(draw: random.Random, folder: Path) -> object:
    """Sampling settings that have no meaning, or only just: what is accepted gives finite images."""
    length = draw.choice([0, 1, 19, 20, 21, 22, 100, 10**7])
    given = {
        "solver": draw.choice(["ddpm", "ddim", "dpm++"]),
        "diffusion_steps": length,
        "steps": draw.choice([-1, 0, 1, 2, length - 1, length, length + 1]),
        "guidance": draw.choice([0, 1, 4, -3, 1e30]),
        "guidance_power": draw.choice([0, 4, 1e-300, 1e300, -1, -1e300]),
    }
    model = torch.nn.Linear(1, 1)
    model.config = FrozenDict(num_classes=2, in_channels=1, sample_size=2)
    model.forward = lambda x, t, class_labels, return_dict: (x * 0.9 + class_labels.view(-1, 1, 1, 1) * 0.01,)
    return sample(model, 1, **given)


def plug_in(draw: random.Random, folder: Path) -> object:
    """A name out of a config must not import a file that lies in the way."""
    (folder / "evil.py").write_text(f"open({PWNED!r}, 'w')\nclass Evil: pass\n")
    sys.path.insert(0, str(folder))
    try:
        name = draw.choice(
            ["evil.Evil", "evil", "../evil", "evil.", ".evil", "os.system", "x" * 5000, "evil:Evil", "__init__"]
        )
        return draw.choice([DATASETS, FAMILIES, FEATURES, LOSSES, METRICS, TASKS]).find(name)
    finally:
        sys.path.remove(str(folder))
        assert "evil" not in sys.modules


def run_folder(draw: random.Random, folder: Path) -> object:
    """A folder that holds something else, or a run whose files are damaged."""
    config = settled(dict(whole()[0]) | {"run": str(folder / "run")})
    run = RunFolder.open(config.run, dump(config))
    damaged = draw.choice(["config.yaml", "metrics.jsonl", "calibration.json"])
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n' * 3)
    (run.path / "calibration.json").write_text('{"losses": {}}')
    (run.path / damaged).write_bytes(bent_bytes(draw, (run.path / damaged).read_bytes()))
    reopened = RunFolder.open(config.run, dump(config))
    reopened.forget_after(draw.choice([0, 1, 5]))
    return reopened.load(), reopened.metrics()


CLASSES = [
    Class("train configs", "values of a config replaced, dropped, renamed; the loader and its checks", 80, bent_train),
    Class("YAML text", "damaged text, Python tags, aliases that multiply, deep nesting; the loader", 40, bent_text),
    Class("assignments", "key=value with odd keys and values; train, sample, evaluate", 40, assignments),
    Class("solvers", "schedules, steps and guidance that have no meaning; sampling", 60, solver),
    Class(
        "plug-in names", "dotted, relative and endless names beside a file that would run; the registry", 20, plug_in
    ),
    Class("run folders", "damaged config.yaml, metrics.jsonl, calibration.json; resuming", 30, run_folder),
]
