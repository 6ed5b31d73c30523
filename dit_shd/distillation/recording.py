"""What losses read of a model, taken while it runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture, layer_of
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.captures import Recording
from dit_shd.attention.recording.sharded import KeptWeights
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import LayerLoss, Loss
from dit_shd.distillation.records import Forward, Layer, Reads
from dit_shd.models.blocks import blocks, named_blocks, recorded, recorded_blocks
from dit_shd.models.compilation import is_compiled
from dit_shd.tasks import Batch, Task

Sink = Callable[[Reads, Layer], None]
"""Takes the kind of a layer and the layer, as it runs."""
Role = Literal["student", "teacher"]
FEATURES = frozenset({Reads.ATTENTION_OUTPUT, Reads.HIDDEN})
_attention: "WeakKeyDictionary[nn.Module, list[str]]" = WeakKeyDictionary()
"""The attention modules of models of other packages, by name, once a forward has shown which they are."""
_ran: "WeakKeyDictionary[nn.Module, dict[str, dict[str, None]]]" = WeakKeyDictionary()
"""The blocks of models that ran in a pass, by its name."""


def record(
    stack: ExitStack,
    task: Task[Any],
    model: nn.Module,
    batch: Batch,
    read: frozenset[Reads],
    sink: Sink,
    weights: KeptWeights | None = None,
    layers: Sequence[str] | None = None,
) -> Mapping[str, Capture]:
    """Deliver the layers that a model's next forward runs to `sink(kind, layer)`, as far as they are read.

    Args:
        stack: Ends the recording when it is closed.
        task: What is learned.
        model: Teacher or student.
        batch: Of the forward; the attention modules of a model of another package are found on it.
        read: Parts of its forward.
        sink: Takes each layer as it runs.
        weights: For a model whose gathered weights do not outlive its blocks.
        layers: Names of the attention layers that are read; None for all self-attention.

    Returns:
        What records attention, for check_all_ran; empty where none is read.

    Raises:
        UserError: In that forward, if the task runs the model again before the recording ends: whose layers are whose
            could not be told.
    """
    if read & FEATURES:
        _check_compiled(model, read)
        if any(isinstance(module, nn.TransformerEncoder) for module in model.modules()):
            _without_fast_path(stack)

    def attention(name: str, capture: Capture) -> None:
        sink(Reads.ATTENTION, Layer(name, attention=capture if weights is None else weights.of(name, capture)))

    def output(kind: Reads) -> Callable[[str, Tensor], None]:
        return lambda name, x: sink(kind, Layer.of(name, x))

    if Reads.ATTENTION_OUTPUT in read:
        modules = attention_modules(task, model, batch)
        stack.enter_context(recorded(modules, output(Reads.ATTENTION_OUTPUT)))
    if Reads.HIDDEN in read:
        stack.enter_context(recorded_blocks(model, output(Reads.HIDDEN)))
    stack.callback(model.register_forward_pre_hook(_Once()).remove)
    return stack.enter_context(capture(model, layers, sink=attention)) if Reads.ATTENTION in read else {}


class _Once:
    """A hook of a model's forward that refuses a second one."""

    def __init__(self) -> None:
        self.ran = False

    def __call__(self, model: nn.Module, _args: tuple[Any, ...]) -> None:
        if self.ran:
            raise UserError(
                f"{type(discovery.unwrapped(model)).__name__}: task.predict ran the model twice in one pass, and "
                "losses read the layers of one forward; run what it needs as one batch, or give each its own pass"
            )
        self.ran = True


def check_all_ran(model: nn.Module, captures: Mapping[str, Capture], role: Role) -> None:
    """Refuse a forward that left out layers which are paired by their depth.

    Args:
        model: That ran.
        captures: What record returned, of all self-attention.
        role: Whose layers.

    Raises:
        UserError: Naming the first layer that did not run.
    """
    if isinstance(captures, Recording) and captures.skipped:
        raise _left_out(model, captures.skipped[0], role)


