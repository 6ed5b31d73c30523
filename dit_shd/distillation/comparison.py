"""Captures of two models: whether they can be compared.

A script of somebody's own hands in whatever it has; training has its layers from hooks that fit.
"""

import logging
import weakref
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dit_shd.attention.capture import Capture, Captures, one_layer
from dit_shd.attention.recording.attach import Attached, Capturing
from dit_shd.attention.recording.captures import Recording
from dit_shd.attention.recording.discovery import section_of
from dit_shd.attention.recording.sdpa_calls import unchanged
from dit_shd.core.errors import UserError
from dit_shd.distillation.records import Layer
from dit_shd.distillation.token_counts import reason

_log = logging.getLogger("dit_shd")


def _is_same(student: Tensor, teacher: Tensor) -> bool:
    """Whether both are the same tensor; a tensor and its detached alias are not, for self-distillation."""
    same_memory = student.data_ptr() == teacher.data_ptr() and student.device.type != "meta"
    return same_memory and student.requires_grad == teacher.requires_grad


def checked(role: str, captures: object) -> Captures:
    """The captures of a forward, which are refused if they are anything else.

    Args:
        role: Whose: teacher or student.
        captures: What a script gave.

    Raises:
        UserError: What was wanted, and what to do; they were made under torch.func; or another forward has written to
            their memory since.
    """
    remedy = f"run it inside `with capture({role}) as captures` and give those"
    if isinstance(captures, Attached):
        remedy = "give its .captures"
    if not isinstance(captures, (Mapping, Capturing)):  # a Capturing raises an error with the remedy
        raise UserError(f"SHD: wanted the {role}'s captures, found {type(captures).__name__}; {remedy}")
    layers = dict(captures.items())
    if not layers:
        why = captures.why_empty if isinstance(captures, Recording) else remedy
        raise UserError(f"SHD: the {role}'s captures are empty: {why}")
    for name, capture in layers.items():
        one_layer(capture, f"SHD: the {role}'s captures: {name}")
        if not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(capture.query):
            raise UserError(
                "SHD: the transforms of torch.func (grad, vmap, jvp) are not supported; call .backward() of the loss, "
                "or torch.autograd.grad (functional_call is fine)"
            )
    return {name: unchanged(name, capture) for name, capture in layers.items()}


def check_depths(teacher: object, student: object) -> None:
    """Refuse recordings that lack layers, so that those which they have are not paired by their depth.

    Raises:
        UserError: A layer did not run, or, in one model alone, layers do not call what can be recorded.
    """
    roles = {"teacher": teacher, "student": student}
    recordings = {role: each for role, each in roles.items() if isinstance(each, Recording)}
    for role, each in recordings.items():
        for name in each.skipped:
            raise UserError(
                f"SHD: {name} of the {role} did not run in its last forward, so that layers cannot be paired by their "
                "depth; run all layers, or capture those that always run: capture(model, layers=[...])"
            )
    by_hand = [(role, *layer) for role, each in recordings.items() for layer in each.by_hand.items()]
    role, name, why = by_hand[0] if by_hand else ("", "", "")
    if all(each.by_hand for each in recordings.values()) and len(recordings) == 2:  # hybrids: in the same places
        warn_of_left_out(len(by_hand), f"{name} of the {role} {why}")
    elif by_hand:
        raise UserError(
            f"SHD: layers cannot be paired by their depth, since one of the {role} cannot be recorded; name the pairs, "
            f"SHD(layers={{student layer: teacher layer}}): {name} {why}"
        )


def check_graphs(teacher: Captures, student: Captures) -> None:
    """Refuse captures that would train the teacher.

    Raises:
        UserError: The teacher has a graph and the student none.
    """
    graphs = [any(capture.query.requires_grad for capture in captures.values()) for captures in (teacher, student)]
    if graphs == [True, False] and torch.is_grad_enabled():
        raise UserError(
            "SHD: the teacher's captures have a graph and the student's have none, as if they were exchanged; run the "
            "teacher under torch.no_grad(), the student outside of it, and give loss(teacher's, student's)"
        )


