"""Stochastic depth (Huang et al., arXiv 1603.09382) whose draws come with the batch.

timm's DropPath draws from torch's global generator, so its result depends on how a batch is divided among processes
and micro batches. Here every sample has its own draws, one for each branch.
"""

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drops a residual branch for some samples, and scales it up for the others.

    Args:
        rate: The probability that a sample's branch is dropped.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None
        """Uniform numbers [b] of the current batch, by set_draws; recomputed blocks use them once more."""

    def forward(self, x: Tensor) -> Tensor:
        """The branch x [b,...]: divided by the probability to keep it where it is kept, 0 where it is dropped."""
        if not self.training or self.rate == 0:
            return x
        draws = x.new_empty(len(x)).uniform_() if self.draws is None else self.draws
        mask = (draws >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * mask.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """The rate, for torch's repr."""
        return f"rate={self.rate:.3f}"


def branches(model: nn.Module) -> list[StochasticDepth]:
    """The StochasticDepth modules of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def set_draws(model: nn.Module, draws: Tensor) -> None:
    """Set the draws of the next forward; a model in evaluation, a teacher, drops nothing and has none.

    Args:
        model: With StochasticDepth modules.
        draws: Uniform numbers in [0, 1) [b, branches].
    """
    if not model.training:
        return
    for index, branch in enumerate(branches(model)):
        branch.draws = draws[:, index]


def replace_drop_paths(model: nn.Module, wanted: bool = True) -> None:
    """Replace every DropPath of timm by a StochasticDepth, or by the identity.

    Args:
        model: A network of timm.
        wanted: Whether there is to be any; else none stays, whatever rate the architecture has of itself.
    """
    from timm.layers.drop import DropPath

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(float(child.drop_prob or 0)) if wanted else nn.Identity())
