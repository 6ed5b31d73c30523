"""Small real pages of every kind, for tests in a browser: page -> its file."""

import json
from pathlib import Path

import numpy as np
import torch
from language import GPT2, causal_lm, lines

from dit_shd.analysis.inspect import InspectConfig
from dit_shd.cli.commands.compare import CompareConfig, compare
from dit_shd.cli.commands.inspect import inspect_to_folder
from dit_shd.cli.commands.pictures import PicturesConfig, show_pictures
from dit_shd.cli.commands.plot import PlotConfig, plot
from dit_shd.core.config import make
from dit_shd.data.captioned_digits import captioned_digits
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.models.families.mdt import MDTv2
from dit_shd.models.loading import load
from dit_shd.profiling.cost import Cost
from dit_shd.profiling.latency import cost
from dit_shd.reports.demo_page import Demo, Scores, write_demo_page
from dit_shd.reports.evaluation_page import write_evaluation_page
from dit_shd.reports.pictures_page import Pictures
from dit_shd.reports.study_page import write_study_page
from dit_shd.reports.tables import Row
from dit_shd.reports.text_demo_page import TextDemo, TextScores, write_text_demo_page
from dit_shd.study.evidence import read_evidence
from dit_shd.study.report import report_of
from dit_shd.tasks.diffusion import Diffusion

TEACHER = "asset:digits_teacher"
NAMES = {"teacher": "teacher", "output": "student, output only", "shd": "student, output + SHD"}


def make_pages(folder: Path, root: Path) -> dict[str, Path]:
    """Every page that dit_shd writes.

    Args:
        folder: for them and their files.
        root: of the repository, whose studies are read.
    """
    pages = {"inspect": _inspect(folder), "text": _text(folder), "prompt": _prompt(folder)}
    pages |= {"study": _study(folder, root), "plot": _plot(folder)}
    pages |= {"pictures": _pictures(folder), "text_demo": _text_demo(folder)}
    return pages | _evaluations(folder) | {"demo": _demo(folder)}


def _inspect(folder: Path) -> Path:
    config = {"model": TEACHER, "samples": 2, "timesteps": [100, 500, 900], "out": str(folder / "inspect")}
    return inspect_to_folder(make(InspectConfig, config)) / "index.html"


def _text(folder: Path) -> Path:
    """Of a tiny language model over its own text."""
    model = folder / "language_model"
    causal_lm(GPT2).save_pretrained(model / "student")
    data = {"name": "text", "path": lines(folder), "document": "line", "length": 24, "tokenizer": "bytes"}
    (model / "config.yaml").write_text(json.dumps({"data": data, "task": "language_modeling"}))
    config = {"model": str(model), "samples": 4, "out": str(folder / "inspect_text")}
    return inspect_to_folder(make(InspectConfig, config)) / "index.html"


def _prompt(folder: Path) -> Path:
    call = {"num_inference_steps": 4, "guidance_scale": 5}
    config = {"model": "asset:captioned_digits", "prompt": "two digits: four and seven", "call": call}
    return inspect_to_folder(make(InspectConfig, {**config, "out": str(folder / "prompt")})) / "index.html"


def _pictures(folder: Path) -> Path:
    """Of real canvases, and of their negatives as those of a second model."""
    images, canvases = captioned_digits(12, "validation", 0)
    (folder / "drawn").mkdir()
    files = []
    for name, shown in (("teacher", images), ("a student with a long name", 255 - images)):
        files.append(folder / "drawn" / f"{name}.npz")
        np.savez(files[-1], np.repeat(shown[..., None], 3, axis=-1), np.arange(12))
        record = {"prompts": [canvas.caption for canvas in canvases], "seed": len(files), "run": name}
        files[-1].with_suffix(".json").write_text(json.dumps({**record, "call": {"num_inference_steps": 20}}))
    config = {"samples": [*map(str, files)], "out": str(folder / "pictures.html")}
    return show_pictures(make(PicturesConfig, config))


def _text_demo(folder: Path) -> Path:
    """Of real canvases, some of them spoiled."""
    images, canvases = captioned_digits(24, "validation", 0)
    names = "teacher", "half the blocks, untrained", "half the blocks, output", "half the blocks, output + SHD"
    rows, models = [], []
    for number, name in enumerate(names):
        right = np.arange(24) % 4 >= number
        shown = np.where(right[:, None, None], images, images.transpose(0, 2, 1))[..., None]
        models.append(Pictures(name, np.repeat(shown, 3, axis=-1), right))
        figures = {"as asked": float(right.mean()), "FD(digits)": 5.0 + number}
        rows.append(
            Row(name, Cost(8, 3_470_000 >> number, 10**9 >> number, 4.0 / (1 + number)), figures, {"as asked": 0.05})
        )
    curves = {
        name: [{"step": s, "plain/velocity": 1 / s, "plain/output": 2 / s} for s in range(5, 100, 5)]
        for name in names[2:]
    }
    demo = TextDemo(
        scores=TextScores(rows, {"as asked": 0.97, "FD(digits)": 0.8}, 1000),
        models=models,
        prompts=[canvas.caption for canvas in canvases],
        curves=curves,
        commands={"train": "dit-shd train captioned_digits run=demo_text_out/shd steps=300 seed=0"},
        seconds={"training": 100.0},
        steps=300,
        batch_size=16,
        training_images=3000,
        sampling_steps=10,
        guidance=5.0,
    )
    write_text_demo_page(demo, folder / "text_demo.html")
    return folder / "text_demo.html"


