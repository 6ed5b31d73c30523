"""Where the W^O of an attention layer is, and how it is read when it is wanted.

A bare parameter is read as it is. Of anything else (adapters, quantised, parametrised or cast weights) W^O is what its
own product makes of unit rows. Weights that are at hand only while the product runs (sharded, offloaded) are taken
then.

What is known of a model refers to its modules weakly; a capture holds on to the module whose weights it will read, so
that it may outlive the model.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import WeightSource
from dit_shd.attention.recording.arrangement import Arrangement
from dit_shd.attention.recording.products import Product, products
from dit_shd.attention.recording.sdpa_calls import Given
from dit_shd.attention.recording.unit_response import hooks_of_users, matrix
from dit_shd.attention.recording.weight_samples import sample_of, unchanged
from dit_shd.core.dtensor import local

IN_TRAINING = "its weights are in training, and not kept; run a teacher under torch.no_grad()"


@dataclass(frozen=True, eq=False)
class Projection(ABC):
    """Something that holds W^O, as h d of its input columns starting at `first`."""

    name: str
    """Of the module, in the model it was found in."""
    first: int

    @abstractmethod
    def by_head(self, heads: int, width: int) -> Tensor | str:
        """W^O [h,d,e] without a graph, or the reason why it cannot be had."""

    @property
    @abstractmethod
    def identity(self) -> tuple[object, ...]:
        """What two places of the same W^O have in common."""

    @property
    @abstractmethod
    def holder(self) -> nn.Module | None:
        """The module whose weights are read, while it exists."""

    def weight(self) -> Tensor | None:
        """The parameter that is read when W^O is wanted, if it is one."""
        return None

    @property
    def numbers(self) -> tuple[object, ...]:
        """Kinds, types and places of the numbers that are read: of others (cast, moved) nothing is known."""
        return _numbers(self.weight())

    def source(self, heads: int, width: int) -> WeightSource:
        """What gives W^O of the forward under way, when it is wanted; it keeps the module."""
        holder, sample = self.holder, sample_of(self.weight())
        if sample is not None and not isinstance(self.weight(), nn.Parameter):  # there for this forward alone
            weights = self.by_head(heads, width)
            copied = weights if isinstance(weights, str) else weights.clone()
            return lambda: copied

        def read() -> Tensor | str:
            if holder is None:
                return f"the module {self.name} does not exist any more"
            if sample is not None and not unchanged(sample, self.weight(), self.name):
                return (
                    f"the weights of {self.name} have changed since the forward; take the loss before they do, or give "
                    "a copy of the model (copy.deepcopy) as the teacher"
                )
            return self.by_head(heads, width)

        return read

    def same(self, other: "Projection | None") -> bool:
        """Whether both are one."""
        return other is not None and self.identity == other.identity


@dataclass(frozen=True, eq=False)
class OwnedProjection(Projection):
    """One that a parameter of a module gives, which stays where it is."""

    owner: "ref[nn.Module]"
    parameter: str

    @property
    def identity(self) -> tuple[object, ...]:
        return self.owner, self.parameter, self.first

    @property
    def holder(self) -> nn.Module | None:
        return self.owner()

    def weight(self) -> Tensor | None:
        return getattr(self.owner(), self.parameter, None)


@dataclass(frozen=True, eq=False)
class ParameterProjection(OwnedProjection):
    """The parameter itself."""

    transposed: bool
    """Stored [in,out], as GPT-2 does, instead of [out,in]."""

    def by_head(self, heads: int, width: int) -> Tensor | str:
        weight = self.weight()
        if weight is None or weight.device.type == "meta":
            return f"the weight of {self.name} is not there any more"
        weight = local(weight.detach())
        weight = weight.flatten(1) if weight.ndim > 2 else weight
        weight = weight if self.transposed else weight.t()
        if weight.ndim != 2 or len(weight) < self.first + heads * width:
            return f"the weight of {self.name} has another shape than in the first forward: {list(weight.shape)}"
        return weight[self.first : self.first + heads * width].unflatten(0, (heads, width))


@dataclass(frozen=True, eq=False)
class ModuleProjection(Projection):
    """A module that is linear in its rows: what it makes of unit rows."""

    module: "ref[nn.Module]"
    like: Tensor
    """An input of the module without memory (on meta), for its shape."""
    device: torch.device
    arrangement: Arrangement
    more: Given = ((), {})
    """Its other arguments."""
    hooked: bool = False
    """Whether hooks of its users have a part in it."""

    @property
    def identity(self) -> tuple[object, ...]:
        return self.module, self.first

    @property
    def numbers(self) -> tuple[object, ...]:
        module = self.module()
        if module is None:
            return ()
        return (*(_numbers(each) for each in module.parameters()), *hooks_of_users(module))

    @property
    def trains(self) -> bool:
        """Whether its weights are in training."""
        module = self.module()
        return torch.is_grad_enabled() and module is not None and any(p.requires_grad for p in module.parameters())

    def of_run(self, given: Given, k: int) -> Tensor | str:
        """W^O [k,e] with the other arguments of a run that has just ended, or why it cannot be had."""
        args, kwargs = given
        if self.trains:
            return IN_TRAINING
        if not args or not isinstance(args[0], Tensor):
            return f"{self.name} was given its rows by name, or none, other than in the first forward"
        return replace(self, like=args[0].to("meta"), device=args[0].device, more=(args[1:], kwargs)).weights(k)

    @property
    def holder(self) -> nn.Module | None:
        return self.module()

    def source(self, heads: int, width: int) -> WeightSource:
        """At once, since adapters may be switched before it is wanted; when it is wanted, of a model in training."""
        if self.trains:
            return super().source(heads, width)
        weights = self.by_head(heads, width)
        return lambda: weights

    def by_head(self, heads: int, width: int) -> Tensor | str:
        weights = self.weights(heads * width)
        return weights if isinstance(weights, str) else weights.unflatten(0, (heads, width))

    def weights(self, k: int) -> Tensor | str:
        """W^O [k,e], or why it cannot be had."""
        module = self.module()
        if module is None:
            return f"{self.name} is not there any more"
        like = torch.empty_like(self.like, device=self.device)
        args, kwargs = self.more
        try:
            asked = like, self.arrangement, self.first, k, module, self.hooked
            return matrix(lambda x: module(x, *args, **kwargs), *asked)[0]
        except Exception as error:
            return f"{self.name} could not be asked for its weights: {error}"


@dataclass(frozen=True, eq=False)
class FunctionProjection(OwnedProjection):
    """What a function makes of it, however it lies."""

    evaluate: Callable[[Tensor, int, int], Tensor]
    """(parameter, first, k) -> [k,e]"""

    def by_head(self, heads: int, width: int) -> Tensor | str:
        weight = self.weight()
        if weight is None:
            return f"the weight of {self.name} is not there any more"
        try:
            return self.evaluate(weight, self.first, heads * width).unflatten(0, (heads, width))
        except Exception as error:
            return f"{self.name} could not be asked for its weights: {error}"


@dataclass(frozen=True, eq=False)
class PassingProjection(Projection):
    """A product whose weights are at hand only while it runs: it is watched in every forward."""

    module: "ref[nn.Module]"
    ordinal: int
    """The number of the product among those of one run of the module."""
    k: int
    at: int | str = 0
    """The position or name of the argument that holds the rows."""
    arrangement: Arrangement = "last"
    """How the rows lie in it."""
    whole: ModuleProjection | None = None
    """The module, if it is to be asked as a whole when it has run."""
    taken: list[list[Tensor | str]] = field(default_factory=lambda: [[]])
    """What the forward under way has shown, [k,e], in a list of its own."""

    @property
    def identity(self) -> tuple[object, ...]:
        return self.module, self.ordinal, self.first

    @property
    def holder(self) -> nn.Module | None:
        return self.module()

    @property
    def waits(self) -> bool:
        """Whether it has not run in the forward under way."""
        return not self.taken[0]

    def begin(self) -> None:
        """Another forward begins."""
        self.taken[0] = []

    def among(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
        """The product of its rows in a call of a function that multiplies."""
        return next((product for product in products(function, args, kwargs) if product.at == self.at), None)

    def take(self, product: Product | None, given: Given = ((), {})) -> None:
        """The product runs; or the module has run, of what it was given."""
        if self.waits and product is not None and self.whole is None:
            self.taken[0].append(weights_of(product, self.arrangement, self.first, self.k))
        elif self.waits and product is None and self.whole is not None:
            self.taken[0].append(self.whole.of_run(given, self.k))

    def source(self, heads: int, width: int) -> WeightSource:
        return functools.partial(self._of, self.taken[0], heads, width)

    def by_head(self, heads: int, width: int) -> Tensor | str:
        return self._of(self.taken[0], heads, width)

    def _of(self, taken: list[Tensor | str], heads: int, width: int) -> Tensor | str:
        if not taken:
            return f"the weights of {self.name} are at hand only while it runs, and it was not seen to run"
        return taken[0] if isinstance(taken[0], str) else taken[0].unflatten(0, (heads, width))


def weights_of(product: Product, arrangement: Arrangement, first: int, k: int) -> Tensor | str:
    """A copy of the weights [k,e] of a product; of a model that is in training, the reason why there is none."""
    weight = product.weight
    if torch.is_grad_enabled() and weight is not None and weight.requires_grad:
        return IN_TRAINING
    try:
        if weight is not None and type(weight) in (Tensor, nn.Parameter):
            weight = weight if product.transposed else weight.t()
            return weight[first : first + k].detach().clone()
        return matrix(product.of, product.rows, arrangement, first, k)[0]
    except Exception as error:
        return f"its product could not be asked for its weights: {error}"


def _numbers(weight: Tensor | None) -> tuple[object, ...]:
    if weight is None:
        return ()
    kind = None if type(weight) in (Tensor, nn.Parameter) else type(weight)
    return kind, weight.dtype, weight.device
