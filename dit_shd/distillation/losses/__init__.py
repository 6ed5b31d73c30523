"""Distillation losses, one file each: functions of both models' outputs, attention and hidden states in one pass."""

from dit_shd.core.plugins import PluginFolder
from dit_shd.distillation.frozen import Frozen
from dit_shd.distillation.layer_loss import LayerLoss, Pairs
from dit_shd.distillation.loss import Loss
from dit_shd.distillation.records import LAYERS, Forward, Layer, Layers, Needs, Reads, Term
from dit_shd.distillation.schedule import Weight

__all__ = [
    "LAYERS",
    "LOSSES",
    "Forward",
    "Frozen",
    "Layer",
    "LayerLoss",
    "Layers",
    "Loss",
    "Needs",
    "Pairs",
    "Reads",
    "Term",
    "Weight",
    "alternatives",
]

LOSSES = PluginFolder(__name__, Loss, "losses")


def alternatives(loss: type[Loss], need: Needs) -> str:
    """The losses that read what a loss reads and lack one of its needs, for its errors.

    Args:
        loss: The class of the loss.
        need: Which the models do not meet.
    """
    needs = {need, Needs.EQUAL_HEADS} if need is Needs.FEWER_HEADS else {need}
    classes = {name: LOSSES.find(name) for name in LOSSES.names()}
    return ", ".join(name for name, other in classes.items() if other.reads & loss.reads and not needs & other.needs)
