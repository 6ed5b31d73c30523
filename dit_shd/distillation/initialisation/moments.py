"""What the teacher's maps read and its heads do on calibration batches: told by hooks, summed, never kept."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend
from dit_shd.distillation.initialisation.heads import HeadMaps
from dit_shd.distillation.initialisation.regression import Chosen, Moments
from dit_shd.distillation.initialisation.structure import LinearMap
from dit_shd.models.layers import modulate
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks import Batch

NORMED = {
    "attn.qkv": ("norm1", "adaLN_modulation", 0),
    "mlp.fc1": ("norm2", "adaLN_modulation", 3),
    "final_layer.linear": ("final_layer.norm_final", "final_layer.adaLN_modulation", 0),
}
"""Maps that read modulate(norm(x), shift, scale): their norm, their adaLN, and which of its parts the shift is."""

Ask = Callable[[nn.Module, Any], Any]
"""Asks a model for a batch: Task.predict."""
See = Callable[[str, Tensor], None]
"""Takes the name of a linear map and its input."""


class HeadMoments:
    """What is known of one teacher layer's heads: moments of queries, keys and results, and their squeeze's weights."""

    def __init__(self, heads: int):
        self.query, self.key, self.result = Moments(), Moments(), Moments()
        self.weight = torch.zeros(heads, dtype=torch.float64)
        self._samples = 0

    def add(self, found: Capture, groups: Plan, squeezer: Squeezer) -> None:
        for moments, x in ((self.query, found.query), (self.key, found.key), (self.result, result(found))):
            moments.add(side_by_side(x))
        options: Any = {"seed": squeezer.seed, "projections": squeezer.projections}
        squeezed = squeeze(found, len(groups), groups, squeezer.method, **options)
        mean = squeezed.weight.mean((0, 2)).double().cpu()
        samples = found.shape[0]
        self._samples += samples
        self.weight += (mean - self.weight) * samples / self._samples


@contextmanager
def inputs(model: nn.Module, names: Iterable[str], see: See) -> Generator[None]:
    """Show the inputs of some linear maps while the model runs.

    An MLP may work with the weights of its linear maps without calling them, so it is asked as a whole.
    """

    def asked(name: str) -> tuple[nn.Module, Callable[..., None]]:
        outer, _, part = name.rpartition(".")
        if part == "fc2":
            return model.get_submodule(outer), lambda mlp, args: see(name, mlp.act(mlp.fc1(args[0])))
        return model.get_submodule(outer if part == "fc1" else name), lambda _, args: see(name, args[0])

    with ExitStack() as stack:
        for module, tell in map(asked, dict.fromkeys(names)):
            stack.callback(module.register_forward_pre_hook(tell).remove)
        yield


@torch.no_grad()
def teacher_moments(
    ask: Ask,
    teacher: nn.Module,
    batches: Iterable[Batch],
    reading: Iterable[str],
    layers: Mapping[str, str],
    groups: Mapping[str, Plan],
    squeezer: Squeezer,
) -> tuple[dict[str, Moments], dict[str, HeadMoments]]:
    """Moments of what the teacher's maps read, by their names, and of its heads, by student block.

    Args:
        reading: names of maps. layers: student block -> teacher block. groups: of heads, by student block.
    """
    read = {name: Moments() for name in reading}
    heads = {block: HeadMoments(sum(map(len, plan))) for block, plan in groups.items()}

    def sink(layer: str, found: Capture) -> None:
        for block, plan in groups.items():
            if f"{layers[block]}.attn" == layer:
                heads[block].add(found, plan, squeezer)

    with inputs(teacher, read, lambda name, x: read[name].add(x)), capture(teacher, sink=sink):
        for batch in batches:
            ask(teacher, batch)
    return read, heads


@torch.no_grad()
def student_moments(
    ask: Ask,
    teacher: nn.Module,
    batches: Iterable[Batch],
    sites: Sequence[LinearMap],
    kept: Mapping[str, Chosen],
    heads: Mapping[str, HeadMaps],
    layers: Mapping[str, str],
) -> dict[str, Moments]:
    """Moments of what each student map would read if what the student keeps were just as it is in the teacher.

    A LayerNorm over fewer channels normalises by other numbers, and merged heads look elsewhere: what is read behind
    either is computed as the student will.

    Args:
        sites: the maps that read less than the teacher's. kept: by space. heads: by student block.
    """
    found = {site.name: Moments() for site in sites}
    by_source: dict[str, list[LinearMap]] = {}
    for site in sites:
        if site.part != "attn.proj":
            by_source.setdefault(site.source, []).append(site)
    latest: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        for site in by_source[name]:
            space = kept[site.reads]
            found[site.name].add(_normed(site, space, latest) if site.part in NORMED else space.of(x), x)

    def sink(layer: str, capture: Capture) -> None:
        for block, maps in heads.items():
            if f"{layers[block]}.attn" == layer:
                found[f"{block}.attn.proj"].add(_attended(capture, maps), side_by_side(result(capture)))

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: latest.update({name: output})

    with ExitStack() as stack:
        for name in {name for site in sites for name in _around(site)}:
            stack.callback(teacher.get_submodule(name).register_forward_hook(keep(name)).remove)
        stack.enter_context(inputs(teacher, by_source, see))
        stack.enter_context(capture(teacher, sink=sink))
        for batch in batches:
            ask(teacher, batch)
    return found


def side_by_side(x: Tensor) -> Tensor:
    """[b,n,h d] of [b,h,n,d]"""
    return x.transpose(1, 2).flatten(2)


def result(found: Capture) -> Tensor:
    """A V [b,h,n,d]"""
    if found.mixed is not None:
        return found.mixed
    return attend(found.query, found.key, found.value, found.scale, found.bias)


def _attended(found: Capture, maps: HeadMaps) -> Tensor:
    """What the student's heads give for the teacher's queries, keys and values: [b,n,g d']."""
    heads = len(maps.share)
    query, key, value = (
        (side_by_side(x) @ c.to(x).t()).unflatten(2, (heads, -1)).transpose(1, 2)
        for x, c in ((found.query, maps.query), (found.key, maps.key), (found.value, maps.value))
    )
    bias = found.bias
    if isinstance(bias, RelativeBias):
        (table,) = bias.leaves
        bias = bias.rebuilt([table @ maps.share.to(table).t()])
    return side_by_side(attend(query, key, value, query.shape[-1] ** -0.5, bias))


def _around(site: LinearMap) -> list[str]:
    """The norm and the adaLN in front of a teacher's map, by name."""
    if site.part not in NORMED:
        return []
    prefix = site.source.removesuffix(site.part)
    return [prefix + name for name in NORMED[site.part][:2]]


def _normed(site: LinearMap, space: Chosen, latest: Mapping[str, Tensor]) -> Tensor:
    norm, adaln = (latest[name] for name in _around(site))
    first = NORMED[site.part][2]
    shift, scale = (part[:, None] for part in adaln.unflatten(-1, (-1, space.width)).unbind(1)[first : first + 2])
    few = space.of(norm)
    return modulate(layer_norm(few, few.shape[-1:], eps=1e-6), space.of(shift), space.of(scale))
