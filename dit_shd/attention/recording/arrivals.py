"""Where the results of attention arrive, found by watching one forward: that is where W^O is.

No list of names: while the model runs once, the rows of each attention result [b,n,h d] are looked for among the rows
that reach a matrix product, or a module that is linear in its rows. In joint text-image attention the image tokens'
rows arrive at one projection and the text tokens' at another; in blocks that also hold an MLP they arrive as the first
columns of a wider input. Rows that arrive nowhere were changed on the way (by a gate, say), and then no W^O of the
paper exists.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from dit_shd.attention.recording import projection as at
from dit_shd.attention.recording.arrangement import Arrangement, rows_of, rows_of_result
from dit_shd.attention.recording.discovery import plain
from dit_shd.attention.recording.products import Product, products
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.results import Part, Result, address, same_memory

NEAR = 0.02
"""How far a module's result may be from that of the weights it seems to have, relatively: half precision's rounding."""


@dataclass(frozen=True, eq=False)
class _Holds:
    """Rows of an attention result, found in a tensor."""

    result: "Result"
    tokens: Tensor
    arrangement: Arrangement
    first: int


@dataclass(eq=False)
class Entered:
    """A module that was given rows of attention results."""

    module: nn.Module
    given: Tensor
    more: tuple[tuple[Any, ...], dict[str, Any]]
    holds: list[_Holds]
    known: dict["Result", int]
    """How many arrivals each result had before."""
    products: list[tuple[Product, Any]]
    """What multiplied in it, and the results."""


class Arrivals:
    """Looks for attention results in what runs after them."""

    def __init__(self, root: nn.Module):
        self.busy = False
        """Whether what runs is our own doing."""
        self._names = {module: plain(path) for path, module in root.named_modules()}
        self._parameters: dict[int, tuple[nn.Module, str]] = {}
        self._storages: dict[int, Tensor] = {}
        for module in self._names:
            for name, parameter in module._parameters.items():
                if parameter is not None and _resident(parameter):
                    self._parameters[id(parameter)] = module, name
                    self._storages[address(parameter)] = parameter
        self._results: list[Result] = []
        self._entered: list[Entered] = []

    def attention(self, result: Tensor) -> None:
        """Attention gave this [b,h,n,d]; its rows are looked for from now on."""
        if result.ndim == 3:
            result = result[:, None]
        if result.ndim == 4 and not result.is_nested:
            self._results.append(Result(result))

    def parts(self, mixed: Tensor, layer: str, layers: Collection[str]) -> list[Part]:
        """Where the rows of one result of `layer` arrived, in the order of their tokens.

        What another of the attention `layers` does with them (as its queries, say) is not a W^O.
        """
        arrivals = self._of(mixed)
        others = [f"{other}." for other in layers if other != layer and not layer.startswith(f"{other}.")]
        chosen: list[Part] = []
        for part in sorted(arrivals, key=lambda each: -len(each.tokens)):  # stable: the first of equals
            foreign = any(part.projection.name.startswith(other) for other in others)
            if not foreign and not any(bool(torch.isin(part.tokens, known.tokens).any()) for known in chosen):
                chosen.append(part)
        return sorted(chosen, key=lambda each: int(each.tokens[0]))

    def reason(self, mixed: Tensor) -> str:
        """What stands between a result and the products after it, for one that arrived nowhere."""
        found = next((result for result in self._results if result.is_of(mixed)), None)
        return "" if found is None else found.reason

    def silent(self, mixed: Tensor) -> bool:
        """Whether a result was all zeros, which could be anybody's rows."""
        return not bool(mixed.any())

    def _of(self, mixed: Tensor) -> list[Part]:
        return next((result.arrivals for result in self._results if result.is_of(mixed)), [])

    @torch.no_grad()
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entered | None:
        """A module begins to run."""
        given = args[0] if args else next(iter(kwargs.values()), None)
        if self.busy or not self._results or not isinstance(given, Tensor) or not given.is_floating_point():
            return None
        holds = list(self._look(given, ("last", "channels", "heads"), wide=True))
        if not holds or not args:
            return None
        known = {hold.result: len(hold.result.arrivals) for hold in holds}
        self._entered.append(Entered(module, given, (args[1:], kwargs), holds, known, []))
        return self._entered[-1]

    @torch.no_grad()
    def leave(self, entered: Entered, output: Any) -> None:
        """The module has run: if it is linear in its rows and more than one product, it is the projection itself."""
        self._entered.remove(entered)
        made = output[0] if isinstance(output, (tuple, list)) and output else output
        if self.busy or not isinstance(made, Tensor) or not made.is_floating_point():
            return
        inner = entered.products
        if (
            len(inner) == 1
            and same_memory(inner[0][1], made)
            and any(len(hold.result.arrivals) > entered.known[hold.result] for hold in entered.holds)
        ):
            return
        if any(True for _ in self._look(made, ("last", "channels", "heads"), wide=False)):
            return  # it only hands them on
        for hold in entered.holds:
            self._whole(entered, hold, made)

    def _whole(self, entered: Entered, hold: _Holds, made: Tensor) -> None:
        """Put the module in place of what was found inside of it, if it is linear."""
        name, new = self._names.get(entered.module, ""), hold.result.arrivals[entered.known[hold.result] :]
        args, kwargs = entered.more
        k = hold.result.columns
        found = at.ModuleProjection(
            name, hold.first, ref(entered.module), entered.given.to("meta"), entered.given.device, hold.arrangement,
            entered.more,
        )  # fmt: skip
        self.busy = True
        weight: Tensor | None = None
        try:
            weight, bias = at.matrix(
                lambda x: entered.module(x, *args, **kwargs), entered.given, hold.arrangement, hold.first, k
            )
            weight = weight if _near(made, entered.given, hold, weight, bias) else None
        except Exception:  # it takes no such rows, so it is not linear in them
            weight = None
        finally:
            self.busy = False
        if weight is not None and not _diagonal(weight):
            del hold.result.arrivals[entered.known[hold.result] :]
            stays = all(id(parameter) in self._parameters for parameter in entered.module.parameters())
            if not stays:
                found = at.PassingProjection(name, hold.first, ref(entered.module), -1, k, found, [[weight]])
            hold.result.arrivals.append(Part(hold.tokens, found))
        elif len({part.projection.identity for part in new}) > 1 and entered.module not in self._holders():
            hold.result.reason = f"it arrives at several products inside of {name}, which is not linear in its rows"
            del hold.result.arrivals[entered.known[hold.result] :]

    def _holders(self) -> set[nn.Module]:
        return {entered.module for entered in self._entered}

    @torch.no_grad()
    def product(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, module: nn.Module, ordinal: int
    ) -> None:
        """A function that multiplies has run, as the `ordinal`th of this run of a module."""
        for product in products(function, args, kwargs):
            for entered in self._entered:
                entered.products.append((product, made))
            for hold in self._look(product.rows, product.arrangements, wide=True, tire=True):
                found = self._place(product, hold, module, ordinal)
                if found is not None:
                    hold.result.arrivals.append(Part(hold.tokens, found))

    def _look(
        self, given: Any, arrangements: Collection[Arrangement], wide: bool, tire: bool = False
    ) -> Iterator[_Holds]:
        """The results whose rows a tensor holds, with `wide` as the first or last columns of longer rows, too."""
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.is_nested:
            return
        given = at.local(given)
        for result in [result for result in self._results if result.patience > 0]:
            result.patience -= tire
            for arrangement in arrangements:
                if given.ndim < {"last": 1, "channels": 3, "heads": 3, "heads first": 4}[arrangement]:
                    continue
                rows, k = rows_of(given, arrangement), result.columns
                if rows.shape[-1] < k or (rows.shape[-1] > k and not wide):
                    continue
                for first in sorted({0, rows.shape[-1] - k}):
                    tokens = result.among(rows[..., first : first + k])
                    if len(tokens):
                        yield _Holds(result, tokens, arrangement, first)
                        break
                else:
                    continue
                break

    def _place(self, product: Product, hold: _Holds, module: nn.Module, ordinal: int) -> Projection | None:
        """What holds the weights of a product."""
        weight, k = product.weight, hold.result.columns
        owner = None if weight is None else self._parameter(weight)
        if owner is not None and weight is not None:
            holder, name, flipped = owner
            return at.ParameterProjection(
                self._names[holder], hold.first, ref(holder), name, product.transposed is not flipped
            )
        others = [x for x in (*product.args, *product.kwargs.values()) if isinstance(x, nn.Parameter)]
        if weight is None and len(others) == 1 and id(others[0]) in self._parameters:
            return self._function(product, hold, others[0])
        name = self._names.get(module, "")
        passing = at.PassingProjection(name, hold.first, ref(module), ordinal, k)
        self.busy = True
        try:
            passing.take(product, hold.arrangement)
        finally:
            self.busy = False
        return passing

    def _function(self, product: Product, hold: _Holds, parameter: nn.Parameter) -> Projection:
        holder, name = self._parameters[id(parameter)]
        like, arrangement = product.rows.to("meta"), hold.arrangement
        rows, function = product.rows, product.function
        positions = tuple(i for i, x in enumerate(product.args) if x is parameter)
        template = tuple(None if x is rows or x is parameter else x for x in product.args)
        at_rows = product.at

        def evaluate(weight: Tensor, first: int, k: int) -> Tensor:
            def call(x: Tensor) -> Any:
                args = [weight if i in positions else x if i == at_rows else y for i, y in enumerate(template)]
                return function(*args)

            return at.matrix(call, torch.empty_like(like, device=weight.device), arrangement, first, k)[0]

        return at.FunctionProjection(self._names[holder], hold.first, ref(holder), name, evaluate)

    def _parameter(self, weight: Tensor) -> tuple[nn.Module, str, bool] | None:
        """The module and name of the parameter that is a product's weight, and whether it was transposed on the way."""
        if id(weight) in self._parameters and (type(weight) in (Tensor, nn.Parameter) or hasattr(weight, "placements")):
            return (*self._parameters[id(weight)], False)
        parameter = self._storages.get(address(weight)) if type(weight) in (Tensor, nn.Parameter) else None
        if parameter is None or parameter.numel() != weight.numel() or parameter.dtype != weight.dtype:
            return None
        flat = parameter.flatten(1) if parameter.ndim > 2 else parameter
        if flat.shape == weight.shape and flat.stride() == weight.stride():
            return (*self._parameters[id(parameter)], False)
        if flat.t().shape == weight.shape and flat.t().stride() == weight.stride():
            return (*self._parameters[id(parameter)], True)
        return None


def _resident(parameter: Tensor) -> bool:
    """Whether a parameter has its numbers at hand between forwards, or its process's part of a parallel one."""
    if hasattr(parameter, "placements"):
        return any(getattr(each, "dim", None) == 1 for each in parameter.placements)  # type: ignore[attr-defined]
    return parameter.device.type != "meta" and parameter.numel() > 0


def _near(made: Tensor, given: Tensor, hold: _Holds, weight: Tensor, bias: Tensor) -> bool:
    """Whether a module's result is that of weights [k,e] on its rows."""
    rows, k = rows_of(at.local(given), hold.arrangement), len(weight)
    if rows.shape[-1] != k:
        return True  # columns of something else take part: what it is was not measured
    wide = torch.promote_types(weight.dtype, torch.float32)
    want = rows.to(wide) @ weight.to(wide) + bias.to(wide)
    found = rows_of_result(at.local(made), hold.arrangement).to(wide)
    return found.numel() == want.numel() and bool((found.reshape(want.shape) - want).norm() <= NEAR * want.norm())


def _diagonal(weight: Tensor) -> bool:
    """Whether weights [k,e] only scale."""
    return weight.shape[0] == weight.shape[1] and bool((weight - weight.diagonal().diag()).count_nonzero() == 0)
