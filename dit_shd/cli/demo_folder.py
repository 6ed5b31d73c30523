"""Settings and folder of a demo: its files, its commands, the duration of its stages."""

import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from dit_shd.core import shipped_configs
from dit_shd.core.config import option, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.hashing import sha256
from dit_shd.core.resumable import SETTINGS, differences, read_settings
from dit_shd.core.yaml_files import read_yaml

TEACHER = "asset:digits_teacher"
STUDENTS = {
    "output": "student, output only",
    "shd": "student, output + SHD",
    "from_teacher": "student from the teacher's weights, output + SHD",
}
"""Run folder (and config digits_<name>.yaml) -> name on the page."""
SHORT = {"output": "output only", "shd": "output + SHD", "from_teacher": "teacher's weights, output + SHD"}
NAMES = {"teacher": "teacher", **STUDENTS}
LABELS = {
    "teacher": "teacher",
    "output": "student\noutput only",
    "shd": "student\noutput + SHD",
    "from_teacher": "student\nteacher's weights,\noutput + SHD",
}
"""Labels of the rows of PICTURE."""
PICTURE = "rows.png"
SAMPLE_BATCH = 50
FILES = (SETTINGS, "results.json", "seconds.json", "report.html", PICTURE, "samples", "logs", *STUDENTS)
"""What a demo writes into its folder."""


@dataclass(frozen=True)
class DemoConfig:
    """The demo. The defaults take 7 to 10 minutes on two CPU cores."""

    out: Path = option(Path("demo_out"), "the folder for everything; run again, it goes on where it stopped")
    steps: int = option(600, "training steps of the students from random weights; the third takes 3/2 as many")
    images: int = option(500, "images sampled from each model")
    sampling_steps: int = option(50, "DDPM steps of each image")
    guidance: float = option(2.0, "classifier-free guidance scale; 1 for none")
    guidance_schedule: Literal["power-cosine", "constant"] = option("constant", "constant, or MDT's ramp")
    seed: int = option(0, "of training and sampling")
    fresh: bool = option(False, "remove what an earlier demo left in `out` and start over")

    def check(self) -> None:
        for key, low, high in (("steps", 1, None), ("images", 10, None), ("sampling_steps", 1, 1000)):
            value = getattr(self, key)
            if value < low or (high is not None and value > high):
                wanted = f"{low} or more" if high is None else f"{low} to {high}"
                raise UserError(f"demo.{key}: wanted {wanted}, found {value}")


def student_config(name: str) -> Path:
    """The config digits_<name>.yaml that ships with dit_shd."""
    file = shipped_configs.find_shipped(f"digits_{name}")
    if file is None:
        raise UserError(f"demo: digits_{name}.yaml is missing from the installation; install dit_shd again")
    return file


def seconds(out: Path) -> dict[str, float]:
    """Stage -> its duration in seconds, over all calls."""
    file = out / "seconds.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def sample_file(config: DemoConfig, name: str) -> Path:
    """The images of a model."""
    return config.out / "samples" / f"{name}.npz"


def model_source(config: DemoConfig, name: str) -> str:
    """The run folder or asset of a model."""
    return TEACHER if name == "teacher" else str(config.out / name)


def steps_of(config: DemoConfig, name: str) -> int:
    """The training steps of a student: one without a masked pass takes half as many again in the same time."""
    masked = read_yaml(student_config(name)).get("task", {}).get("mask_ratio", True) is not None
    return config.steps if masked else config.steps * 3 // 2


def train_arguments(config: DemoConfig, name: str) -> list[str]:
    """The words after `dit-shd` that train a student."""
    keys = {"run": str(config.out / name), "steps": steps_of(config, name), "seed": config.seed}
    keys |= {"log_every": 5, "checkpoint_every": 100}
    return ["train", str(student_config(name)), *(_assign(k, v) for k, v in keys.items())]


def sample_arguments(config: DemoConfig, name: str) -> list[str]:
    """The words after `dit-shd` that sample from a model."""
    keys = [_assign(key, value) for key, value in sample_keys(config, name).items()]
    return ["sample", model_source(config, name), *keys]


def _assign(key: str, value: object) -> str:
    """key=value for the command line: plain text if YAML reads the same value from it."""
    text = str(value)
    return f"{key}={text if yaml.safe_load(text) == value else json.dumps(value)}"


def sample_keys(config: DemoConfig, name: str) -> dict[str, Any]:
    """The settings with which a model is sampled."""
    return {
        "count": config.images,
        "steps": config.sampling_steps,
        "guidance": config.guidance,
        "guidance_schedule": config.guidance_schedule,
        "labels": "balanced",
        "seed": config.seed,
        "batch_size": SAMPLE_BATCH,
        "out": str(sample_file(config, name)),
    }


def claim(config: DemoConfig) -> None:
    """Make the folder, or continue in one that holds a demo of the same settings.

    Raises:
        UserError: It holds other files, or a demo of other settings.
    """
    out, settings = config.out, _settings(config)
    recorded = read_settings(out)
    foreign = any(out.iterdir()) if out.is_dir() and recorded is None else out.is_file()
    if foreign or (recorded is not None and recorded.keys() != settings.keys()):
        raise UserError(f"{out}: exists and is not a demo's folder; choose another out=FOLDER")
    if config.fresh:
        for name in FILES:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif recorded not in (None, settings):
        raise UserError(
            f"{out}: holds a demo with other settings ({differences(recorded, settings)}); choose another out=FOLDER, "
            "or say fresh=true to start over there"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / SETTINGS, json.dumps(settings, indent=2))


def _settings(config: DemoConfig) -> dict[str, Any]:
    """Everything the figures depend on: the keys, the teacher's weights and the students' configs."""
    keys = {k: v for k, v in resolve(config).items() if k not in ("out", "fresh")}
    weights = Path(str(resources.files("dit_shd"))) / "assets" / TEACHER.removeprefix("asset:")
    files = {"teacher": next(weights.glob("*.safetensors"))} | {name: student_config(name) for name in STUDENTS}
    return keys | {name: f"sha256 {sha256(file)[:16]}" for name, file in files.items()}


@contextmanager
def timed(out: Path, stage: str) -> Generator[None]:
    """Add the time of the block to the stage's in seconds.json."""
    start = time.perf_counter()
    try:
        yield
    finally:
        durations = seconds(out)
        durations[stage] = round(durations.get(stage, 0.0) + time.perf_counter() - start, 1)
        write_text(out / "seconds.json", json.dumps(durations))
