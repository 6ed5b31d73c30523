"""A frozen model that a loss holds for itself."""

from typing import Any

import torch
from torch import nn


class Frozen:
    """A frozen model of a loss, such as an image encoder, run without gradients.

    It is no submodule of the loss, so it is never saved, averaged, sharded or synchronised; it moves with the loss.

    Args:
        model: Set to evaluation, its parameters frozen.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, *inputs: object, **options: object) -> Any:  # noqa: ANN401
        """Run the model.

        Args:
            inputs: The inputs of its forward.
            options: The options of its forward.

        Returns:
            What it gives, without a graph.
        """
        return self.model(*inputs, **options)
