"""Moments of the inputs of the teacher's linear maps, and of its heads, on calibration batches.

Hooks add each batch to running sums; no activation is kept.
"""

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
from dit_shd.distillation.initialisation.regression import Chosen, RegressionMoments
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
"""Maps that read modulate(norm(x), shift, scale): their norm, their adaLN, and the index of the shift in it."""

Predict = Callable[[nn.Module, Any], object]
"""Runs a model on a batch: Task.predict."""
InputSink = Callable[[str, Tensor], None]
"""Receives the name of a linear map and its input [b,n,i]."""


class HeadMoments:
    """Moments of the queries, keys and head outputs of one teacher layer, and mean weights of its squeeze."""

    def __init__(self, heads: int):
        self.query, self.key, self.output = RegressionMoments(), RegressionMoments(), RegressionMoments()
        self.weight = torch.zeros(heads, dtype=torch.float64)
        self._samples = 0

    def add(self, capture: Capture, groups: Plan, squeezer: Squeezer) -> None:
        """Add the capture of one batch."""
        outputs = head_outputs(capture)
        for moments, x in ((self.query, capture.query), (self.key, capture.key), (self.output, outputs)):
            moments.add(concatenated(x))
        options: Any = {"seed": squeezer.seed, "projections": squeezer.projections}
        squeezed = squeeze(capture, len(groups), groups, squeezer.method, **options)
        mean = squeezed.weight.mean((0, 2)).double().cpu()
        samples = capture.shape[0]
        self._samples += samples
        self.weight += (mean - self.weight) * samples / self._samples


@contextmanager
def record_inputs(model: nn.Module, names: Iterable[str], sink: InputSink) -> Generator[None]:
    """Call `sink` with the inputs of some linear maps as the model runs in the block.

    Args:
        model: On which hooks are set.
        names: Of the linear maps. The hooks of an MLP's maps are on the MLP, which may use their weights without
            calling them.
        sink: Receives each input.
    """

    def hook(name: str) -> tuple[nn.Module, Callable[..., None]]:
        outer, _, part = name.rpartition(".")
        if part == "fc2":
            return model.get_submodule(outer), lambda mlp, args: sink(name, mlp.act(mlp.fc1(args[0])))
        return model.get_submodule(outer if part == "fc1" else name), lambda _, args: sink(name, args[0])

    with ExitStack() as stack:
        for module, function in map(hook, dict.fromkeys(names)):
            stack.callback(module.register_forward_pre_hook(function).remove)
        yield


@torch.no_grad()
def teacher_moments(
    predict: Predict,
    teacher: nn.Module,
    batches: Iterable[Batch],
    names: Iterable[str],
    layers: Mapping[str, str],
    groups: Mapping[str, Plan],
    squeezer: Squeezer,
) -> tuple[dict[str, RegressionMoments], dict[str, HeadMoments]]:
    """Moments of the inputs of the teacher's linear maps, by their names, and of its heads, by student block.

    Args:
        predict: Runs the teacher on a batch.
        teacher: A family of dit_shd.
        batches: For calibration.
        names: The names of the linear maps.
        layers: Student block -> teacher block.
        groups: The groups of teacher heads, by student block.
        squeezer: For the weights of the heads.
    """
    inputs = {name: RegressionMoments() for name in names}
    heads = {block: HeadMoments(sum(map(len, plan))) for block, plan in groups.items()}

    def sink(layer: str, captured: Capture) -> None:
        for block, plan in groups.items():
            if f"{layers[block]}.attn" == layer:
                heads[block].add(captured, plan, squeezer)

    with record_inputs(teacher, inputs, lambda name, x: inputs[name].add(x)), capture(teacher, sink=sink):
        for batch in batches:
            predict(teacher, batch)
    return inputs, heads


