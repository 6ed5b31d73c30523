"""The demo of text to image: the shipped pipeline's transformer cut to half of its blocks, and distilled.

digits with captions -> latents and embeddings -> the student's blocks cut out (cut/), distilled by output (output/),
by output and SHD (shd/) -> pictures of held-out prompts by all of them -> how many show what was asked -> report.html
"""

import json
import shlex
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from dit_shd.cli.child_processes import ChildProcess, run_jobs
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
from dit_shd.core.files import atomic_folder, write_text
from dit_shd.core.installation import require
from dit_shd.core.pretrained import asset
from dit_shd.core.yaml_files import read_yaml, words_of
from dit_shd.data.captioned_digits import SIDE, Canvas, captioned_digits, write_captioned, write_prompts
from dit_shd.data.latent_shards import INDEX
from dit_shd.data.pipeline_record import PipelineRecord, read_record
from dit_shd.diffusion.prompt_generation import read_prompts
from dit_shd.distillation.initialisation import depth
from dit_shd.evaluation.captioned_digits import Reading, gray, read_pictures
from dit_shd.models.loading import load
from dit_shd.models.students import smaller
from dit_shd.profiling.cost import Cost
from dit_shd.profiling.latency import cost
from dit_shd.reports.figures.rows import rows_picture
from dit_shd.reports.pictures_page import Pictures
from dit_shd.reports.tables import Row, figures_table, plain_table
from dit_shd.reports.text_demo_page import DISTANCE, RIGHT, TextDemo, TextScores, headline, write_text_demo_page
from dit_shd.tasks.text_to_image import TextToImage
from dit_shd.training.run_folder import RunFolder

PACKAGES = ("mlxtend", "transformers")
TEACHER = "asset:captioned_digits"
CONFIG = "captioned_digits"
"""Of the students."""
CUT = "cut"
LOSSES: dict[str, dict[str, Any]] = {"output": {"losses": [{"name": "output"}]}, "shd": {}}
"""Student -> what its run has in place of the config's."""
NAMES = {
    "teacher": "teacher",
    CUT: "half the blocks, untrained",
    "output": "half the blocks, output",
    "shd": "half the blocks, output + SHD",
}
"""Model -> its name on the page."""
LABELS = {"teacher": "teacher", CUT: "half its blocks,\nuntrained", "output": "output only", "shd": "output + SHD"}
"""Labels of the rows of PICTURE."""
TRAINING_IMAGES, REAL_IMAGES = 3000, 1000
"""Canvases that are encoded, and others that FD(digits) is measured against."""
SHARD, SAMPLE_BATCH = 500, 20
OTHERS = (CUT, "images", "latents", "prompts.txt")


def demo(config: DemoConfig) -> TextScores:
    """Encode, train, sample, read and write the page; finished stages of the same settings are reused.

    Args:
        config: The settings.

    Returns:
        The figures.

    Raises:
        UserError: `out` holds other files or a demo that is at work, or a stage failed.
    """
    config.check()
    require(PACKAGES, "demo", "the demo")
    with claim(config, TEACHER, dict.fromkeys(LOSSES, student_config(CONFIG)), OTHERS):
        return _all_stages(config)


def _all_stages(config: DemoConfig) -> TextScores:
    """The demo in its folder, which is locked."""
    print(
        f"Two students of half the teacher's blocks, {config.steps} training steps each; then {config.images} pictures "
        f"of each of the four models in {config.sampling_steps} steps. All files are written to {config.out}/"
    )
    canvases = prepare(config)
    trained = train(config.out, {name: training(config, name) for name in LOSSES})
    sampled = sample_models(config, trained)
    scores = _read(config, canvases, redo=sampled)
    page, picture = config.out / PAGE, config.out / PICTURE
    if trained or sampled or not (page.is_file() and picture.is_file()):
        done = finished(config, scores, canvases)
        picture.write_bytes(rows_picture({LABELS[name]: images_of(config, name) for name in NAMES}))
        write_text_demo_page(done, page)

    headings, cells, _ = figures_table(scores.rows)
    print("\n" + "\n".join(headline(scores)) + "\n\n" + plain_table(headings, cells) + "\n")
    print(f"{RIGHT}: share of {config.images} pictures, ± its standard error; one training seed")
    print("time: " + ", ".join(f"{stage} {taken:.0f} s" for stage, taken in seconds(config.out).items()))
    print(f"the page: {page}, a picture of a row each: {picture}")
    shd, prompt = shlex.quote(str(config.out / "shd")), '"two digits: four and seven"'
    print(f"next: dit-shd inspect {shd} prompt={prompt} out=words")
    return scores


def prepare(config: DemoConfig) -> list[Canvas]:
    """Make the pictures with captions, their latents and embeddings, the prompts and the untrained student.

    Args:
        config: The settings.

    Returns:
        What each prompt says.
    """
    out = config.out
    canvases = captioned_digits(config.images, "validation", config.seed + 1)[1]
    write_prompts(out / "prompts.txt", canvases)
    if not (out / CUT).is_dir():
        write_cut(config)
    if (out / "latents" / INDEX).is_file():
        print("encoding: finished before, reused")
        return canvases
    with timed(out, "encoding"):
        if not (out / "images").is_dir():
            write_captioned(out / "images", *captioned_digits(TRAINING_IMAGES, "train", config.seed))
        log, total = out / "logs" / "encode.log", TRAINING_IMAGES
        run_jobs([ChildProcess("encode", encode_arguments(config), log, total, "img", partial(_encoded, out))], "data")
    return canvases


