"""Which teacher heads each student head stands for: a partition of the h heads into g groups, as plain data."""

from collections.abc import Sequence

from dit_shd.core.errors import UserError

Plan = tuple[tuple[int, ...], ...]
"""The groups of teacher heads, one for each student head."""


def contiguous(heads: int, groups: int) -> Plan:
    """Neighbouring heads, groups as even as possible, larger ones first: 16 -> 6 is 3,3,3,3,2,2.

    Raises:
        UserError: groups is not in 1..heads.
    """
    if not 1 <= groups <= heads:
        raise UserError(f"squeeze: wanted 1 to {heads} student heads for a teacher of {heads}, found {groups}")
    small, larger = divmod(heads, groups)
    sizes = [small + (i < larger) for i in range(groups)]
    starts = [sum(sizes[:i]) for i in range(groups)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes))


def check_plan(plan: Sequence[Sequence[int]], heads: int, groups: int) -> Plan:
    """An explicit plan as a Plan: every teacher head exactly once, one group for each student head."""
    found = tuple(tuple(int(i) for i in part) for part in plan)
    if len(found) != groups or any(not part for part in found) or sorted(sum(found, ())) != list(range(heads)):
        raise UserError(
            f"squeeze: wanted a plan of {groups} groups that holds each of the heads 0..{heads - 1} once, found {found}"
        )
    return found


def by_size(plan: Plan) -> list[tuple[int, list[int]]]:
    """(k, the groups of k heads) for every group size k: groups of one size are worked on together."""
    sizes = sorted({len(members) for members in plan})
    return [(k, [g for g, members in enumerate(plan) if len(members) == k]) for k in sizes]
