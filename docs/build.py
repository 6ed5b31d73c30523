"""Make the pages that are made from code: `make docs`, or python docs/build.py [PAGE].

- pictures/ of concepts.md by looking at the teacher that ships with dit_shd (only when named);
- evidence.md from the rows of experiments/*/results.jsonl, and the table between two comments in classification.md and
  language.md, which are written by hand otherwise;
- losses.md from the losses themselves, counted for MDTv2-B/2 -> S/2;
- use-it-in-your-trainer.md from the scripts in examples/;
- text-to-image.md with the table of adapters (dit_shd/diffusion/adapters);
- reliability.md by trying every class of hostile input (tests/hostile);
- supported-models.md by trying capture() on a tiny random model of every transformer class of the installed diffusers
  (their sizes are those of the tests, tests/zoo), and from the table of other classes and patterns that
  tests/clients tries.

The reference of commands and configs is made for the site alone (docs/reference.py), so that it is never out of date.
"""

import importlib
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def template(page: str) -> str:
    return (DOCS / "templates" / f"{page}.md").read_text()


def trainer_page() -> str:
    """Use it in your trainer."""
    quoted = {}
    for name in ("sd3", "deit"):
        lines = (ROOT / "examples" / f"distil_{name}.py").read_text()
        quoted[name] = f"```python\n{lines}```\n"
    table = (DOCS / "supported-models.md").read_text()
    counted = re.search(r"(\d+) classes work, (\d+) are refused", table)
    assert counted is not None
    supported, refused = map(int, counted.groups())
    counts = {"supported": supported, "tried": supported + refused, **client_counts()}
    return template("use-it-in-your-trainer").format(**quoted, **counts)


def evidence_page() -> str:
    """What the studies of experiments/ have shown."""
    from dit_shd.study.evidence import claims_summary, read_evidence, study_text

    studies = read_evidence(ROOT / "experiments")
    rows = {(row.sha256, row.finished): row for study in studies for row in study.analysis.rows}  # two may share some
    hours = sum(row.cpu_hours for row in rows.values())
    texts = "\n\n".join(study_text(study, ROOT) for study in studies)
    return template("evidence").format(claims=claims_summary(studies), studies=texts, hours=f"{hours:.1f}")


FIGURES = {
    "classification": ("fashion_classification", {"top1": "top-1 %", "top5": "top-5 %"}, 100.0),
    "language": ("kjv_language", {"perplexity": "perplexity", "nats": "nats a token"}, 1.0),
}
"""Page -> its study, the figures of its table by what their headings are, and their unit."""
BETWEEN = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)


def recipe_page(page: str) -> str:
    """A page about recipes with the results of its study: a row for each set of losses, and what is said of them."""
    from dit_shd.study.evidence import read_evidence
    from dit_shd.study.report import claims_table, state

    name, headings, unit = FIGURES[page]
    studies = {each.file.parent.name: each for each in read_evidence(ROOT / "experiments")}
    parts = ["No row yet."]
    if name in studies:
        progress, analysis = studies[name].progress, studies[name].analysis
        rows = f"{state(progress, analysis)} Rows: [results.jsonl](../experiments/{name}/results.jsonl)."
        parts = [results_table(analysis, headings, unit), claims_table(analysis).markdown(), rows]
    text = (DOCS / f"{page}.md").read_text()
    assert BETWEEN.search(text) is not None, f"{page}.md has no place for its results"
    return BETWEEN.sub(lambda match: match[1] + "\n" + "\n\n".join(parts) + "\n\n" + match[2], text)


def results_table(analysis: Any, headings: dict[str, str], unit: float) -> str:
    """Mean and standard deviation over seeds of some figures of training, and what a run takes."""
    from dit_shd.reports.tables import markdown

    rows = []
    for variant in analysis.variants:
        if not variant.done:
            continue
        summaries = [variant.summary(f"training/{figure}") for figure in headings]
        cells = [f"{unit * s.mean:.2f}" + (f" ± {unit * s.deviation:.2f}" if s.n > 1 else "") for s in summaries]
        rows.append([variant.name, str(len(variant.done)), *cells, f"{variant.training_seconds:.0f}"])
    return markdown([(name, "") for name in ("losses", "seeds", *headings.values(), "CPU s")], rows)


def supported_page() -> str:
    """Every transformer class of the installed diffusers."""
    import diffusers
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import zoo

    from dit_shd import capture
    from dit_shd.attention.recording.discovery import NO_PROJECTION
    from dit_shd.core.errors import UserError

    rows, reasons, maps_alone = [], [], []
    for name in sorted(zoo.classes()):
        if name not in zoo.ENTRIES:
            reasons.append(f"| *{name}* | untried |")
            continue
        model = zoo.build(name)
        try:
            with torch.no_grad(), capture(model) as captures:
                zoo.forward(model, zoo.draw(name))
        except UserError as error:
            reasons.append(f"| *{name}* | {str(error).removeprefix('capture: ')} |")
            continue
        lines = captures.report().lines
        orders = {role.partition(", ")[2] for line in lines if line.shapes for role in line.roles} - {""}
        without = {layer: _numbered(found.why_no_out) for layer, found in captures.items() if found.out is None}
        for reason in dict.fromkeys(without.values()):
            layers = _layers([layer for layer, each in without.items() if each == reason])
            what = reason.partition(f": {NO_PROJECTION}")[0]
            maps_alone.append((name, f"| `{name}` | {layers} | {what} |"))
        first = next(line for line in lines if line.shapes and (not orders or ", " in line.roles[0]))
        owners = ", ".join(f"`{name}`" if " " not in name else "none: maps alone" for name in first.projections)
        rows.append(f"| `{name}` | {_layers(list(captures))} | {', '.join(sorted(orders))} | {owners} |")
    return template("supported-models").format(
        version=diffusers.__version__,
        supported=len(rows),
        partial=len({name for name, _ in maps_alone}),
        maps_alone="\n".join(line for _, line in maps_alone),
        refused=sum("untried" not in line for line in reasons),
        untried=sum("untried" in line for line in reasons),
        rows="\n".join(rows),
        reasons="\n".join(reasons),
        clients="\n".join(_client_row(client) for client in _clients()),
        **client_counts(),
    )


