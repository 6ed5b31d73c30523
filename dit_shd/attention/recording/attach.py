"""Recording a model: for the length of a `with`, or by attention processors until they are detached.

with capture(teacher) as t, capture(student) as s:
    ...                                     # run both
    t["de_blocks.0.attn"].query             # [b,h,n,d]
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NoReturn

from torch import nn

from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.captures import Recording, Sink
from dit_shd.attention.recording.instrument import recorded, watched
from dit_shd.attention.recording.joint import Block, BlockChoice
from dit_shd.attention.recording.processors import SHDAttnProcessor, processor_of
from dit_shd.attention.recording.recorder import Recorder
from dit_shd.attention.recording.selection import Layers, Selection
from dit_shd.core.errors import UserError

_log = logging.getLogger("dit_shd")


class Capturing(AbstractContextManager[Recording]):
    """What capture(model) is before the `with`, which gives the captures; used as if it were them, it says so.

    Args:
        record: Makes another recording; one for each `with`.
    """

    def __init__(self, record: Callable[[], Recording]):
        self._record = record
        self._entered: list[ExitStack] = []

    def __enter__(self) -> Recording:
        recording = self._record()
        self._entered.append(_opened(recording))
        return recording

    def __exit__(self, *error: Any) -> bool | None:
        return self._entered.pop().__exit__(*error)

    def _empty(self, *_: Any) -> NoReturn:
        raise UserError("capture(model) holds no captures by itself: run the model inside `with capture(model) as c`")

    __getitem__ = __len__ = __iter__ = __contains__ = get = keys = values = items = _empty


def capture(
    model: nn.Module,
    layers: Layers = None,
    sink: Sink | None = None,
    block: Block = "joint",
    image: slice | None = None,
    projections: bool = True,
) -> Capturing:
    """Record the softmax attention of `model`; after each forward the yielded mapping holds that forward's Captures.

    Works for our models and for any whose attention ends in PyTorch's scaled_dot_product_attention (diffusers with the
    native backend, timm, transformers, nn.MultiheadAttention). The first forward, which is run eagerly, finds out which
    modules are attention and where each W^O is; `captures.report()` says what was found, and what was left out and why.
    What it has found holds for later forwards, unnoticed: of a W^O that is chosen by step (experts by task or timestep)
    the first one is read for ever, and a mask of heads that is all ones in the first forward is not in W^O later on. Of
    such models take maps alone, projections=False.
    Take losses on the Captures outside the forward. Gradient checkpointing has to be non-reentrant; under torch.compile
    it needs torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True besides.

    One model may be teacher and student (its adapters off and on, say), captured one after the other or one inside the
    other; then the outer capture keeps the teacher's forward, which has to come first and under torch.no_grad().

    Args:
        model: Or a wrapper of it (DDP, torch.compile), run by calling it or by any of its methods.
        layers: Names, patterns (`transformer_blocks.*.attn1`) or depths (0 is the first, -1 the last) of attention
            modules; by default all self-attention, joint text-image attention included.
        sink: Is handed every Capture as its layer runs; the mapping then stays empty, and nothing is held. In the first
            forward, and under torch.compile, it is handed them when the forward ends.
        block: Of joint text-image attention: joint (the whole map), image (image queries over image keys), image-text
            or text-image (queries-keys).
        image: Where the image's tokens stand in a joint sequence, if the model does not tell.
        projections: Whether W^O is wanted (`out`).

    Returns:
        A context manager that gives the mapping of layer names to Captures.

    Raises:
        UserError: Nothing to capture, a pattern that fits no layer, a layer that does not reach the function.
    """
    discovery.check(model)
    selection = Selection(layers, BlockChoice(block, image), projections)
    return Capturing(lambda: Recording(model, selection, sink, at))


def _opened(recording: Recording) -> ExitStack:
    """Begin to record; closing what is returned takes all of it back."""
    with ExitStack() as stack:
        stack.callback(recording.close)
        recording.open()
        for module in discovery.cores(recording.model):
            stack.enter_context(watched(module, recording))
        return stack.pop_all()


def at(module: nn.Module, recorder: Recorder) -> ExitStack:
    """Give a module a Recorder for a while: as its `recorder` if it is ours, else by changing its class."""
    if not discovery.is_ours(module):
        return recorded(module, recorder)
    holder: Any = module
    recorder.outer, holder.recorder = holder.recorder, recorder
    stack = ExitStack()
    stack.callback(lambda: setattr(holder, "recorder", _without(recorder, holder.recorder)))
    return stack


def _without(recorder: Recorder, chain: Recorder | None) -> Recorder | None:
    """A chain of recorders without one of them: captures are closed in whatever order."""
    if chain is recorder or chain is None:
        return recorder.outer
    chain.outer = _without(recorder, chain.outer)
    return chain


class Attached:
    """What attach_processors gave a model: `captures`, and detach() to leave the model as it was (or use `with`)."""

    def __init__(self, captures: Recording, stack: ExitStack):
        self.model, self.captures, self._stack = captures.model, captures, stack

    def detach(self) -> None:
        """Put each module's own processor back; one that was set in between stays."""
        self._stack.close()

    def __enter__(self) -> Recording:
        return self.captures

    def __exit__(self, *_: Any) -> None:
        self.detach()


