"""Stochastic depth (Huang et al., arXiv 1603.09382) whose draws come with the batch.

timm's DropPath draws from torch's global generator, so its result depends on how a batch is divided among processes
and micro batches. Here every sample has its own draws, one for each branch.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drops a residual branch for some samples, and scales it up for the others.

    Args:
        rate: The probability that a sample's branch is dropped.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.calls = 1
        """Calls of a forward, each of a branch of its own: some of timm's blocks have one module for all of theirs."""
        self.draws: Tensor | None = None
        """Uniform numbers [b, calls] of the current batch, by set_draws; recomputed blocks use them once more."""
        self.call = 0
        """Which of them is next. A block that is recomputed makes all of its calls again."""

    def forward(self, x: Tensor) -> Tensor:
        """The branch x [b,...]: divided by the probability to keep it where it is kept, 0 where it is dropped.

        Of [b n,...], n windows or patches of each sample, all of a sample's are kept or dropped.
        """
        if not self.training or self.rate == 0:
            return x
        if self.draws is None:
            draws = x.new_empty(len(x)).uniform_()
        else:
            draws = self.draws[:, self.call].repeat_interleave(len(x) // len(self.draws))
            self.call = (self.call + 1) % self.calls
        mask = (draws >= self.rate).to(x.dtype) / (1 - self.rate)
        return x * mask.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """The rate, for torch's repr."""
        return f"rate={self.rate:.3f}"


def _modules(model: nn.Module) -> list[StochasticDepth]:
    """The StochasticDepth modules of a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def branches(model: nn.Module) -> int:
    """The branches of a model that may be dropped."""
    return sum(module.calls for module in _modules(model))


def set_draws(model: nn.Module, draws: Tensor) -> None:
    """Set the draws of the next forward; a model in evaluation, a teacher, drops nothing and has none.

    Args:
        model: With StochasticDepth modules.
        draws: Uniform numbers in [0, 1) [b, branches].
    """
    if not model.training:
        return
    modules = _modules(model)
    for module, columns in zip(modules, draws.split([module.calls for module in modules], dim=1)):
        module.draws, module.call = columns, 0


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


def count_calls(model: nn.Module, shape: Sequence[int]) -> None:
    """Find how often each StochasticDepth is called, by a forward of one image in evaluation.

    Args:
        model: In training mode, on any device.
        shape: Of an image [c,y,x].
    """
    modules, counts = _modules(model), Counter[nn.Module]()
    hooks = [module.register_forward_hook(lambda module, _, __: counts.update([module])) for module in modules]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    for module in modules:
        module.calls = max(1, counts[module])
