"""A small model's shape, and batches for it, for tests of one step."""

import torch
from diffusers.configuration_utils import FrozenDict

from dit_shd.tasks.diffusion import NoisyBatch

SMALL = dict(
    sample_size=8,
    patch_size=2,
    in_channels=1,
    num_classes=3,
    num_layers=4,
    decode_layer=2,
    attention_head_dim=4,
)


def batch_of(x, t=(1, 500), labels=(0, 0), step=0, first=0):
    """Images that are their own noise and noised version."""
    indices = torch.arange(first, first + len(x))
    return NoisyBatch("plain", step, indices, x, x, x, torch.tensor(t), torch.tensor(labels))


class Says(torch.nn.Module):
    """A model that always gives one output [b,2c,y,x]."""

    def __init__(self, output):
        super().__init__()
        self.output, self.config = output, FrozenDict({"num_classes": 3})
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_t, t, class_labels, return_dict):
        return (self.output,)