def encode_arguments(config: DemoConfig) -> list[str]:
    """The words after `dit-shd` that encode the pictures and their captions."""
    keys = {"images": str(config.out / "images"), "pipeline": TEACHER, "out": str(config.out / "latents")}
    keys |= {"size": SIDE, "text_tokens": _pipeline().text_tokens, "shard_size": SHARD, "batch_size": 50, "workers": 2}
    return ["encode", *words_of(keys)]


def _encoded(out: Path) -> int:
    """Pictures in finished shards."""
    return min(TRAINING_IMAGES, SHARD * len([*(out / "latents").glob("*.safetensors")]))


def write_cut(config: DemoConfig) -> None:
    """Write the student as its training begins: the teacher's blocks at equal distances, and all else as it is."""
    teacher = load(TEACHER)
    changes = {k: v for k, v in read_yaml(student_config(CONFIG))["student"].items() if k != "like"}
    cls: Any = type(teacher)
    student = cls.from_config(smaller(dict(teacher.config), changes))
    depth.copy(student, teacher, depth.pairs(student, teacher, None))
    with atomic_folder((config.out / CUT).resolve()) as part:
        student.save_pretrained(part)
        _pipeline().write(part)


def training(config: DemoConfig, name: str) -> Training:
    """The training of a student."""
    run = config.out / name
    keys = {"run": str(run), "data.path": str(config.out / "latents"), "steps": config.steps, "seed": config.seed}
    keys |= {**LOSSES[name], "log_every": 5, "checkpoint_every": 50}
    return Training(NAMES[name], ["train", str(student_config(CONFIG)), *words_of(keys)], run, config.steps)


def sample_arguments(config: DemoConfig, name: str) -> list[str]:
    """The words after `dit-shd` that sample from a model."""
    place = TEACHER if name == "teacher" else str(config.out / name)
    keys = {"prompts": str(config.out / "prompts.txt"), "steps": config.sampling_steps, "guidance": config.guidance}
    keys |= {"seed": config.seed, "batch_size": SAMPLE_BATCH, "out": str(sample_file(config, name))}
    return ["sample", place, *words_of(keys)]


def sample_models(config: DemoConfig, trained: set[str]) -> bool:
    """Sample the models without finished samples; whether there were any."""
    samplings = {
        name: Sampling(sample_arguments(config, name), sample_file(config, name), config.images, SAMPLE_BATCH)
        for name in NAMES
    }
    prompts = read_prompts(config.out / "prompts.txt")
    current = {"prompts": prompts, "seed": config.seed, "count": config.images}
    missing = {name for name, each in samplings.items() if name in trained or not _records(each, current)}
    return sample(config.out, samplings, missing)


def finished(config: DemoConfig, scores: TextScores, canvases: list[Canvas]) -> TextDemo:
    """The data of the page."""
    models = []
    for name, title in NAMES.items():
        images = images_of(config, name)
        models.append(Pictures(title, images, read_pictures(gray(images), canvases).pictures))
    commands = {"encode": shlex.join(["dit-shd", *encode_arguments(config)])}
    commands |= {f"train, {NAMES[n]}": shlex.join(["dit-shd", *training(config, n).arguments]) for n in LOSSES}
    commands |= {f"sample, {NAMES[n]}": shlex.join(["dit-shd", *sample_arguments(config, n)]) for n in NAMES}
    return TextDemo(
        scores=scores,
        models=models,
        prompts=[canvas.caption for canvas in canvases],
        curves={NAMES[name]: RunFolder(config.out / name).metrics() for name in LOSSES},
        commands=commands,
        seconds=seconds(config.out),
        steps=config.steps,
        batch_size=read_yaml(student_config(CONFIG))["batch_size"],
        training_images=TRAINING_IMAGES,
        sampling_steps=config.sampling_steps,
        guidance=config.guidance,
    )


@cache
def _pipeline() -> PipelineRecord:
    """What is recorded of the shipped pipeline."""
    record = read_record(asset(TEACHER.removeprefix("asset:")))
    assert record is not None, "it ships with its record"
    return record


def _records(sampling: Sampling, current: dict[str, Any]) -> bool:
    recorded = sampling.recorded()
    return recorded is not None and all(recorded.get(key) == value for key, value in current.items())


def _read(config: DemoConfig, canvases: list[Canvas], redo: bool) -> TextScores:
    """Figures and costs of the models, from results.json if it is current."""
    file = config.out / RESULTS
    if file.is_file() and not redo:
        print("figures: computed before, reused")
        recorded = json.loads(file.read_text(encoding="utf-8"))
        rows = [Row(r["name"], Cost(**r["cost"]), r["figures"], r["spread"]) for r in recorded["rows"]]
        return TextScores(rows, recorded["real"], recorded["real_count"])
    with timed(config.out, "evaluation"):
        scores = _measure(config, canvases)
    write_text(file, json.dumps(asdict(scores), indent=2))
    return scores


def _measure(config: DemoConfig, canvases: list[Canvas]) -> TextScores:
    reference = read_pictures(*captioned_digits(REAL_IMAGES, "validation", config.seed + 2))
    real = read_pictures(*captioned_digits(config.images, "validation", config.seed + 1))
    record = _pipeline()
    task = TextToImage(text_tokens=2 * (record.text_tokens or 0))  # CLIP's tokens and T5's
    rows = []
    for name, title in NAMES.items():
        reading = read_pictures(gray(images_of(config, name)), canvases)
        model = load(TEACHER if name == "teacher" else str(config.out / name)).eval()
        rows.append(Row(title, cost(model, task), _figures(reading, reference), {RIGHT: reading.standard_error}))
    return TextScores(rows, _figures(real, reference), REAL_IMAGES)


def _figures(reading: Reading, reference: Reading) -> dict[str, float]:
    return {RIGHT: reading.share, DISTANCE: reading.distance(reference)}
