"""Which teacher layer a student layer learns from, when depths differ."""

from collections.abc import Callable, Mapping, Sequence

from dit_shd.attention.recording.discovery import INDEX, section_of
from dit_shd.core.errors import UserError
from dit_shd.distillation.kept import KeptPlan

LayerMap = str | dict[str, str]
"""sections, proportional, last, kept:PLAN, or {student layer: teacher layer}."""


def layer_map(teacher: Sequence[str], student: Sequence[str], how: LayerMap = "sections") -> dict[str, str]:
    """Student layer -> teacher layer, both by name, in the order in which they run.

    Args:
        teacher: Names of its layers, in order.
        student: Names of its layers, in order.
        how: `proportional`: the student's l-th layer (from 1) gets the teacher's layer l * L_t / L_s, rounded up
            (the paper: 48 -> 24 layers, the 4th gets the 8th); where blocks hold layers of several names (attn1,
            attn2), each with those of its name, over all sections. `sections`: the same inside each section, a section
            being the layers whose paths differ by numbers only (MDT: en_inblocks, en_outblocks, de_blocks); models of
            two families, which have no section in common, are one section each. `last`: the student's last layer gets
            the teacher's. `kept:PLAN`: as a file of `dit-shd depth` says. A dict is the map itself; student layers that
            it leaves out are not supervised. Where one model alone runs its blocks several times, each run is a layer.

    Raises:
        UserError: A name that does not exist, a section that the teacher lacks, or other numbers of runs.
    """
    if isinstance(how, Mapping):
        for names, known, role in ((how.keys(), student, "student"), (how.values(), teacher, "teacher")):
            for name in names:
                if name not in known:
                    what = "" if isinstance(name, str) else " (a map has names of layers, not their numbers)"
                    raise UserError(f"layers: the {role} has no layer '{name}'{what}. It has: {', '.join(known)}")
        return {name: how[name] for name in student if name in how}
    if (plan := KeptPlan.named(how)) is not None:
        return plan.pairs(teacher, student)
    if how not in ("sections", "proportional", "last"):
        raise UserError(f"layers: wanted sections, proportional, last, kept:PLAN or a map of names, found '{how}'")
    layers = [[name for name in names if ":" not in name] or list(names) for names in (teacher, student)]
    if how == "last":
        return dict(zip(layers[1][-1:], layers[0][-1:]))
    runs = [max(map(_run, names), default=1) for names in layers]
    unrolled = runs[0] != runs[1]
    if unrolled and (min(runs) > 1 or not _loops(max(zip(runs, layers))[1])):
        raise UserError(
            f"layers: a layer of the teacher runs or calls attention {runs[0]} times in one forward, one of the "
            f"student {runs[1]} times; name the pairs"
        )
    pairs = (_proportional if how == "proportional" else _by_section)(layers[0], layers[1], unrolled)
    for name in student:  # a layer's text queries learn from the text queries of its teacher, if they have any
        layer, _, part = name.partition(":")
        if part and layer in pairs and f"{pairs[layer]}:{part}" in teacher:
            pairs[name] = f"{pairs[layer]}:{part}"
    return {name: pairs[name] for name in student if name in pairs}


def _by_section(teacher: Sequence[str], student: Sequence[str], unrolled: bool) -> dict[str, str]:
    sources, sections = (_grouped(names, section_of, unrolled) for names in (teacher, student))
    if not sources.keys() & sections.keys():
        return _proportional(teacher, student, unrolled)
    pairs: dict[str, str] = {}
    for section, names in sections.items():
        if section not in sources:
            raise UserError(
                f"layers: the teacher has no section '{section}' (it has {', '.join(sources)}); "
                "use layers=proportional or name the pairs"
            )
        pairs |= _by_depth(sources[section], names)
    return pairs


def _proportional(teacher: Sequence[str], student: Sequence[str], unrolled: bool) -> dict[str, str]:
    sources, kinds = (_grouped(names, _kind, unrolled) for names in (teacher, student))
    if not kinds.keys() <= sources.keys():
        return _by_depth(teacher, student)
    return {layer: source for kind in kinds for layer, source in _by_depth(sources[kind], kinds[kind]).items()}


def _by_depth(teacher: Sequence[str], student: Sequence[str]) -> dict[str, str]:
    deep, shallow = len(teacher), len(student)
    return {name: teacher[-(-layer * deep // shallow) - 1] for layer, name in enumerate(student, start=1)}


def _grouped(names: Sequence[str], group_of: Callable[[str], str], unrolled: bool) -> dict[str, list[str]]:
    """Layers by group; unrolled: every run of a layer is in the group of the first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name.partition("#")[0] if unrolled else name), []).append(name)
    return groups


def _kind(name: str) -> str:
    """What a layer is called within its block, with the number of its run; empty where paths have no numbers."""
    path, mark, run = name.partition("#")
    end = path.rpartition(".")[2] if INDEX.search(path) else ""
    return ("" if end.isdigit() else end) + mark + run


def _loops(names: Sequence[str]) -> bool:
    """Whether layers run again after others have; one that calls attention twice in a run does not."""
    again = [(names[i - 1].partition("#")[0], name.partition("#")[0]) for i, name in enumerate(names) if _run(name) > 1]
    return len({name.partition("#")[0] for name in names}) == 1 or all(before != name for before, name in again)


def _run(name: str) -> int:
    """The number of the run that a capture's name has: NAME, NAME#2, NAME#3:text, ..."""
    number = name.partition(":")[0].partition("#")[2]
    return int(number) if number.isdigit() else 1