def client_counts() -> dict[str, int]:
    """How many patterns and classes of tests/clients are recorded, and how many were tried."""
    return {"clients_recorded": sum(client.recorded > 0 for client in _clients()), "clients_tried": len(_clients())}


def _clients() -> list[Any]:
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    return list(importlib.import_module("clients").CLIENTS.values())


def _client_row(client: Any) -> str:
    needs = ", ".join(client.needs).replace("_", "-")
    if not client.recorded:
        return f"| {client.name} | {needs} | refused: {client.reason} | | |"
    left_out = f"; {client.left_out} of cross- or pooling attention when named" if client.left_out else ""
    weights = "found" if client.projections else f"none: {client.reason}"
    return (
        f"| {client.name} | {needs} | {client.recorded}{left_out} | {weights} | "
        f"{'identical' if client.exact else 'to rounding'} |"
    )


def reliability_page() -> str:
    """Every class of hostile input, tried."""
    sys.path.insert(0, str(ROOT / "tests"))
    import hostile

    return template("reliability").format(limit=hostile.LIMIT_MIB, table=hostile.table().rstrip())


def losses_page() -> str:
    """Every loss in one line."""
    from dit_shd.profiling.loss_table import loss_table
    from dit_shd.reports.losses_page import losses_markdown
    from dit_shd.tasks.diffusion import Diffusion

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from losses import BATCH, read, table  # type: ignore[import-not-found]

    lines = read(ROOT / "benchmarks" / "losses.jsonl")
    measured = "\n".join(line for tokens in BATCH for line in table(tokens, lines)).strip()
    return template("losses").format(table=losses_markdown(loss_table(Diffusion(mask_ratio=None))), measured=measured)


def text_to_image_page() -> str:
    """How to distil a text-to-image model, with every adapter."""
    from dit_shd.diffusion.adapters import by_class

    rows = ["| transformer of diffusers | pipelines | process | attention |", "|---|---|---|---|"]
    words = {"flow": "rectified flow", "ddpm": "DDPM"}
    for name, adapter in by_class().items():
        pipelines = ", ".join(f"`{pipeline}`" for pipeline in adapter.pipelines)
        rows.append(f"| `{name}` | {pipelines} | {words[adapter.process]} | {adapter.attention} |")
    return template("text-to-image").format(table="\n".join(rows))


def draw_pictures() -> None:
    """The pictures of concepts.md."""
    from dit_shd.analysis.inspect import InspectConfig
    from dit_shd.analysis.inspect import inspect as look
    from dit_shd.core.config import make
    from dit_shd.distillation.layer_map import layer_map
    from dit_shd.reports.figures.chart import Axis, Chart, svg_file
    from dit_shd.reports.inspection_page import picture_files

    folder = DOCS / "pictures"
    folder.mkdir(exist_ok=True)
    files = picture_files(look(make(InspectConfig, {"model": "asset:digits_teacher", "samples": 16})))
    for name in ("alpha_layers.svg", "alpha_timesteps.svg", "similarity.svg"):
        (folder / name).write_bytes(re.sub(rb' data-\w+="[^"]*"', b"", files[name]))
    deep, shallow = ([f"blocks.{i}" for i in range(count)] for count in (12, 4))
    chart = Chart(
        "layers of the teacher (left) and the student (right)",
        Axis("", -0.3, 1.3, names=["", ""]),
        Axis("layer", 11.5, -0.5),
        (420, 320),
    )
    for student, teacher in layer_map(deep, shallow, "proportional").items():
        ends = deep.index(teacher), 1 + 3 * shallow.index(student)
        chart.line((0, 1), ends, "s1")
    for i in range(12):
        chart.dot(0, i, "sink", f"teacher {i}")
        chart.words(0, i, str(i), anchor="end", shift=-9)
    for i in range(4):
        chart.dot(1, 1 + 3 * i, "s0", f"student {i}")
        chart.words(1, 1 + 3 * i, str(i), shift=9)
    (folder / "layer_map.svg").write_text(svg_file([chart]))


def _layers(names: list[str]) -> str:
    """Names that differ by a number only, once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(map(_numbered, names)))


def _numbered(text: str) -> str:
    """A text with stars for the numbers of layers."""
    return re.sub(r"(?<=[.#])\d+", "*", text)


PAGES: dict[str, Callable[[], str]] = {
    "classification.md": lambda: recipe_page("classification"),
    "evidence.md": evidence_page,
    "language.md": lambda: recipe_page("language"),
    "losses.md": losses_page,
    "reliability.md": reliability_page,
    "supported-models.md": supported_page,
    "text-to-image.md": text_to_image_page,
    "use-it-in-your-trainer.md": trainer_page,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "pictures" in sys.argv[1:]:
        draw_pictures()
    for page, make in PAGES.items():
        if page in (sys.argv[1:] or PAGES):
            (DOCS / page).write_text(make())
            print(f"written to {DOCS / page}")
