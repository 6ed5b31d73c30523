"""Where the results of attention arrive, found by watching one forward: that is where W^O is.

No list of names: while the model runs once, the rows of each attention result [b,n,h d] are looked for among the rows
that reach a matrix product, or a module that is linear in its rows. In joint text-image attention the image tokens'
rows arrive at one projection and the text tokens' at another; in blocks that also hold an MLP they arrive as the first
columns of a wider input. Rows that arrive nowhere were changed on the way (by a gate, say), and then no W^O of the
paper exists.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.attention.recording import projection as at
from dit_shd.attention.recording.arrangement import Arrangement, rows_of
from dit_shd.attention.recording.discovery import NO_PROJECTION, is_dropping_adapter, plain
from dit_shd.attention.recording.fingerprints import fingerprints
from dit_shd.attention.recording.parameters import Parameters
from dit_shd.attention.recording.products import Product, is_product, products
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.results import AttentionResult, Part
from dit_shd.attention.recording.storage import same_memory
from dit_shd.attention.recording.unit_response import (
    asking,
    is_asking,
    is_diagonal,
    is_of_weights,
    matrix,
    weights_of_module,
)
from dit_shd.core.dtensor import local

_BENDS = {
    torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.hardsigmoid, F.logsigmoid, torch.tanh, Tensor.tanh, F.tanh,
    torch.softmax, Tensor.softmax, F.softmax, F.silu, F.glu,
}  # fmt: skip
"""Functions that make a gate of what they are given."""


@dataclass(frozen=True, eq=False)
class _Holds:
    """Rows of an attention result, found in a tensor."""

    result: "AttentionResult"
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
    known: dict["AttentionResult", int]
    """How many arrivals each result had before."""
    products: list[tuple[Product, Any]]
    """What multiplied in it, and the results."""


class Arrivals:
    """Looks for attention results in what runs after them."""

    def __init__(self, root: nn.Module):
        self._names = {module: plain(path) for path, module in root.named_modules()}
        self._paths: dict[nn.Module | None, list[str]] = {}
        """Every path of each module: layers may share one."""
        for path, module in root.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(plain(path))
        self._parameters = Parameters(root)
        self._results: list[AttentionResult] = []
        self._entered: list[Entered] = []
        self._made: list[tuple[ref[Tensor], AttentionResult, Part]] = []
        """What the products that rows arrived at have given."""

    def attention(self, result: Tensor, mixed: Tensor) -> None:
        """Attention gave this, which is `mixed` [b,h,n,d] or [b,n,d]; its rows are looked for from now on."""
        if mixed.ndim in (3, 4) and not mixed.is_nested and not mixed.is_meta:
            self._results.append(AttentionResult(result, mixed[:, None] if mixed.ndim == 3 else mixed))

    def follow(self, function: Any, args: tuple[Any, ...], made: Any, module: nn.Module) -> None:
        """A function has run in a module: if it bends what a product gave, that product makes a gate."""
        if is_asking() or is_product(function):
            return
        for result in self._results:
            if result.patience > 0:
                result.follow(function, args, made, self._names.get(module, ""))
        bent = args[0] if function in _BENDS and args else None
        for product, result, part in self._made if bent is not None else ():
            if product() is bent and part in result.arrivals:
                result.arrivals.remove(part)
                name = getattr(function, "__name__", "a function")
                result.reason = (
                    f"what {part.projection.name} makes of it goes through {name}, so that is a gate, no W^O"
                )

    def parts(self, mixed: Tensor, layer: str, layers: Collection[str]) -> list[Part]:
        """Where the rows of one result of `layer` arrived, in the order of their tokens.

        What another of the attention `layers` does with them (as its queries, say) is not a W^O.
        """
        result = self._of(mixed)
        if result is None:
            return []
        others = [f"{other}." for other in layers if other != layer and not layer.startswith(f"{other}.")]
        chosen: list[Part] = []
        for part in sorted(result.arrivals, key=lambda each: -len(each.tokens)):  # stable: the first of equals
            paths = self._paths.get(part.projection.holder) or [part.projection.name]
            if all(path.startswith(tuple(others)) for path in paths):
                continue
            shared = [known for known in chosen if bool(torch.isin(part.tokens, known.tokens).any())]
            if not shared:
                chosen.append(part)
            elif not part.projection.same(shared[0].projection) and torch.equal(part.tokens, shared[0].tokens):
                names = " and ".join(dict.fromkeys(x.projection.name or "the model" for x in (shared[0], part)))
                result.reason = f"it arrives at several products (of {names}), so W^O is not known"
                return []
        return sorted(chosen, key=lambda each: int(each.tokens[0]))

    def reason(self, mixed: Tensor, failure: str) -> str:
        """Why a result arrived at no projection; failure: what went wrong while looking."""
        if mixed.is_meta:
            return "on the meta device there are no numbers by which its rows could be known again further on"
        result = self._of(mixed)
        if result is not None and result.reason:
            return result.reason
        if result is not None and result.overwritten and not result.changed:
            return "it was changed in place before any product took it, so W^O is not known"
        first = f"{result.changed} comes first: " if result is not None and result.changed else ""
        return failure or first + NO_PROJECTION

    def silent(self, mixed: Tensor) -> bool:
        """Whether a result was all zeros, which could be anybody's rows."""
        return not mixed.is_meta and not bool(mixed.any())

    def _of(self, mixed: Tensor) -> AttentionResult | None:
        return next((result for result in self._results if result.is_of(mixed)), None)

    @torch.no_grad()
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entered | None:
        """A module begins to run."""
        given = args[0] if args else next(iter(kwargs.values()), None)
        if is_asking() or not self._results or not isinstance(given, Tensor) or not given.is_floating_point():
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
        if is_asking() or not isinstance(made, Tensor) or not made.is_floating_point():
            return
        inner = entered.products
        new = [part.projection for hold in entered.holds for part in hold.result.arrivals[entered.known[hold.result] :]]
        watched = all(isinstance(each, at.PassingProjection) for each in new)
        if len(inner) == 1 and same_memory(inner[0][1], made) and new and not (watched and self._stays(entered)):
            return
        if any(True for _ in self._look(made, ("last", "channels", "heads"), wide=False)):
            return  # it only hands them on
        for hold in entered.holds:
            self._whole(entered, hold, made)

    def _whole(self, entered: Entered, hold: _Holds, made: Tensor) -> None:
        """Put the module in place of what was found inside of it, if it is linear."""
        name, new = self._names.get(entered.module, ""), hold.result.arrivals[entered.known[hold.result] :]
        k, like = hold.result.columns, entered.given.to("meta")
        with asking():
            rows = entered.given, made, hold.arrangement, hold.first, k
            weight, hooked = weights_of_module(entered.module, entered.more, *rows) or (None, False)
        projection = at.ModuleProjection(
            name, hold.first, ref(entered.module), like, entered.given.device, hold.arrangement, hooked=hooked
        )
        if weight is not None and not is_diagonal(weight):
            del hold.result.arrivals[entered.known[hold.result] :]
            if not self._stays(entered):
                projection = at.PassingProjection(
                    name, hold.first, ref(entered.module), -1, k, whole=projection, taken=[[weight]]
                )
            self._arrived(hold, projection, made)
        elif new and is_dropping_adapter(entered.module):
            hold.result.reason = f"{name} is an adapter that drops out, so W^O is not known; call .eval() of a teacher"
            del hold.result.arrivals[entered.known[hold.result] :]
        elif len({part.projection.identity for part in new}) > 1 and entered.module not in self._holders():
            hold.result.reason = f"it arrives at several products inside of {name}, which is not linear in its rows"
            del hold.result.arrivals[entered.known[hold.result] :]

    def _stays(self, entered: Entered) -> bool:
        """Whether a module may be asked for its weights between forwards: they stay, and it is given rows alone."""
        args, kwargs = entered.more
        alone, weights = all(x is None for x in (*args, *kwargs.values())), list(entered.module.parameters())
        return alone and bool(weights) and all(self._parameters.get(each) is not None for each in weights)

    def _arrived(self, hold: _Holds, projection: Projection, made: Tensor) -> None:
        part = Part(hold.tokens, projection)
        hold.result.arrivals.append(part)
        self._made.append((ref(made), hold.result, part))

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
                if function is torch.einsum and not self._is_linear(product, hold, made):
                    place, shape = self._names.get(module, "") or "the model", list(made.shape)
                    hold.result.reason = (
                        f"an einsum in {place} makes {shape} of it, which are no rows [...,e], so W^O is not known"
                    )
                    continue
                projection = self._place(product, hold, module, ordinal)
                if projection is not None:
                    self._arrived(hold, projection, made)

    def _look(
        self, given: Any, arrangements: Collection[Arrangement], wide: bool, tire: bool = False
    ) -> Iterator[_Holds]:
        """The results whose rows a tensor holds, with `wide` as the first or last columns of longer rows, too."""
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.is_nested:
            return
        known = [result for result in self._results if result.patience > 0 and not result.gated(given)]
        given = local(given)
        prints: dict[tuple[Arrangement, int, int], Tensor] = {}
        for result in known:
            result.patience -= tire
            for arrangement in arrangements:
                if given.ndim < {"last": 1, "channels": 3, "heads": 3, "heads first": 4}[arrangement]:
                    continue
                rows, k = rows_of(given, arrangement), result.columns
                if rows.shape[-1] < k or (rows.shape[-1] > k and not wide):
                    continue
                for first in sorted({0, rows.shape[-1] - k}):
                    part = rows[..., first : first + k]
                    if (arrangement, first, k) not in prints:
                        prints[arrangement, first, k] = fingerprints(part)
                    tokens = result.among(part, prints[arrangement, first, k])
                    if len(tokens):
                        yield _Holds(result, tokens, arrangement, first)
                        break
                else:
                    continue
                break

    def _is_linear(self, product: Product, hold: _Holds, made: Tensor) -> bool:
        """Whether a product's result [...,e] is its rows times one matrix: not by head, nor tokens after features."""
        width = rows_of(product.rows, hold.arrangement).shape[-1]
        with asking(), suppress(Exception):  # it may take no such rows
            weight, bias = matrix(product.of, product.rows, hold.arrangement, 0, width)
            whole = made.shape[-1] == weight.shape[1]  # else it has heads still
            ways = [made, made.transpose(0, 1)] if made.ndim == 3 else [made]  # tokens may come before samples
            return whole and any(is_of_weights(x, product.rows, hold.arrangement, weight, bias) for x in ways)
        return False

    def _place(self, product: Product, hold: _Holds, module: nn.Module, ordinal: int) -> Projection | None:
        """What holds the weights of a product."""
        weight, k = product.weight, hold.result.columns
        owner = None if weight is None else self._parameters.holding(weight, module)
        if owner is not None:
            held, flipped = owner
            return at.ParameterProjection(
                self._names[held.module], hold.first, ref(held.module), held.name, product.transposed is not flipped
            )
        others = [x for x in product.args if isinstance(x, Tensor) and x is not product.rows]
        if weight is None and not product.kwargs and len(others) == 1 and self._parameters.get(others[0]) is not None:
            return self._function(product, hold, others[0], module)
        name = self._names.get(module, "")
        passing = at.PassingProjection(name, hold.first, ref(module), ordinal, k, product.at, hold.arrangement)
        with asking():
            passing.take(product)
        return passing

    def _function(self, product: Product, hold: _Holds, parameter: Tensor, module: nn.Module) -> Projection:
        held = self._parameters.get(parameter, module)
        assert held is not None
        like, arrangement = product.rows.to("meta"), hold.arrangement
        rows, function = product.rows, product.function
        positions = tuple(i for i, x in enumerate(product.args) if x is parameter)
        template = tuple(None if x is rows or x is parameter else x for x in product.args)
        at_rows = product.at

        def evaluate(weight: Tensor, first: int, k: int) -> Tensor:
            def call(x: Tensor) -> Any:
                args = [weight if i in positions else x if i == at_rows else y for i, y in enumerate(template)]
                return function(*args)

            return matrix(call, torch.empty_like(like, device=weight.device), arrangement, first, k)[0]

        return at.FunctionProjection(self._names[held.module], hold.first, ref(held.module), held.name, evaluate)
