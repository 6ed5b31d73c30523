"""Make the pages that are made from code: `make docs`, or python docs/build.py [PAGE].

- evidence.md from the rows of experiments/*/results.jsonl, and the table between two comments in classification.md and
  language.md, which are written by hand otherwise;
- use-it-in-your-trainer.md from the scripts in examples/;
- reliability.md by trying every class of hostile input (tests/hostile);
- supported-models.md by trying capture() on a tiny random model of every transformer class of the installed diffusers
  (their sizes are those of the tests, tests/zoo).
"""

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
    return template("use-it-in-your-trainer").format(**quoted, supported=supported, tried=supported + refused)


def evidence_page() -> str:
    """What the studies of experiments/ have shown."""
    from dit_shd.study.evidence import claims_summary, read_evidence, study_text

    studies = read_evidence(ROOT / "experiments")
    hours = sum(study.analysis.cpu_hours for study in studies)
    texts = "\n\n".join(study_text(study, ROOT) for study in studies)
    return template("evidence").format(claims=claims_summary(studies), studies=texts, hours=f"{hours:.1f}")


FIGURES = {
    "classification": ("fashion_classification", {"top1": "top-1 %", "top5": "top-5 %"}, 100.0),
    "language": ("kjv_language", {"perplexity": "perplexity", "bits_per_byte": "bits a byte"}, 1.0),
}
"""Page -> its study, the figures of its table by what their headings are, and their unit."""
BETWEEN = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)


def recipe_page(page: str) -> str:
    """A page about recipes with the results of its study: a row for each set of losses, and what is said of them."""
    from dit_shd.study.evidence import markdown, read_evidence
    from dit_shd.study.report import claims_table, state

    name, headings, unit = FIGURES[page]
    studies = {each.file.parent.name: each for each in read_evidence(ROOT / "experiments")}
    parts = ["No row yet."]
    if name in studies:
        progress, analysis = studies[name].progress, studies[name].analysis
        rows = f"{state(progress, analysis)} Rows: [results.jsonl](../experiments/{name}/results.jsonl)."
        parts = [results_table(analysis, headings, unit), markdown(claims_table(analysis)), rows]
    text = (DOCS / f"{page}.md").read_text()
    assert BETWEEN.search(text) is not None, f"{page}.md has no place for its results"
    return BETWEEN.sub(lambda match: match[1] + "\n" + "\n\n".join(parts) + "\n\n" + match[2], text)


def results_table(analysis: Any, headings: dict[str, str], unit: float) -> str:
    """Mean and standard deviation over seeds of some figures of training, and what a run takes."""
    lines = [["losses", "seeds", *headings.values(), "CPU s"]]
    lines.append(["---"] * len(lines[0]))
    for variant in analysis.variants:
        if not variant.done:
            continue
        summaries = [variant.summary(f"training/{figure}") for figure in headings]
        cells = [f"{unit * s.mean:.2f}" + (f" ± {unit * s.deviation:.2f}" if s.n > 1 else "") for s in summaries]
        lines.append([variant.name, str(len(variant.done)), *cells, f"{variant.training_seconds:.0f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def supported_page() -> str:
    """Every transformer class of the installed diffusers."""
    import diffusers
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import zoo

    from dit_shd import capture
    from dit_shd.core.errors import UserError

    rows, reasons, partial = [], [], 0
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
        partial += any(found.out is None for found in captures.values())
        first = next(line for line in lines if line.shapes and (not orders or ", " in line.roles[0]))
        owners = ", ".join(f"`{name}`" if " " not in name else "none: maps alone" for name in first.projections)
        rows.append(f"| `{name}` | {_layers(list(captures))} | {', '.join(sorted(orders))} | {owners} |")
    return template("supported-models").format(
        version=diffusers.__version__,
        supported=len(rows),
        partial=partial,
        refused=sum("untried" not in line for line in reasons),
        untried=sum("untried" in line for line in reasons),
        rows="\n".join(rows),
        reasons="\n".join(reasons),
    )


def reliability_page() -> str:
    """Every class of hostile input, tried."""
    sys.path.insert(0, str(ROOT / "tests"))
    import hostile

    return template("reliability").format(limit=hostile.LIMIT_MIB, table=hostile.table().rstrip())


def _layers(names: list[str]) -> str:
    """Names that differ by a number only, once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(re.sub(r"(?<=[.#])\d+", "*", name) for name in names))


PAGES: dict[str, Callable[[], str]] = {
    "classification.md": lambda: recipe_page("classification"),
    "evidence.md": evidence_page,
    "language.md": lambda: recipe_page("language"),
    "reliability.md": reliability_page,
    "supported-models.md": supported_page,
    "use-it-in-your-trainer.md": trainer_page,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for page, make in PAGES.items():
        if page in (sys.argv[1:] or PAGES):
            (DOCS / page).write_text(make())
            print(f"written to {DOCS / page}")
