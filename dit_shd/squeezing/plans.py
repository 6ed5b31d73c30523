"""Plans: partitions of the h teacher heads into g groups, one for each student head, as plain data."""

from collections.abc import Sequence
from operator import index

from dit_shd.core.errors import UserError

Plan = tuple[tuple[int, ...], ...]
"""The groups of teacher heads, one for each student head."""


def contiguous(heads: int, groups: int) -> Plan:
    """Groups of neighbouring heads, as even as possible, larger ones first: 16 -> 6 is 3,3,3,3,2,2.

    Args:
        heads: The number of heads of the teacher, h.
        groups: Their number, g.

    Raises:
        UserError: The number of groups g is not in 1..h.
    """
    wanted = f"squeeze: wanted 1 to {heads} student heads for a teacher of {heads}, found {groups!r}"
    try:
        groups = index(groups)  # of NumPy, too
    except TypeError as error:
        raise UserError(wanted) from error
    if not 1 <= groups <= heads:
        raise UserError(wanted)
    small, larger = divmod(heads, groups)
    sizes = [small + (i < larger) for i in range(groups)]
    starts = [sum(sizes[:i]) for i in range(groups)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes))


def groups_of(plan: object) -> Plan:
    """A user's list of groups, or an array [g,k], as plain data.

    Raises:
        UserError: It is none.
    """
    try:
        groups = [list(group) for group in plan]  # type: ignore[attr-defined]
        if any(isinstance(head, bool) for group in groups for head in group):
            raise TypeError
        return tuple(tuple(index(head) for head in group) for group in groups)
    except TypeError:
        raise UserError(f"squeeze: plan: wanted a list of groups of head numbers, found {plan!r}") from None


def check_plan(plan: Sequence[Sequence[int]], heads: int, groups: int) -> Plan:
    """A user's plan as a Plan.

    Raises:
        UserError: A teacher head is missing or in two groups, or the number of groups is not that of student heads.
    """
    checked = groups_of(plan)
    if len(checked) != groups or not all(checked) or sorted(sum(checked, ())) != list(range(heads)):
        raise UserError(
            f"squeeze: wanted a plan of {groups} groups that holds each of the heads 0..{heads - 1} once, "
            f"found {checked}"
        )
    return checked


def merge_names(plan: Plan) -> list[str]:
    """The merges in the order of Squeeze.alpha, as 0+1|2: alpha is the weight of the heads left of the bar."""
    names = []
    for group in plan:
        heads = list(map(str, group))
        names += [f"{'+'.join(heads[:i])}|{heads[i]}" for i in range(1, len(heads))]
    return names


def by_size(plan: Plan) -> list[tuple[int, list[int]]]:
    """(k, the numbers of the groups of k heads) for every group size k, to process groups of one size together."""
    sizes = sorted({len(members) for members in plan})
    return [(k, [g for g, members in enumerate(plan) if len(members) == k]) for k in sizes]
