"""Recording a model: for the length of a `with`, or by attention processors until they are detached.

with capture(teacher) as t, capture(student) as s:
    ...                                     # run both
    t["de_blocks.0.attn"].query             # [b,h,n,d]
"""

import fnmatch
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn

from torch import nn

from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.instrument import RECORDER, instrumented, processor_of
from dit_shd.attention.recording.joint import Block, BlockChoice
from dit_shd.attention.recording.recorder import Recorder, Recording, Sink
from dit_shd.core.errors import UserError

Layers = str | int | Sequence[str | int] | None
"""Names, patterns or depths of attention modules; None for all self-attention."""


PARTS = ("transformer", "unet", "model")
"""Under what names a pipeline holds its denoiser."""


class Capturing(AbstractContextManager[Recording]):
    """What capture(model) is before the `with`, which gives the captures; used as if it were them, it says so."""

    def __init__(self, recording: AbstractContextManager[Recording]):
        self._recording = recording

    def __enter__(self) -> Recording:
        return self._recording.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._recording.__exit__(*error)

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
    native backend, timm, transformers). Take losses on the Captures outside the forward. The first forward, which is
    run eagerly, finds out where each W^O is. Gradient checkpointing has to be non-reentrant; under torch.compile it
    needs torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True besides.

    Args:
        layers: names, patterns (`transformer_blocks.*.attn1`) or depths (0 is the first, -1 the last) of attention
            modules; by default all self-attention, joint text-image attention included.
        sink: is handed every Capture as its layer runs; the mapping then stays empty, and nothing is held. Under
            torch.compile it is handed them when the forward ends.
        block: of joint text-image attention: joint (the whole map), image (image queries over image keys), image-text
            or text-image (queries-keys).
        image: where the image's tokens stand in a joint sequence, if the model does not tell.
        projections: whether W^O is wanted (`out`); without it models with a gate in front of W^O can be recorded too.

    Raises:
        UserError: nothing to capture, a pattern that fits no layer, a layer that does not reach the function.
    """
    return Capturing(_recording(model, layers, Recording(sink, BlockChoice(block, image), projections)))


@contextmanager
def _recording(model: nn.Module, layers: Layers, recording: Recording) -> Generator[Recording]:
    with _recorders(model, _chosen(model, layers), recording, layers is not None, _tapping):
        yield recording


class Attached:
    """What attach_processors gave a model: `captures`, and detach() to leave the model as it was (or use `with`)."""

    def __init__(self, model: nn.Module, captures: Recording, stack: ExitStack):
        self.model, self.captures, self._stack = model, captures, stack

    def detach(self) -> None:
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

    Raises:
        UserError: as capture; or modules that take no processor.
    """
    recording = Recording(None, BlockChoice(block, image), projections)
    chosen = _chosen(model, layers)
    if layers is None:
        chosen = {name: chosen[name] for name in _selfs(chosen)}
    for name, module in chosen.items():
        if not hasattr(module, "set_processor") or getattr(module, "processor", None) is None:
            raise UserError(f"attach_processors: {name} takes no attention processor; use capture(model)")
    return Attached(model, recording, _recorders(model, chosen, recording, layers is not None, _processing))


def _recorders(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    recording: Recording,
    named: bool,
    at: Callable[[nn.Module, Recorder], AbstractContextManager[None]],
) -> ExitStack:
    """Hook the model and set a recorder `at` each chosen module; closing what is returned takes all of it back."""
    with ExitStack() as stack:
        stack.enter_context(_hooked(model, recording))
        for name, module in chosen.items():
            recorder = Recorder(name, module, recording, named)
            recording.recorders.append(recorder)
            stack.enter_context(at(module, recorder))
        return stack.pop_all()


def _chosen(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The attention modules that are wanted, none of which is set up in a way that hides its maps."""
    if not isinstance(model, nn.Module):
        parts = [name for name in PARTS if isinstance(getattr(model, name, None), nn.Module)]
        hint = f"; of a pipeline take its model: .{parts[0]}" if parts else ""
        raise UserError(f"capture: wanted a model (a torch module), found {type(model).__name__}{hint}")
    modules = discovery.check(model)
    reason = discovery.without_maps(model, modules) if layers is None else None
    if reason is not None:
        raise UserError(f"capture: {type(model).__name__}: {reason}")
    chosen = {name: modules[name] for name in _named(list(modules), modules, layers)}
    for name, module in chosen.items():
        reason = discovery.refusal(module)
        if reason is not None:
            raise UserError(f"capture: {name} would not call scaled_dot_product_attention: {reason}")
    return chosen


def _named(names: Sequence[str], modules: Mapping[str, nn.Module], layers: Layers) -> list[str]:
    if layers is None:
        return list(names)
    wanted: set[str] = set()
    depths = _selfs(modules)
    for each in [layers] if isinstance(layers, (str, int)) else layers:
        if isinstance(each, int):
            if not -len(depths) <= each < len(depths):
                raise UserError(f"capture: no layer {each}: there are {len(depths)} of self-attention")
            wanted.add(depths[each])
            continue
        fitting = fnmatch.filter(names, each)
        if not fitting:
            raise UserError(f"capture: no layer fits '{each}'. Layers: {', '.join(names)}")
        wanted.update(fitting)
    return [name for name in names if name in wanted]


def _selfs(modules: Mapping[str, nn.Module]) -> list[str]:
    """The layers that do not say of themselves that they are cross-attention; all, if all say so (OmniGen)."""
    return [name for name, module in modules.items() if not discovery.is_cross(module)] or list(modules)


@contextmanager
def _hooked(model: nn.Module, recording: Recording) -> Generator[None]:
    before = model.register_forward_pre_hook(recording.begin, with_kwargs=True)
    after = model.register_forward_hook(recording.end, always_call=True, prepend=True)  # the last to begin ends first
    try:
        yield
    finally:
        recording.stop()
        before.remove()
        after.remove()


@contextmanager
def _tapping(module: nn.Module, recorder: Recorder) -> Generator[None]:
    """Give a module a Recorder for a while: as its `recorder` if it is ours, else by changing its class."""
    if discovery.is_ours(module):
        recorder.outer, module.recorder = module.recorder, recorder  # type: ignore[assignment]
        try:
            yield
        finally:
            module.recorder = recorder.outer  # type: ignore[assignment]
        return
    cls = type(module)
    outer = vars(module).get(RECORDER)
    recorder.outer = outer
    vars(module)[RECORDER] = recorder
    if outer is None:
        module.__class__ = instrumented(cls)
    try:
        yield
    finally:
        if outer is None:
            module.__class__ = cls
            del vars(module)[RECORDER]
        else:
            vars(module)[RECORDER] = outer


@contextmanager
def _processing(module: Any, recorder: Recorder) -> Generator[None]:
    own = module.processor
    module.set_processor(processor_of(own, recorder))
    try:
        yield
    finally:
        module.set_processor(own)