def _left_out(model: nn.Module, name: str, role: Role) -> UserError:
    remedy = "train it without dropping layers (layerdrop: 0)" if role == "student" else "let it run all of them"
    return UserError(
        f"{type(discovery.unwrapped(model)).__name__}: {name} of the {role} did not run in this forward, so that "
        f"layers cannot be paired by their depth; {remedy}, or name the pairs (layers: "
        "{student layer: teacher layer})"
    )


def _check_compiled(model: nn.Module, read: frozenset[Reads]) -> None:
    """Refuse compiled code in which nothing can be read from one forward to the next."""
    if "_orig_mod" in model._modules:
        raise UserError(
            f"{type(model).__name__}: a model that is compiled as a whole does not give its {_names(read & FEATURES)}; "
            "compile its blocks (block.compile())"
        )
    if Reads.ATTENTION_OUTPUT in read and any(map(is_compiled, blocks(model))):
        raise UserError(
            "attention output: compiled blocks do not give what attention modules in them put out; compile=false"
        )


def _without_fast_path(stack: ExitStack) -> None:
    """Leave PyTorch's fast path of padded batches, which gives nested tensors, until the stack is closed."""
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _names(kinds: frozenset[Reads]) -> str:
    return " and ".join(sorted(kind.value for kind in kinds))


def named_attention(losses: Iterable[Loss], role: Role, model: nn.Module) -> list[str] | None:
    """The attention layers that losses name, cross-attention among them; None where one of them goes by a rule.

    Args:
        losses: The losses of one pass.
        role: Whose layers.
        model: All attention of a model of dit_shd is self-attention, and recorded anyway.
    """
    names, by_rule = _names_and_rules(losses, role)
    if not names or by_rule or discovery.own_layers(model):
        return None
    return list(dict.fromkeys(map(layer_of, names)))


def check_named(losses: Iterable[Loss], role: Role, model: nn.Module, recorded: Iterable[str]) -> None:
    """Refuse losses that name other attention beside losses by a rule, for which self-attention alone is recorded.

    Args:
        losses: The losses of one pass.
        role: Whose layers.
        model: A model of dit_shd has no other attention.
        recorded: The layers that were recorded of it.

    Raises:
        UserError: Naming the layer and the losses by a rule.
    """
    names, by_rule = _names_and_rules(losses, role)
    layers = {layer_of(name) for name in recorded}
    missing = [name for name in names if layer_of(name) not in layers]
    if not missing or not by_rule or discovery.own_layers(model):
        return
    modules = {discovery.plain(path) for path, _ in model.named_modules()}
    for name in missing:
        if layer_of(name) in modules:
            raise UserError(
                f"layers: {name} of the {role} is no self-attention that ran, and other attention is recorded "
                f"where all losses on attention name their layers: name those of {', '.join(by_rule)}, too"
            )


def _names_and_rules(losses: Iterable[Loss], role: Role) -> tuple[list[str], list[str]]:
    """The attention layers that losses name, and the losses on attention that name none."""
    names, by_rule = list[str](), list[str]()
    for loss in losses:
        if Reads.ATTENTION in loss.reads:
            if isinstance(loss, LayerLoss) and isinstance(loss.layers, Mapping):
                names += loss.layers.keys() if role == "student" else loss.layers.values()
            else:
                by_rule.append(type(loss).__module__.rpartition(".")[2])
    return names, by_rule


