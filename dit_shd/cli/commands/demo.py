"""The whole main job on real digits: distil two students, sample, evaluate, write report.html.

    the teacher that ships with the package -> two students, with and without SHD -> images of all three
    -> FD(digits), IS, precision, recall -> one page, report.html

The folder it leaves (everything in it is of the usual kind, so all other commands work on it):

    settings.json  what was asked for              output/, shd/   the run folders of the students
    results.json   the figures                     samples/        images of the three models
    seconds.json   how long each stage took        logs/           what the child processes printed
"""

import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from dit_shd.cli.child_processes import Job, run_jobs
from dit_shd.cli.commands import Command
from dit_shd.core.config import make, option, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets.digits import Digits
from dit_shd.data.image_sets import ArrayImages
from dit_shd.data.image_shards import shard_files
from dit_shd.diffusion.generation import settings
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import Digits as DigitsFeatures
from dit_shd.evaluation.scoring import score
from dit_shd.models import loading
from dit_shd.models.loading import load
from dit_shd.profiling.latency import Cost, cost
from dit_shd.reports.demo_page import Demo, Scores, write_demo_page
from dit_shd.reports.figures.style import require_matplotlib
from dit_shd.reports.tables import Row, figures_table, plain_table
from dit_shd.training.run_folder import RunFolder

TEACHER = "asset:digits_teacher"
STUDENTS = {"output": "student, output only", "shd": "student, output + SHD"}
"""Run folder (and config digits_<name>.yaml) -> what the page calls it."""
SHORT = {"output": "output only", "shd": "output + SHD"}
NAMES = {"teacher": "teacher", **STUDENTS}
SAMPLE_BATCH = 50
OWN = ("settings.json", "results.json", "seconds.json", "report.html", "samples", "logs", *STUDENTS)


@dataclass(frozen=True)
class DemoConfig:
    """The demo. The defaults take 5 to 8 minutes on two CPU cores."""

    out: Path = option(Path("demo_out"), "the folder for everything; run again, it goes on where it stopped")
    steps: int = option(600, "training steps of each student")
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


class RunDemo(Command[DemoConfig]):
    """The whole main job on real digits."""

    config = DemoConfig

    def run(self, config: DemoConfig) -> None:
        demo(config)


def demo(config: DemoConfig) -> Scores:
    """Train, sample, evaluate and write the page; finished stages of the same settings are reused.

    Raises:
        UserError: `out` holds something else, or a stage failed.
    """
    config.check()
    require_matplotlib()
    _claim(config)
    print(
        f"Two students, {config.steps} training steps each, side by side; then {config.images} images of "
        f"each of the three models in {config.sampling_steps} steps; then the figures. All of it goes to "
        f"{config.out}/"
    )
    trained = _train(config)
    sampled = _sample(config, trained)
    scores = _evaluate(config, redo=sampled)
    page = config.out / "report.html"
    if trained or sampled or not page.is_file():
        write_demo_page(finished(config, scores), page)

    headings, cells, _ = figures_table(scores.rows)
    print("\n" + plain_table(headings, cells) + "\n")
    print(f"{config.images} images of each model in {config.sampling_steps} steps; {config.steps} training steps")
    print("time: " + ", ".join(f"{stage} {taken:.0f} s" for stage, taken in seconds(config.out).items()))
    print(f"the page: {page}")
    return scores


def finished(config: DemoConfig, scores: Scores) -> Demo:
    """All that the page is made of."""
    images = {}
    for name in NAMES:
        with np.load(sample_file(config, name), allow_pickle=False) as file:
            images[name] = file["arr_0"]
    commands = {f"train, {SHORT[n]}": shlex.join(["dit-shd", *train_arguments(config, n)]) for n in STUDENTS}
    commands |= {f"sample, {n}": shlex.join(["dit-shd", *sample_arguments(config, n)]) for n in NAMES}
    return Demo(
        scores=scores,
        titles=NAMES,
        teacher=load(TEACHER).eval(),
        students={SHORT[n]: load(model_source(config, n)).eval() for n in STUDENTS},
        images=images,
        curves={SHORT[n]: RunFolder(config.out / n).metrics() for n in STUDENTS},
        commands=commands,
        seconds=seconds(config.out),
        steps=config.steps,
        batch_size=read_yaml(student_config("shd"))["batch_size"],
        sampling_steps=config.sampling_steps,
        guidance=config.guidance,
        guidance_schedule=config.guidance_schedule,
        seed=config.seed,
    )


def student_config(name: str) -> Path:
    """configs/digits_<name>.yaml: among the assets of an installed package, in configs/ of a source tree."""
    package = Path(str(resources.files("dit_shd")))
    file = f"digits_{name}.yaml"
    for path in (package / "assets" / file, package.parent / "configs" / file):
        if path.is_file():
            return path
    raise UserError(f"demo: {file} is missing from the installation; install dit_shd again")


def seconds(out: Path) -> dict[str, float]:
    """How long each stage took, all calls together."""
    file = out / "seconds.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def sample_file(config: DemoConfig, name: str) -> Path:
    return config.out / "samples" / f"{name}.npz"


def model_source(config: DemoConfig, name: str) -> str:
    return TEACHER if name == "teacher" else str(config.out / name)


def train_arguments(config: DemoConfig, name: str) -> list[str]:
    """The command that trains a student: what `dit-shd` gets."""
    keys = {"run": str(config.out / name), "steps": config.steps, "seed": config.seed}
    keys |= {"log_every": 5, "checkpoint_every": 100}
    return ["train", str(student_config(name)), *(_assign(k, v) for k, v in keys.items())]


def sample_arguments(config: DemoConfig, name: str) -> list[str]:
    """The command that samples from a model."""
    keys = [_assign(key, value) for key, value in _sample_keys(config, name).items()]
    return ["sample", model_source(config, name), *keys]


