"""A student of any class that is its teacher with fewer blocks: whole blocks are copied, and all else as it is."""

from collections.abc import Mapping
from operator import ge
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.kept import KeptPlan
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.models.blocks import BESIDE, named_blocks
from dit_shd.models.quantization import whole_state
from dit_shd.models.shape import differing_heads
from dit_shd.models.students import LAYERS, OF_BLOCKS, OF_LAYERS

ASIDE = ("sideblocks",)
"""Lists of blocks beside those of a plain pass: the side interpolator of MDTv2, which only masked passes run."""


def pairs(student: nn.Module, teacher: nn.Module, how: str | dict[str, str] | KeptPlan | None) -> dict[str, str]:
    """Student block -> teacher block: by a plan, by names, or evenly spaced in each list of blocks.

    Where a block has other tensors than the one that a plan names (SD3's last, which gives no text), it comes from the
    first of the interval that it stands for that has them, in the same sizes or larger.

    Raises:
        UserError: Models of two classes, blocks that do not exist, or a plan of another number of blocks.
    """
    if type(student) is not type(teacher):
        raise UserError(
            f"initialisation: wanted models of one class, found a {type(student).__name__} and a "
            f"{type(teacher).__name__}; use initialisation.weights=random"
        )
    if isinstance(how, KeptPlan):
        how.check(named_blocks(student))
        wanted, available = student.state_dict(), whole_state(teacher)
        names = list(named_blocks(teacher))
        kept = {block: _kept(block, wanted, available, names, how) for block in named_blocks(student)}
        return with_beside(student, teacher, kept)
    rule: LayerMap = "sections" if how is None else how
    if isinstance(rule, Mapping):
        named = {_block(student, name): _block(teacher, source) for name, source in rule.items()}
        return with_beside(student, teacher, layer_map(list(named_blocks(teacher)), list(named_blocks(student)), named))
    layers: dict[str, str] = {}
    for aside in (False, True):
        old, new = ([n for n in named_blocks(x) if (n.split(".")[0] in ASIDE) == aside] for x in (teacher, student))
        layers |= layer_map(old, new, rule)
    return with_beside(student, teacher, layers)


def _block(model: nn.Module, layer: str) -> str:
    """The block that a layer is in; the name itself where it is in none."""
    return next((block for block in named_blocks(model) if f"{layer}.".startswith(f"{block}.")), layer)