def forward(
    task: Task[Any],
    model: nn.Module,
    batch: Batch,
    read: frozenset[Reads],
    layers: Sequence[str] | None = None,
    role: Role = "student",
    paired: bool = False,
) -> Forward:
    """A model's forward with all layers that are read, held.

    Args:
        task: What is learned.
        model: Teacher or student.
        batch: One pass.
        read: Parts of the forward.
        layers: As in record.
        role: Whose layers, for errors.
        paired: Whether blocks are paired by their depth; see pairs_blocks.

    Raises:
        UserError: Layers did not run, without a graph, or with tokens first.
    """
    held: dict[Reads, dict[str, Layer]] = {Reads.ATTENTION_OUTPUT: {}, Reads.HIDDEN: {}}

    def keep(kind: Reads, layer: Layer) -> None:
        held[kind][layer.name] = layer

    with ExitStack() as stack:
        captures = stack.enter_context(capture(model, layers)) if Reads.ATTENTION in read else {}
        record(stack, task, model, batch, read - {Reads.ATTENTION}, keep)
        output = task.predict(model, batch)
        if layers is None:
            check_all_ran(model, captures, role)
        for kind, by_name in held.items():
            if kind in read:
                _check_features(model, batch, by_name, role)
        if paired:
            _check_blocks(model, batch, held[Reads.HIDDEN], role)
        check_unchanged(held)
        return Forward(
            output.prediction,
            output.extra,
            attention={name: Layer(name, attention=one) for name, one in captures.items()},
            attention_output=held[Reads.ATTENTION_OUTPUT],
            hidden=held[Reads.HIDDEN],
        )


def pairs_blocks(losses: Iterable[Loss]) -> bool:
    """Whether a loss reads blocks, and does not name them."""
    return any(
        Reads.HIDDEN in loss.reads and not (isinstance(loss, LayerLoss) and isinstance(loss.layers, Mapping))
        for loss in losses
    )


def _check_blocks(model: nn.Module, batch: Batch, held: Mapping[str, Layer], role: Role) -> None:
    """Refuse a forward that left out blocks which others of its kind ran, and which the model still has."""
    ran = _ran.setdefault(discovery.unwrapped(model), {}).setdefault(batch.pass_name, {})
    now = {layer_of(name): None for name in held}
    left = [name for name in ran if name not in now]
    missing = next((name for name in named_blocks(model) if name in left), None) if left else None
    if missing is not None:
        raise _left_out(model, missing, role)
    ran |= now


def _check_features(model: nn.Module, batch: Batch, held: Mapping[str, Layer], role: Role) -> None:
    """Refuse features that train nothing, as reentrant checkpointing gives them, and tokens before samples."""
    modules = {discovery.plain(path): module for path, module in model.named_modules()} if role == "student" else {}
    b = len(batch.indices)
    for name, layer in held.items():
        x, module = layer.hidden, modules.get(layer_of(name))
        if x is None:
            continue
        if x.ndim == 3 and x.shape[1] == b != x.shape[0]:
            raise UserError(
                f"{name} of the {role} gives [n,b,e] = {list(x.shape)}, tokens before samples: wanted [b,n,e] of {b} "
                "samples, as batch_first=True has them"
            )
        lost = torch.is_grad_enabled() and not x.requires_grad
        if lost and module is not None and any(p.requires_grad for p in module.parameters()):
            raise discovery.without_graph(name)


def check_unchanged(held: Mapping[Reads, Mapping[str, Layer]]) -> None:
    """Refuse layers that their model has written to since they ran.

    Raises:
        UserError: Naming the first of them.
    """
    for layer in (layer for layers in held.values() for layer in layers.values()):
        layer.check_unchanged()


def attention_modules(task: Task[Any], model: nn.Module, batch: Batch) -> dict[str, nn.Module]:
    """The self-attention modules of any model, by name.

    Args:
        task: What is learned.
        model: Any transformer; one of another package is run once, without gradients.
        batch: That it is run on.

    Raises:
        UserError: It has none that can be recorded.
    """
    modules = discovery.own_layers(model)
    if modules:
        return modules
    core = discovery.unwrapped(model)
    if core not in _attention:
        with torch.no_grad(), capture(model, projections=False) as captures:
            task.predict(model, batch)
            names = [layer_of(name) for name in captures]
        _attention[core] = list(dict.fromkeys(names))
    modules = {discovery.plain(path): module for path, module in model.named_modules()}
    missing = [name for name in _attention[core] if name not in modules]
    if missing:
        raise UserError(f"{type(core).__name__}: {missing[0]} is no module whose output could be read")
    return {name: modules[name] for name in _attention[core]}
