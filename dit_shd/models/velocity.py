"""Checkpoints with the tensors of a DiT that predict something else than noise: SiT, REPA, others of flow matching.

They load as a DiT and then teach or sample rubbish without an error, so whatever tells them is looked for: what the
file says of its training, its name, tensors that only they have, and a variance that was never trained.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dit_shd.core.errors import UserError, one_line
from dit_shd.models.prediction import NOISE, prediction_of

NAMES = re.compile(
    r"(?<![a-z])(sit|repa[-_]?e?|lightning[-_]?dit|flow[-_]?dcn|ddt|fit|fit[-_]?v2|mask[-_]?dit|edm2?|velocity|"
    r"v[-_]?pred(iction)?|flow[-_]?matching|rectified[-_]?flow|flow|fm|rf|reflow|x0[-_]?pred)(?![a-z])",
    re.IGNORECASE,
)
"""What files and models of such codes are called, as a word of its own (website.pt is none)."""
MODEL_KEYS = ("model", "model_name", "model_type", "arch", "architecture", "exp_name", "_target_")
PREDICTION_KEYS = (
    "prediction", "prediction_type", "pred_type", "predict", "objective", "parameterization", "target",
    "model_mean_type", "training_target",
)  # fmt: skip
NOT_NOISE = re.compile(
    r"v|vel\w*|v[-_ ]?pred\w*|\w*flow\w*|x_?[01]|\w*x_?start|start_?x|sample|score|pred_?(v|x_?0)", re.I
)
PROJECTOR = re.compile(r"(\w+\.)*projectors\.\d")
FLAGS = ("predict_xstart", "predict_v", "predict_velocity", "flow_matching", "rectified_flow", "use_flow")
DEPTH = 4
"""How deep in what a checkpoint says of its training it is looked."""


def refuse_told(path: Path, told: Any) -> None:
    """Refuse a file by its name or by what is said in it, tensors apart.

    Args:
        told: all that the file holds, or its metadata.

    Raises:
        UserError: it predicts something else than noise.
    """
    reason = next(_reasons(told), None)
    named = NAMES.search(path.stem)
    if reason is None and named is not None:
        reason = f"of its name ('{named[0]}')"
    if reason is not None:
        raise UserError(f"{path}: refused, because {words(reason)}")


def words(reason: str) -> str:
    """Why a model cannot be taken, after `because`."""
    return (
        f"{reason}: SiT, REPA and others of flow matching have DiT's tensors and predict velocity (or x_0), not noise; "
        "taught or sampled as noise it gives rubbish; wanted a DiT or MDTv2 that predicts noise"
    )


def _reasons(told: Any) -> Iterator[str]:
    entries = [told, *told.values()] if isinstance(told, dict) else []  # the average may have dropped them
    if any(PROJECTOR.match(str(name)) for entry in entries if isinstance(entry, dict) for name in entry):
        yield "it has REPA's projectors"
    for key, value in _plain(told):
        said = f"its training says {key}={one_line(str(value), 40)}"
        if isinstance(value, str):
            model = key in MODEL_KEYS and NAMES.search(value)
            target = key in PREDICTION_KEYS and NOT_NOISE.fullmatch(value.strip().rpartition(".")[2])
            if model or target or key == "path_type":
                yield said
        elif value is True and key in FLAGS:
            yield said


def _plain(told: Any, depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """The texts and truths in nested dictionaries and Namespaces, by key; tensors and lists are left out."""
    told = vars(told) if isinstance(told, argparse.Namespace) else told
    for key, value in told.items() if isinstance(told, dict) else ():
        if isinstance(value, (str, bool)):
            yield str(key), value
        elif depth and isinstance(value, (dict, argparse.Namespace)):
            yield from _plain(value, depth - 1)


def of_state(state: Mapping[str, Tensor]) -> str | None:
    """What in a public state dict tells that it is no noise prediction; None where nothing does."""
    embed, weight = state.get("x_embedder.proj.weight"), state.get("final_layer.linear.weight")
    if embed is None or weight is None or embed.ndim != 4:
        return None
    return of_last_layer(weight, state.get("final_layer.linear.bias"), embed.shape[1], embed.shape[2])


def of_model(model: Any) -> str | None:
    """The same of a model that has been read, DiT and MDTv2 of ours or diffusers' DiT, and says it predicts noise."""
    last = getattr(getattr(model, "final_layer", None), "linear", None) or getattr(model, "proj_out_2", None)
    own = model.config
    if prediction_of(model) != NOISE or last is None or "in_channels" not in own or "patch_size" not in own:
        return None
    return of_last_layer(last.weight, last.bias, own["in_channels"], own["patch_size"])


def of_last_layer(weight: Tensor, bias: Tensor | None, channels: int, patch: int) -> str | None:
    """A zero variance half [p p, c, e] of weights [p p 2c, e] whose noise half is trained."""
    if weight.ndim != 2 or weight.shape[0] != 2 * channels * patch**2 or not weight.is_floating_point():
        return None
    parts = [weight] if bias is None or bias.shape != weight.shape[:1] else [weight, bias[:, None]]
    halves = [part.unflatten(0, (patch**2, 2, channels)) for part in parts]
    noise, variance = (any(bool((half[:, i] != 0).any()) for half in halves) for i in range(2))
    return "the variance half of its last layer is zero and was never trained" if noise and not variance else None
