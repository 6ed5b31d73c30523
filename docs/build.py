"""Make the pages that are made from code: `make docs`, or python docs/build.py [PAGE].

- evidence.md from the rows of experiments/*/results.jsonl;
- use-it-in-your-trainer.md from the scripts in examples/;
- reliability.md by trying every class of hostile input (tests/hostile);
- supported-models.md by trying capture() on a tiny random model of every transformer class of the installed diffusers
  (their sizes are those of the tests, tests/zoo), and from the table of other classes and patterns that
  tests/clients tries.
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


def _layers(names: list[str]) -> str:
    """Names that differ by a number only, once."""
    return ", ".join(f"`{name}`" for name in dict.fromkeys(map(_numbered, names)))


def _numbered(text: str) -> str:
    """A text with stars for the numbers of layers."""
    return re.sub(r"(?<=[.#])\d+", "*", text)


PAGES: dict[str, Callable[[], str]] = {
    "evidence.md": evidence_page,
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
