"""Stochastic depth (Huang et al., arXiv 1603.09382) whose draws come with the batch.

timm's DropPath draws from torch's global generator, so what is left out would depend on how a batch is divided among
processes and micro batches. Here every sample brings its own numbers, one for each branch that may be left out.
"""

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for some samples, and scales it up for the others.

    Args:
        rate: the probability that a sample's branch is left out.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None
        """Uniform numbers [b] of the batch that runs; see give_draws. They stay until the next batch, since recomputed
        blocks need them once more."""

    def forward(self, x: Tensor) -> Tensor:
        """The branch x[b,...], where it is kept divided by the probability to keep it, elsewhere 0."""
        if not self.training or self.rate == 0:
            return x
        draws = x.new_empty(len(x)).uniform_() if self.draws is None else self.draws
        mask = (draws >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * mask.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """As torch shows it."""
        return f"rate={self.rate:.3f}"


def branches(model: nn.Module) -> list[StochasticDepth]:
    """Those of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def give_draws(model: nn.Module, draws: Tensor) -> None:
    """Say what the next forward leaves out.

    Args:
        draws: uniform numbers in [0, 1) [b, branches].
    """
    for index, branch in enumerate(branches(model)):
        branch.draws = draws[:, index]


def replace_drop_paths(model: nn.Module) -> None:
    """Put a StochasticDepth in place of every DropPath of timm."""
    from timm.layers.drop import DropPath

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, DropPath):
                setattr(module, name, StochasticDepth(float(child.drop_prob or 0)))
