"""Moments of the inputs of the teacher's linear maps, and of its heads, on calibration batches.

Hooks add each batch to running sums; no activation is kept.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.streamed import attend
from dit_shd.distillation.initialisation.regression import RegressionMoments
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks import Batch

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


def concatenated(x: Tensor) -> Tensor:
    """Heads [b,h,n,d] as features [b,n,h d]."""
    return x.transpose(1, 2).flatten(2)


def head_outputs(capture: Capture) -> Tensor:
    """A V [b,h,n,d]."""
    if capture.mixed is not None:
        return capture.mixed
    return attend(capture.query, capture.key, capture.value, capture.scale, capture.bias)