def check_finite(layer: str, value: Tensor) -> None:
    """Refuse a divergence [b] that is infinite.

    Raises:
        UserError: The student gives no weight to keys to which the teacher attends.
    """
    if bool(value.isinf().any()):
        raise UserError(
            f"SHD: {layer}: infinite, since the teacher attends to keys that the student leaves out; let both see the "
            "same keys (causal, padding, sliding windows; packed texts of transformers: use_cache=False for both)"
        )


@lru_cache(maxsize=1)
def warn_of_no_graph() -> None:
    """Say once that a loss will train nothing."""
    _log.warning(
        "SHD: the student's captures have no graph, so this term trains nothing; was its last forward an evaluation? "
        "Take the loss before that one; for its value alone, under torch.no_grad()"
    )


@lru_cache(maxsize=1)
def warn_of_left_out(count: int, first: str) -> None:
    """Say once that layers of both models cannot be recorded."""
    _log.warning(
        "SHD: %d layers of teacher and student cannot be recorded and are left out, and what is left is paired by its "
        "depth; captures.report() lists them: %s",
        count,
        first,
    )


class Freshness:
    """Notices captures of a teacher's earlier forward: since the last call only the student has run."""

    def __init__(self) -> None:
        self._last = list[weakref.ref[Tensor]]()

    def __getstate__(self) -> dict[str, list[weakref.ref[Tensor]]]:
        return {"_last": []}  # of a copy, and of what is saved

    def __call__(self, teacher: Captures, student: Captures) -> None:
        """Compare with the call before, and keep these for the next.

        Args:
            teacher: Captures of its forward.
            student: Captures of its forward.
        """
        queries = [next(iter(captures.values())).query for captures in (teacher, student)]
        if self._last and self._last[0]() is queries[0] and self._last[1]() is not queries[1]:
            warn_of_old_teacher()
        self._last = [weakref.ref(query) for query in queries]


@lru_cache(maxsize=1)
def warn_of_old_teacher() -> None:
    """Say once that only the student has run."""
    _log.warning(
        "SHD: the teacher has not run since the last call of this loss, but the student has: run both on every batch; "
        "right as it is where the batch is the same (one fixed batch, several students of one teacher)"
    )


def _of_image(student: Capture, teacher: Capture) -> str:
    """What to do where one model's maps are over text and image, and the other's over as many image tokens alone."""
    for role, joint, plain in (("teacher", teacher, student), ("student", student, teacher)):
        image = joint.image
        if (
            image is not None
            and plain.image is None
            and plain.shape[2:] == (len(range(*image.indices(joint.shape[3]))),) * 2
        ):
            return (
                f'; those of the {role} are over text and image: capture({role}, block="image") has the image\'s alone'
            )
    return ""


def comparable(student: Layer, teacher: Layer, by_depth: bool = False) -> tuple[Capture, Capture]:
    """Both captures, if they fit.

    Args:
        student: Its layer.
        teacher: The layer that it learns from.
        by_depth: Whether they are paired by their depth alone, whatever their sections are.

    Raises:
        UserError: Captures of one forward, of other samples or of other tokens.
    """
    s, t, layer, source = student.attention, teacher.attention, student.name, teacher.name
    assert s is not None and t is not None, "SHD reads attention"
    if _is_same(s.query, t.query):
        raise UserError(
            f"SHD: {layer} of the student and {source} of the teacher are captures of one and the same forward, so "
            "nothing is to be learned; where one model is both, run it as the teacher first and under torch.no_grad(), "
            "or capture one forward after the other"
        )
    apart = by_depth and section_of(layer) != section_of(source)
    remedy = '; layers="sections" pairs each with layers of its own kind of block' if apart else ""
    if s.shape[0] != t.shape[0]:
        raise UserError(
            f"SHD: {layer} of the student has {s.shape[0]} samples and {source} of the teacher {t.shape[0]}; "
            "run both on the same batch (heads belong into a dimension of their own, [b,h,n,d], not into the batch)"
            f"{remedy}"
        )
    if s.shape[2:] != t.shape[2:]:
        remedy = _of_image(s, t) or remedy
        raise UserError(
            f"SHD: {layer} of the student has {s.shape[2]} query and {s.shape[3]} key tokens, {source} of the teacher "
            f"{t.shape[2]} and {t.shape[3]}; their maps cannot be compared ({reason(s.shape[2:], t.shape[2:])}){remedy}"
        )
    return s, t