def _study(folder: Path, root: Path) -> Path:
    (evidence, *_) = read_evidence(root / "experiments")
    (folder / "samples").mkdir()
    report = report_of(evidence.progress, evidence.analysis, folder / "samples", lambda _: folder / "nowhere")
    write_study_page(report, folder / "study.html")
    return folder / "study.html"


def _plot(folder: Path) -> Path:
    """Of two runs' logs of the real columns: the shipped teacher's, and one with terms by layer and merge."""
    runs = []
    for name, shift in (("a", 0.0), ("b", 0.3)):
        run = folder / f"run_{name}"
        run.mkdir()
        (run / "config.yaml").write_text("steps: 500\n")
        rows = []
        for step in range(5, 405, 5):
            fall = 0.1 + (1 + shift) * 0.99**step
            row = {"step": step, "loss": 2 * fall, "plain/noise": fall, "plain/shd": 3 * fall, "grad_norm": 1.0}
            for layer in ("en_inblocks.0.attn", "de_blocks.0.attn"):
                row |= {f"plain/shd/kl/{layer}": fall, f"plain/shd/alpha/{layer}": 0.45}
                row |= {f"plain/shd/alpha/{layer}/0|1": 0.2, f"plain/shd/alpha/{layer}/2|3": 0.7}
            rows.append(row)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 405, "lo')
        (run / "timing.jsonl").write_text(json.dumps({"step": 400, "seconds": 0.5, "images_per_second": 64.0}) + "\n")
        runs.append(str(run))
    return plot(make(PlotConfig, {"runs": runs, "out": str(folder / "plot.html")}))


def _evaluations(folder: Path) -> dict[str, Path]:
    """Of real digits, some of them inverted, against others."""
    data = DigitsDataset("validation")
    images, labels = data.images(), data.labels()
    np.savez(folder / "reference.npz", images[1::2])
    images, labels = images[::2], labels[::2]
    results = []
    for name, wrong in (("teacher", 0), ("student", 30)):
        shown = images[:200].copy()
        shown[:wrong] = 255 - shown[:wrong]
        np.savez(folder / f"{name}.npz", shown, labels[:200])
        results.append(str(folder / f"{name}.json"))
        values = {"samples": str(folder / f"{name}.npz"), "reference": str(folder / "reference.npz")}
        config = make(EvaluateConfig, {**values, "features": "digits", "device": "cpu", "out": results[-1]})
        evaluate(config, say=lambda _: None, write_page=write_evaluation_page)
    compare(make(CompareConfig, {"results": results, "out": str(folder / "compare.html")}))
    return {"evaluation": folder / "student.html", "comparison": folder / "compare.html"}


def _demo(folder: Path) -> Path:
    """Of the shipped teacher and two students of random weights."""
    torch.manual_seed(0)
    teacher = load(TEACHER).eval()
    options = {k: v for k, v in teacher.config.items() if not k.startswith("_")}
    students = {}
    for name in ("output only", "output + SHD"):
        students[name] = MDTv2(**{**options, "num_attention_heads": 2}).eval()
        for parameter in students[name].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    images = DigitsDataset("validation").images()[:80]
    costs = [cost(model, Diffusion(mask_ratio=None), repeats=1) for model in (teacher, *students.values())]
    figures = (
        {"FD(digits)": 5.0, "precision": 0.6},
        {"FD(digits)": 27.4, "precision": 0.2},
        {"FD(digits)": 18.6, "precision": 0.3},
    )
    rows = [Row(title, c, f) for title, c, f in zip(NAMES.values(), costs, figures)]
    curves = {
        name: [{"step": s, "plain/noise": 1 / s, "plain/output": 2 / s} for s in range(5, 100, 5)] for name in students
    }
    demo = Demo(
        scores=Scores(rows, {"FD(digits)": 0.8, "precision": 0.7}, 500, 4500),
        titles=NAMES,
        teacher=teacher,
        students=students,
        images=dict.fromkeys(NAMES, images),
        curves=curves,
        commands={"train": "dit-shd train configs/digits_shd.yaml run=demo_out/shd steps=600 seed=0"},
        seconds={"training": 100.0},
        steps=dict.fromkeys(students, 600) | {list(students)[-1]: 900},
        batch_size=32,
        sampling_steps=50,
        guidance=2.0,
        guidance_schedule="constant",
        seed=0,
    )
    page = folder / "report.html"
    write_demo_page(demo, page)
    return page
