"""Settings and folder of a demo: its keys, what it may go on with, the duration of its stages."""

import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_shd.core import shipped_configs
from dit_shd.core.config import check_ranges, option, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.files import drop, write_text
from dit_shd.core.hashing import sha256
from dit_shd.core.json_files import read_object
from dit_shd.core.lock import LOCK, Lock
from dit_shd.core.pretrained import asset
from dit_shd.core.resumable import SETTINGS, differences, read_settings

PAGE, PICTURE, RESULTS, SECONDS = "report.html", "rows.png", "results.json", "seconds.json"
FILES = (SETTINGS, RESULTS, SECONDS, PAGE, PICTURE, "samples", "logs")
"""What every demo writes into its folder."""
OF_TEXT = {"out": "demo_text_out", "steps": 300, "images": 80, "sampling_steps": 10, "guidance": 5.0}
"""The defaults of the demo of text, where they are others."""


@dataclass(frozen=True)
class DemoConfig:
    """The demo. The defaults take 7 to 10 minutes on two CPU cores, with task=text 5."""

    task: Literal["digits", "text"] = option(
        "digits", "digits by class, or text: pictures of digits by captions, with the defaults in brackets"
    )
    out: Path = option(Path("demo_out"), "[demo_text_out] the folder for everything; run again, it goes on")
    steps: int = option(600, "[300] training steps; the digits' third student takes 3/2 as many", range=(1, 1e9))
    images: int = option(500, "[80] images sampled from each model", range=(10, 1e8))
    sampling_steps: int = option(50, "[10] steps of each image: of DDPM, or of the flow", range=(1, 1000))
    guidance: float = option(2.0, "[5] classifier-free guidance scale; 1 for none", range=(0, 1e6))
    guidance_schedule: Literal["power-cosine", "constant"] = option("constant", "of digits: constant, or MDT's ramp")
    seed: int = option(0, "of data, training and sampling", range=(0, 2**63 - 1))
    fresh: bool = option(False, "remove what an earlier demo left in `out` and start over")

    @classmethod
    def migrated(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values with the defaults of the demo that is asked for.

        Args:
            values: From the command line.

        Raises:
            UserError: A key that is of the other demo.
        """
        if values.get("task") != "text":
            return values
        if "guidance_schedule" in values:
            raise UserError("demo.guidance_schedule: is for task=digits; a pipeline's guidance is constant")
        return OF_TEXT | values

    def check(self) -> None:
        check_ranges(self, "demo.")


def student_config(name: str) -> Path:
    """A config that ships with dit_shd."""
    file = shipped_configs.find_shipped(name)
    if file is None:
        raise UserError(f"demo: {name}.yaml is missing from the installation; install dit_shd again")
    return file


def seconds(out: Path) -> dict[str, float]:
    """Stage -> its duration in seconds, over all calls."""
    return read_object(out / SECONDS) or {}


def sample_file(config: DemoConfig, name: str) -> Path:
    """The images of a model."""
    return config.out / "samples" / f"{name}.npz"


def images_of(config: DemoConfig, name: str) -> np.ndarray:
    """Those images, uint8 [n,y,x,c]."""
    with np.load(sample_file(config, name), allow_pickle=False) as file:
        return file["arr_0"]


def claim(config: DemoConfig, teacher: str, students: Mapping[str, Path], others: Sequence[str] = ()) -> Lock:
    """Make the folder, or continue in one that holds a demo of the same settings.

    Args:
        config: The settings.
        teacher: An asset.
        students: Name of a run folder -> its config.
        others: Files and folders that this demo writes, too.

    Returns:
        The lock of the folder, held.

    Raises:
        UserError: It holds other files, a demo of other settings or one that is at work, or it cannot be a folder.
    """
    out, settings = config.out, _settings(config, teacher, students)
    recorded = read_settings(out)
    holds_files = out.is_dir() and any(path.name != LOCK for path in out.iterdir())
    foreign = holds_files if recorded is None and out.is_dir() else out.exists() and not out.is_dir()
    if foreign or (recorded is not None and not {"task", "sampling_steps"} <= recorded.keys()):
        raise UserError(f"{out}: exists and is not a demo's folder; choose another out=FOLDER")
    if recorded is not None and recorded["task"] != config.task:
        raise UserError(f"{out}: holds the demo of task={recorded['task']}; choose another out=FOLDER")
    if not config.fresh and recorded not in (None, settings):
        raise UserError(
            f"{out}: holds a demo with other settings ({differences(recorded, settings)}); choose another out=FOLDER, "
            "or say fresh=true to start over there"
        )
    lock = Lock(out / LOCK, "dit-shd demo")
    if config.fresh:
        for path in [out / name for name in (*FILES, *students, *others) if name != SETTINGS]:
            if os.path.lexists(path):
                drop(path)
    write_text(out / SETTINGS, json.dumps(settings, indent=2))
    return lock


def _settings(config: DemoConfig, teacher: str, students: Mapping[str, Path]) -> dict[str, Any]:
    """Everything the figures depend on: the keys, the teacher's weights and the students' configs."""
    keys = {k: v for k, v in resolve(config).items() if k not in ("out", "fresh")}
    weights = next(asset(teacher.removeprefix("asset:")).glob("*.safetensors"))
    return keys | {name: f"sha256 {sha256(file)[:16]}" for name, file in {"teacher": weights, **students}.items()}


@contextmanager
def timed(out: Path, stage: str) -> Generator[None]:
    """Add the time of the block to the stage's in seconds.json."""
    start = time.perf_counter()
    try:
        yield
    finally:
        durations = seconds(out)
        durations[stage] = round(durations.get(stage, 0.0) + time.perf_counter() - start, 1)
        write_text(out / SECONDS, json.dumps(durations))
