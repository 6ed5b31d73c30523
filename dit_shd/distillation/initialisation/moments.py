"""What a teacher's heads do on calibration batches: moments, and their weights in the squeeze.

Hooks add each batch to running sums; no activation is kept.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.streamed import attend
from dit_shd.distillation.initialisation.heads import Moments
from dit_shd.distillation.initialisation.refit import Predict
from dit_shd.distillation.initialisation.regression import RegressionMoments
from dit_shd.squeezing.plans import Plan
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.squeezing.squeezer import Squeezer
from dit_shd.tasks import Batch


class HeadMoments:
    """Moments of the queries, keys and head outputs of one teacher layer, and mean weights of its squeeze."""

    def __init__(self, heads: int):
        self.query, self.key, self.output = RegressionMoments(), RegressionMoments(), RegressionMoments()
        self.weight = torch.zeros(heads, dtype=torch.float64)
        self._samples = 0

    def add(self, capture: Capture, groups: Plan, squeezer: Squeezer, row_weight: Tensor | None = None) -> None:
        """Add the capture of one batch.

        Args:
            capture: Of the layer.
            groups: Of its heads.
            squeezer: For the weights of the heads.
            row_weight: Of the tokens [b,n]; those of 0, as padding, take no part. None: all do.
        """
        outputs = head_outputs(capture)
        for moments, x in ((self.query, capture.query), (self.key, capture.key), (self.output, outputs)):
            rows = x.transpose(1, 2).flatten(2)
            moments.add(rows if row_weight is None else rows[row_weight > 0])
        options: Any = {"seed": squeezer.seed, "projections": squeezer.projections, "row_weight": row_weight}
        squeezed = squeeze(capture, len(groups), groups, squeezer.method, **options)
        mean = squeezed.weight.mean((0, 2)).double().cpu()
        samples = capture.shape[0]
        self._samples += samples
        self.weight += (mean - self.weight) * samples / self._samples

    def moments(self) -> Moments:
        """Of the queries, the keys and the outputs."""
        return self.query.second(), self.key.covariance(), self.output.covariance()


@torch.no_grad()
def head_moments(
    predict: Predict,
    teacher: nn.Module,
    batches: Iterable[Batch],
    layers: Mapping[str, str],
    groups: Mapping[str, Plan],
    squeezer: Squeezer,
) -> dict[str, HeadMoments]:
    """Moments of a teacher's heads, by the attention of the student that is made of them; none without batches.

    Args:
        predict: Runs the teacher on a batch.
        teacher: Any model whose attention is captured.
        batches: For calibration.
        layers: Student attention -> teacher attention.
        groups: The groups of teacher heads, by student attention.
        squeezer: For the weights of the heads.
    """
    heads: dict[str, HeadMoments] = {}
    for batch in batches:

        def sink(layer: str, captured: Capture, batch: Batch = batch) -> None:
            weight = batch.row_weight(captured.shape[2])
            for name, plan in groups.items():
                if layers[name] == layer:
                    heads.setdefault(name, HeadMoments(captured.heads)).add(captured, plan, squeezer, weight)

        with capture(teacher, sink=sink):
            predict(teacher, batch)
    return heads


def head_outputs(capture: Capture) -> Tensor:
    """A V [b,h,n,d]."""
    if capture.mixed is not None:
        return capture.mixed
    return attend(capture.query, capture.key, capture.value, capture.scale, capture.bias, capture.causal)