@torch.no_grad()
def student_moments(
    predict: Predict,
    teacher: nn.Module,
    batches: Iterable[Batch],
    maps: Sequence[LinearMap],
    kept: Mapping[str, Chosen],
    heads: Mapping[str, HeadMaps],
    layers: Mapping[str, str],
) -> dict[str, RegressionMoments]:
    """Moments of the inputs of student maps, if the activations that the student keeps equal the teacher's.

    A LayerNorm over fewer channels has other statistics, and merged heads have other maps: inputs behind either are
    computed with the student's operations.

    Args:
        predict: Runs the teacher on a batch.
        teacher: A family of dit_shd.
        batches: For calibration.
        maps: Student maps with fewer inputs than the teacher's.
        kept: Channels, by space.
        heads: The heads, by student block.
        layers: Student block -> teacher block.

    Returns:
        By the maps' names: moments of the student's inputs z with the teacher's x.
    """
    moments = {linear.name: RegressionMoments() for linear in maps}
    by_source: dict[str, list[LinearMap]] = {}
    for linear in maps:
        if linear.part != "attn.proj":
            by_source.setdefault(linear.source, []).append(linear)
    latest: dict[str, Tensor] = {}

    def add_input(name: str, x: Tensor) -> None:
        for linear in by_source[name]:
            space = kept[linear.reads]
            moments[linear.name].add(_normed(linear, space, latest) if linear.part in NORMED else space.of(x), x)

    def add_capture(layer: str, captured: Capture) -> None:
        for block, head_maps in heads.items():
            if f"{layers[block]}.attn" == layer:
                outputs = concatenated(head_outputs(captured))
                moments[f"{block}.attn.proj"].add(_student_outputs(captured, head_maps), outputs)

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: latest.update({name: output})

    with ExitStack() as stack:
        for name in {name for linear in maps for name in _norm_and_adaln(linear)}:
            stack.callback(teacher.get_submodule(name).register_forward_hook(keep(name)).remove)
        stack.enter_context(record_inputs(teacher, by_source, add_input))
        stack.enter_context(capture(teacher, sink=add_capture))
        for batch in batches:
            predict(teacher, batch)
    return moments


def concatenated(x: Tensor) -> Tensor:
    """Heads [b,h,n,d] as features [b,n,h d]."""
    return x.transpose(1, 2).flatten(2)


def head_outputs(capture: Capture) -> Tensor:
    """A V [b,h,n,d]."""
    if capture.mixed is not None:
        return capture.mixed
    return attend(capture.query, capture.key, capture.value, capture.scale, capture.bias)


def _student_outputs(capture: Capture, maps: HeadMaps) -> Tensor:
    """Outputs of the student's heads [b,n,g d'] for the teacher's queries, keys and values."""
    heads = len(maps.share)
    query, key, value = (
        (concatenated(x) @ c.to(x).t()).unflatten(2, (heads, -1)).transpose(1, 2)
        for x, c in ((capture.query, maps.query), (capture.key, maps.key), (capture.value, maps.value))
    )
    bias = capture.bias
    if isinstance(bias, RelativeBias):
        (table,) = bias.leaves
        bias = bias.rebuilt([table @ maps.share.to(table).t()])
    return concatenated(attend(query, key, value, query.shape[-1] ** -0.5, bias))


def _norm_and_adaln(linear: LinearMap) -> list[str]:
    """Names of the norm and the adaLN before a teacher's map; none for maps without them."""
    if linear.part not in NORMED:
        return []
    prefix = linear.source.removesuffix(linear.part)
    return [prefix + name for name in NORMED[linear.part][:2]]


def _normed(linear: LinearMap, space: Chosen, latest: Mapping[str, Tensor]) -> Tensor:
    """The student's modulated norm [b,n,z] of the channels that it keeps."""
    norm, adaln = (latest[name] for name in _norm_and_adaln(linear))
    first = NORMED[linear.part][2]
    chunks = adaln.unflatten(-1, (-1, space.width)).unbind(1)
    shift, scale = (chunk[:, None] for chunk in chunks[first : first + 2])
    z = space.of(norm)
    return modulate(layer_norm(z, z.shape[-1:], eps=1e-6), space.of(shift), space.of(scale))