def _assign(key: str, value: Any) -> str:
    """key=value as the command line reads it: the text as it is where YAML gives the same value back."""
    text = str(value)
    return f"{key}={text if yaml.safe_load(text) == value else json.dumps(value)}"


def _sample_keys(config: DemoConfig, name: str) -> dict[str, Any]:
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


def _claim(config: DemoConfig) -> None:
    """Make the folder, or go on with the one that holds a demo of the same settings."""
    out, file = config.out, config.out / "settings.json"
    new = _settings(config)
    old = _read_settings(file)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and old.keys() != new.keys())):
        raise UserError(f"{out}: exists and is not a demo's folder; choose another out=FOLDER")
    if config.fresh and file.is_file():
        for name in OWN:
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        old = {}
    if old:
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        if changed:
            shown = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:3])
            raise UserError(
                f"{out}: holds a demo with other settings ({shown}); choose another out=FOLDER, "
                "or say fresh=true to start over there"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(new, indent=2))


def _read_settings(file: Path) -> dict[str, Any]:
    """What an earlier demo asked for; nothing where there is none to be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _settings(config: DemoConfig) -> dict[str, Any]:
    """Everything the figures depend on: the keys, the teacher's weights and the students' configs."""
    keys = {k: v for k, v in resolve(config).items() if k not in ("out", "fresh")}
    weights = Path(str(resources.files("dit_shd"))) / "assets" / TEACHER.removeprefix("asset:")
    files = {"teacher": next(weights.glob("*.safetensors"))} | {name: student_config(name) for name in STUDENTS}
    return keys | {name: f"sha256 {hashlib.sha256(f.read_bytes()).hexdigest()[:16]}" for name, f in files.items()}


def _train(config: DemoConfig) -> set[str]:
    """Train the students that are not finished; their names."""
    jobs = []
    for name in STUDENTS:
        run = config.out / name
        finished = run / "checkpoints" / f"step_{config.steps:08d}"
        if not (finished.is_dir() and (run / "student").is_dir()):
            arguments = train_arguments(config, name)
            log = config.out / "logs" / f"train_{name}.log"
            jobs.append(Job(f"{name} student", arguments, log, config.steps, "step", lambda run=run: _last_step(run)))
    if not jobs:
        print("training: done before, reused")
        return set()
    with _timed(config.out, "training"):
        run_jobs(jobs, "training")
    return {name for name in STUDENTS if any(job.name.startswith(name) for job in jobs)}


def _last_step(run: Path) -> int:
    try:
        return int(RunFolder(run).metrics()[-1]["step"])
    except (OSError, ValueError, LookupError):
        return 0  # nothing yet, or half a line


def _sample(config: DemoConfig, trained: set[str]) -> bool:
    """Sample what is not there yet, the big teacher first; whether anything was done."""
    jobs = []
    for name in NAMES:
        if name in trained or not _sampled(config, name):
            arguments = [*sample_arguments(config, name), "force=true"]
            log = config.out / "logs" / f"sample_{name}.log"
            jobs.append(Job(name, arguments, log, config.images, "img", lambda name=name: _images_done(config, name)))
    if not jobs:
        print("sampling: done before, reused")
        return False
    with _timed(config.out, "sampling"):
        run_jobs(jobs, "sampling")
    return True


def _sampled(config: DemoConfig, name: str) -> bool:
    """Whether the npz is there with exactly these settings beside it (the folder may have been moved)."""

    file = sample_file(config, name)
    beside = file.with_suffix(".json")
    if not (file.is_file() and beside.is_file()):
        return False
    wanted = settings(make(SampleConfig, {**_sample_keys(config, name), "run": ""}, "sample"))
    told = json.loads(beside.read_text(encoding="utf-8"))
    return {**{k: v for k, v in told.items() if not k.endswith("_sha256")}, "run": ""} == wanted


def _images_done(config: DemoConfig, name: str) -> int:

    file = sample_file(config, name)
    parts = file.with_name(file.name + ".parts")
    if parts.is_dir():
        return SAMPLE_BATCH * len(shard_files(parts))
    return config.images if file.is_file() else 0


def _evaluate(config: DemoConfig, redo: bool) -> Scores:
    """Figures and costs of the three models, from results.json where they are known."""
    file = config.out / "results.json"
    if file.is_file() and not redo:
        print("figures: done before, reused")
        known = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row(r["name"], Cost(**r["cost"]), r["figures"]) for r in known["rows"]]
        return Scores(rows, known["real"], known["real_count"], known["reference_count"])
    with _timed(config.out, "evaluation"):
        scores = _measure(config)
    write_text(file, json.dumps(asdict(scores), indent=2))
    return scores


def _measure(config: DemoConfig) -> Scores:

    network = DigitsFeatures()
    training, held_out = Digits("train").images(), Digits("validation").images()
    reference = extract_features(network, ArrayImages(training, "the training digits"))
    rows = []
    for name, title in NAMES.items():
        with np.load(sample_file(config, name), allow_pickle=False) as file:
            figures = score(file["arr_0"], reference, network)
        model: Any = loading.load(model_source(config, name)).eval()
        rows.append(Row(title, cost(model), figures))
    real = score(held_out, reference, network)
    return Scores(rows, real, len(held_out), len(training))


@contextmanager
def _timed(out: Path, stage: str) -> Iterator[None]:
    """Add the time of the block to the stage's in seconds.json."""
    start = time.perf_counter()
    try:
        yield
    finally:
        taken = seconds(out)
        taken[stage] = round(taken.get(stage, 0.0) + time.perf_counter() - start, 1)
        write_text(out / "seconds.json", json.dumps(taken))