def attach_processors(
    model: nn.Module,
    layers: Layers = None,
    block: Block = "joint",
    image: slice | None = None,
    projections: bool = True,
) -> Attached:
    """The same by attention processors: each module keeps its own at work inside an SHDAttnProcessor, until detach().

    Pipelines go on working, and `model.attn_processors`, where a class has it, shows them.

    Returns:
        What holds the captures, and takes the processors off again.

    Raises:
        UserError: As capture; or modules that take no processor, or have recorded ones already.
    """
    discovery.check(model)
    selection = Selection(layers, BlockChoice(block, image), projections)
    recording = Recording(model, selection, None, at, keeps_teacher=False)
    with ExitStack() as stack:
        for name, module in _with_processors(model, selection).items():  # first: known layers have no other recorder
            recorder = recording.recorders[name] = _AtProcessor(name, module, recording)
            stack.enter_context(_processing(module, recorder))
        stack.enter_context(_opened(recording))
        return Attached(recording, stack.pop_all())


def _with_processors(model: nn.Module, selection: Selection) -> dict[str, nn.Module]:
    """The modules that take a processor and may be wanted; which of them are attention the first forward shows."""
    modules = {discovery.plain(path): module for path, module in model.named_modules()}
    takers = {n: m for n, m in modules.items() if hasattr(m, "set_processor") and getattr(m, "processor", None)}
    if not takers:
        raise UserError(f"attach_processors: {type(model).__name__} takes no attention processor; use capture(model)")
    attached = [name for name, module in takers.items() if isinstance(module.processor, SHDAttnProcessor)]
    if attached:
        raise UserError(
            f"attach_processors: {type(model).__name__} is recorded by processors already ({attached[0]}); detach() "
            "those first, or use capture(model), of which a model may have several"
        )
    if selection.layers is None:
        return {n: m for n, m in takers.items() if not discovery.is_cross(m)} or takers
    return takers


class _AtProcessor(Recorder):
    """Takes what one attention module does, as long as the processor that tells it is the module's."""

    replaced = False

    def begin(self) -> None:
        current = getattr(self.module, "processor", None)
        if not self.replaced and getattr(current, "recorder", None) is not self:
            self.replaced = True
            _log.warning(
                "attach_processors: %s: its processor was replaced since (by %s): unless that calls the one before, it "
                "is not recorded any more; detach() and attach again, or use capture(model)",
                *(self.name, type(current).__name__),
            )
        super().begin()


def _processing(module: Any, recorder: Recorder) -> ExitStack:
    original = module.processor
    mine: Any = processor_of(original, recorder)
    module.set_processor(mine)
    stack = ExitStack()
    stack.callback(lambda: module.set_processor(original) if module.processor is mine else None)
    return stack
