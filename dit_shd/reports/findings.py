"""What a page found, in a sentence: it stands first, before tables and figures."""

import math
from collections.abc import Mapping, Sequence

from dit_shd.reports.tables import Row, direction, number, rank


def change(value: float, other: float) -> str:
    """A value against another, as 31% lower."""
    if value == other or (other and number(value) == number(other)):
        return "the same"
    if other == 0:
        return "not to be compared with 0"
    if value < 0 or other < 0:  # as of KID, of which no share can be taken then
        return f"{number(abs(value - other))} {'lower' if value < other else 'higher'}"
    share = value / other - 1
    if abs(share) < 0.005:
        return "the same to half a percent"
    if share >= 1:
        return f"{value / other:.1f} times as high"
    return f"{abs(share):.0%} {'lower' if share < 0 else 'higher'}"


def best_student(rows: Sequence[Row], name: str) -> Row:
    """The row after the first, the teacher's, whose figure is best; the next one where no name says what is better."""
    if not direction(name):
        return rows[1]
    return min(rows[1:], key=lambda row: rank(row.figures[name], name))


def left_out(rows: Sequence[Row]) -> list[str]:
    """A note on the figures that some rows have and others have not, so that no table shows them."""
    having: dict[str, list[str]] = {}
    for row in rows:
        for name in row.figures:
            having.setdefault(name, []).append(row.name)
    partial = {name: of for name, of in having.items() if len(of) < len(rows) and not name.endswith(" std")}
    listed = ", ".join(f"{name} (only of {', '.join(of)})" for name, of in partial.items())
    return [f"left out, since not all have them: {listed}"] if partial else []


def compared(rows: Sequence[Row], name: str) -> list[str]:
    """How far the best student is from the other students, and from the teacher at which cost.

    Args:
        rows: Of the table of figures, the teacher's first.
        name: The figure that decides.
    """
    teacher, *students = rows
    best = best_student(rows, name)
    value, big = best.figures[name], teacher.figures[name]
    sentences: list[str] = []
    others = [row for row in students if row is not best]
    if others:
        parts = [_against(value, row.figures[name], quoted(row)) for row in others[:3]]
        sentences.append(f"{quoted(best)} has {name} {number(value)}: {', and '.join(parts)}.")
    if not math.isfinite(value):
        return [
            *sentences,
            f"{quoted(best)} has no finite {name} ({number(value)}); that of {quoted(teacher)} is {number(big)}.",
        ]
    shares = cost_shares(best, teacher)
    against = f"{quoted(best)} has {name} {number(value)} against {number(big)} of {quoted(teacher)}."
    sentences.append(f"At {_listed(shares)} of {quoted(teacher)}, {against}" if shares else against)
    return sentences


def cost_shares(student: Row, teacher: Row) -> dict[str, float]:
    """Parameters, operations and latency of a student as shares of the teacher's; empty where one is not known."""
    small, big = student.cost, teacher.cost
    if small is None or big is None:
        return {}
    return {
        "parameters": small.parameters / big.parameters,
        "operations": small.flops / big.flops,
        "latency": small.latency_ms / big.latency_ms,
    }


def tiles(rows: Sequence[Row], name: str) -> dict[str, str]:
    """A handful of numbers of the best student: what it is -> the number."""
    teacher, best = rows[0], best_student(rows, name)
    numbers = {
        f"{name}, {best.name}": number(best.figures[name]),
        f"{name}, {teacher.name}": number(teacher.figures[name]),
    }
    whose = "the teacher's" if teacher.name == "teacher" else f"{teacher.name}'s"
    for what, share in cost_shares(best, teacher).items():
        numbers[f"of {whose} {what}"] = f"{share:.2f}"
    return numbers


def quoted(row: Row) -> str:
    """The name of a model in a sentence."""
    return "the teacher" if row.name == "teacher" else f"“{row.name}”"


def _against(value: float, other: float, name: str) -> str:
    if not math.isfinite(value) or not math.isfinite(other):
        return f"not to be compared with {name}"
    words = change(value, other)
    return f"{words} {'than' if words.endswith(('lower', 'higher')) else 'as'} {name}"


def _listed(shares: Mapping[str, float]) -> str:
    *first, last = (f"{share:.2f} of the {what}" for what, share in shares.items())
    return f"{', '.join(first)} and {last}"