def with_beside(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> dict[str, str]:
    """Pairs of blocks, and of what stands beside each of them in a list of its own (HiDream's maps of its text).

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.

    Raises:
        UserError: By the student's config its blocks read another text than those whose weights they have.
    """
    pairs = dict(layers)
    for of_list, stacks in BESIDE.items():
        lists: list[Any] = [getattr(model, of_list, None) for model in (student, teacher)]
        if not all(isinstance(each, nn.ModuleList) for each in lists):
            continue
        new, old = ([n for n in named_blocks(model) if n.rpartition(".")[0] in stacks] for model in (student, teacher))
        numbers = {i: old.index(layers[block]) for i, block in enumerate(new) if block in layers}
        _check_texts(student, teacher, numbers)
        numbers |= {len(new) + i: len(old) + i for i in range(len(lists[0]) - len(new))}
        pairs |= {f"{of_list}.{number}": f"{of_list}.{source}" for number, source in numbers.items()}
    return pairs


def _check_texts(student: Any, teacher: Any, numbers: Mapping[int, int]) -> None:  # noqa: ANN401
    """Refuse a student whose blocks read other layers of the text encoder than their sources."""
    for name in OF_BLOCKS:
        values, read = student.config[name], teacher.config[name]
        wanted = [read[numbers[i]] if i in numbers else value for i, value in enumerate(values)]
        if wanted != list(values):
            raise UserError(
                f"student.{name}: wanted {wanted}, as the blocks that its weights are of have them, found "
                f"{list(values)}; set student.config.{name}={wanted}"
            )


def with_inner(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> dict[str, str]:
    """Pairs of blocks, and of the blocks inside of them where those are other numbers (the stages of Swin, ConvNeXt).

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.
    """
    deeper = dict(layers)
    for block, source in layers.items():
        inner, sources = (_inside(model, name) for model, name in ((student, block), (teacher, source)))
        if inner and sources and len(inner) != len(sources):
            deeper |= with_inner(student, teacher, layer_map(sources, inner, "sections"))
    return deeper


def _inside(model: nn.Module, block: str) -> list[str]:
    return list(named_blocks(model.get_submodule(block), f"{block}."))


def pairs_of_layers(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> dict[str, str]:
    """Student block -> teacher block, of a map of layers inside of blocks: those whose tensors can come from there.

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student layer -> teacher layer, as a loss has it.
    """
    wanted, available = student.state_dict(), whole_state(teacher)
    names = list(named_blocks(student)), list(named_blocks(teacher))
    pairs: dict[str, str] = {}
    for pair in layers.items():
        block, source = (next((b for b in of if layer.startswith(f"{b}.")), "") for of, layer in zip(names, pair))
        if block and source and _hold(_shapes(available, source), _shapes(wanted, block)):
            pairs.setdefault(block, source)
    return pairs


def check(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> None:
    """Refuse models that differ in more than their depth.

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.

    Raises:
        UserError: Naming the first tensor, or number of heads, that differs.
    """
    available = whole_state(teacher)
    for name, tensor in student.state_dict().items():
        source = source_of(name, layers)
        other = available.get(source)
        if other is None or other.shape != tensor.shape:
            actual = "nothing" if other is None else list(other.shape)
            raise UserError(
                f"initialisation: {name} has shape {list(tensor.shape)} in the student, and {source} of the teacher "
                f"{actual}; blocks of this class are copied whole, so that the student may differ in depth alone; use "
                "initialisation.weights=random"
            )
    check_heads(student, teacher, layers)


def check_heads(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> None:
    """Refuse models of the same shapes whose attention divides them into other heads.

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.

    Raises:
        UserError: Naming the first attention that differs.
    """
    differing = differing_heads(student, teacher, lambda name: module_of(name, layers))
    if differing is not None:
        what, here, there = differing
        raise UserError(
            f"initialisation: {what} is {here} in the student and {there} in the teacher: a copy of weights of the "
            "same shapes would be other maps; give it as many, or fewer of the same width, or use "
            "initialisation.weights=random"
        )


@torch.no_grad()
def copy(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> None:
    """Copy the teacher's tensors into the student.

    Args:
        student: Whose tensors are overwritten.
        teacher: Of the same class and widths.
        layers: Student block -> teacher block.

    Raises:
        UserError: They differ in more than their depth, or the teacher has no whole weights.
    """
    check(student, teacher, layers)
    available = whole_state(teacher)
    for name, tensor in student.state_dict().items():
        source = source_of(name, layers)
        if available[source].is_meta and not tensor.is_meta:
            raise UserError(f"depth: {source} of the teacher has no numbers (4 bits?); copy from one of whole weights")
        tensor.copy_(available[source])


def source_of(name: str, layers: Mapping[str, str]) -> str:
    """The name of the teacher's tensor that a student's tensor is a copy of."""
    block = max((block for block in layers if name.startswith(f"{block}.")), key=len, default=None)
    return name if block is None else layers[block] + name.removeprefix(block)


def module_of(name: str, layers: Mapping[str, str]) -> str:
    """The name of the teacher's module whose tensors a student's module has copies of."""
    return source_of(f"{name}.", layers)[:-1]


def student_of(teacher: nn.Module, plan: KeptPlan) -> nn.Module:
    """A model of the teacher's class with as many blocks as a plan has, and their weights.

    Args:
        teacher: Of diffusers or dit_shd.
        plan: Which blocks it keeps; lists of blocks that it does not name are kept whole.

    Raises:
        UserError: No key of its config is its number of blocks, or that of others, too, or the blocks do not fit.
    """
    options: dict[str, Any] = dict(teacher.config)  # type: ignore[call-overload]
    for of_list in {name.rpartition(".")[0] for name in plan.weights}:
        blocks = [name for name in plan.weights if name.rpartition(".")[0] == of_list]
        key = _key(teacher, options, of_list)
        options[key] = len(blocks)
        if key in LAYERS[:2]:
            options |= _lists_of_layers(options, blocks, plan)
    options |= _lists_of_blocks(teacher, plan)
    cls: Any = type(teacher)
    student: nn.Module = cls.from_config(options)
    planned = {name.rpartition(".")[0] for name in plan.weights}
    for of_list in dict.fromkeys(name.rpartition(".")[0] for name in named_blocks(teacher)):
        if of_list not in planned and _count(student, of_list) != _count(teacher, of_list):
            raise UserError(
                f"{cls.__name__}: {of_list} has as many blocks as {' and '.join(sorted(planned))}, by one key of its "
                "config, and the plan says nothing of which it keeps"
            )
    copy(student, teacher, pairs(student, teacher, plan))
    return student


def _lists_of_layers(options: Mapping[str, Any], blocks: list[str], plan: KeptPlan) -> dict[str, list[int]]:
    """The lists of numbers of blocks in a config, of the blocks that are made of the teacher's in them.

    The last is taken for one of its interval's last, which in SD3 alone gives no text.
    """
    sources = [plan.weights[block] for block in blocks[:-1]] + [plan.layers[block] for block in blocks[-1:]]
    numbers = [int(source.rpartition(".")[2]) for source in sources]
    kept = {name: options[name] for name in OF_LAYERS if isinstance(options.get(name), (list, tuple))}
    return {name: [i for i, number in enumerate(numbers) if number in of_teacher] for name, of_teacher in kept.items()}


def _lists_of_blocks(teacher: Any, plan: KeptPlan) -> dict[str, list[Any]]:  # noqa: ANN401
    """The lists of a config with an entry for each block, of the blocks that give weights."""
    names, sources = list(named_blocks(teacher)), set(plan.weights.values())
    planned = {source.rpartition(".")[0] for source in sources}
    kept = [i for i, name in enumerate(names) if name in sources or name.rpartition(".")[0] not in planned]
    return {name: [teacher.config[name][i] for i in kept] for name in OF_BLOCKS if teacher.config.get(name)}


def _key(teacher: nn.Module, options: Mapping[str, Any], of_list: str) -> str:
    """The key of a config that is the number of blocks of one list."""
    key = depth_key(teacher, options, of_list)
    if key is None:
        raise UserError(
            f"{type(teacher).__name__}: no key of its config is the number of {of_list} ({_count(teacher, of_list)}); "
            "build the student by hand and give it the weights by initialisation.depth: copy(student, teacher, "
            "pairs(student, teacher, plan))"
        )
    return key


def depth_key(model: nn.Module, options: Mapping[str, Any], of_list: str) -> str | None:
    """The key of a config that is the number of blocks of one list; None where no key is, or several may be.

    Args:
        model: Perhaps without weights.
        options: Its config.
        of_list: The name of a list of its blocks.
    """
    count = _count(model, of_list)
    keys = [key for key, value in options.items() if value == count and key in LAYERS and isinstance(value, int)]
    if len(keys) > 1:
        keys = [key for key in keys if ("single" in key) == of_list.startswith("single")]
    return keys[0] if len(keys) == 1 else None


def _count(model: nn.Module, of_list: str) -> int:
    return sum(name.rpartition(".")[0] == of_list for name in named_blocks(model))


def _kept(
    block: str, wanted: Mapping[str, Tensor], available: Mapping[str, Tensor], names: list[str], plan: KeptPlan
) -> str:
    """The teacher's block that a block of the student comes from by a plan."""
    first, last = plan.weights.get(block, block), plan.layers.get(block, block)
    if first not in names or last not in names:
        raise UserError(f"kept: the teacher has no block {first if first not in names else last}")
    shapes = _shapes(wanted, block)
    interval = names[names.index(first) : names.index(last) + 1]
    source = next((name for name in interval if _hold(_shapes(available, name), shapes)), None)
    if source is None:
        raise UserError(
            f"kept: {block} of the student has other tensors than {first} of the teacher, or larger ones (the same "
            "family, and no more heads or channels, are needed)"
        )
    return source


def _shapes(state: Mapping[str, Tensor], block: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a block's tensors by their names in it."""
    prefix = f"{block}."
    return {name.removeprefix(prefix): tuple(x.shape) for name, x in state.items() if name.startswith(prefix)}


def _hold(available: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a block has the tensors of another, none of them smaller."""
    if available.keys() != wanted.keys():
        return False
    return all(len(available[name]) == len(x) and all(map(ge, available[name], x)) for name, x in wanted.items())
