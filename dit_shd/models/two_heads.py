"""Classifiers of timm with a head for labels and one for a teacher (DeiT distilled, LeViT): here their mean learns."""

from collections.abc import Iterator

from torch import nn


def remark(student: nn.Module) -> Iterator[str]:
    """A line where a student has two heads: DeiT's distillation has a target for each (arXiv 2012.12877).

    Args:
        student: Of timm, or another.
    """
    network = getattr(student, "network", student)
    if isinstance(getattr(network, "head_dist", None), nn.Linear):
        yield (
            "student: has a head for labels and one for a teacher, and learns through their mean alone, as it is "
            "evaluated: not DeiT's distillation, where each has its own target"
        )
