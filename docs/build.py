"""Make the pages that are made from code: `make docs`, or python docs/build.py [PAGE].

- evidence.md from the rows of experiments/*/results.jsonl;
- use-it-in-your-trainer.md from the scripts in examples/;
- text-to-image.md with the table of adapters (dit_shd/diffusion/adapters);
- reliability.md by trying every class of hostile input (tests/hostile);
- supported-models.md by trying capture() on a tiny random model of every transformer class of the installed diffusers
  (their sizes are those of the tests, tests/zoo).
"""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

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


def text_to_image_page() -> str:
    """How to distil a text-to-image model, with every adapter."""
    from dit_shd.diffusion.adapters import by_class

    rows = ["| transformer of diffusers | pipelines | process | attention |", "|---|---|---|---|"]
    words = {"flow": "rectified flow", "ddpm": "DDPM"}
    for name, adapter in by_class().items():
        pipelines = ", ".join(f"`{pipeline}`" for pipeline in adapter.pipelines)
        rows.append(f"| `{name}` | {pipelines} | {words[adapter.process]} | {adapter.attention} |")
    return template("text-to-image").format(table="\n".join(rows))


def _layers(names: list[str]) -> str:
    """Names that differ by a number only, once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(re.sub(r"(?<=[.#])\d+", "*", name) for name in names))


PAGES: dict[str, Callable[[], str]] = {
    "evidence.md": evidence_page,
    "reliability.md": reliability_page,
    "supported-models.md": supported_page,
    "text-to-image.md": text_to_image_page,
    "use-it-in-your-trainer.md": trainer_page,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for page, make in PAGES.items():
        if page in (sys.argv[1:] or PAGES):
            (DOCS / page).write_text(make())
            print(f"written to {DOCS / page}")
