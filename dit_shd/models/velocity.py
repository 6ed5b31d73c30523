"""Checkpoints with the tensors of a DiT that do not predict noise: SiT, REPA and other models of flow matching.

They load as a DiT and would then train or sample wrongly without an error. They are recognised by the file's metadata
and name, by tensors that only they have, and by a variance that was never trained.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from dit_shd.core.errors import UserError, one_line
from dit_shd.models.prediction import NOISE, prediction_of
from dit_shd.models.quantization import dequantised
from dit_shd.models.shape import shape_of

NAMES = re.compile(
    r"(?<![a-z])(sit|repa[-_]?e?|lightning[-_]?dit|flow[-_]?dcn|ddt|fit|fit[-_]?v2|mask[-_]?dit|edm2?|velocity|"
    r"v[-_]?pred(iction)?|flow[-_]?matching|rectified[-_]?flow|flow|fm|rf|reflow|x0[-_]?pred)(?![a-z])",
    re.IGNORECASE,
)
"""Names of such models in the names of files and models, as a whole word (website.pt is none)."""
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
"""Depth to which nested dictionaries of a checkpoint are searched."""


def refuse_by_metadata(path: Path, contents: object) -> None:
    """Refuse a file by its name or by its contents other than tensors.

    Args:
        path: The file.
        contents: The contents of the file, or its metadata.

    Raises:
        UserError: The model does not predict noise.
    """
    reason = next(_reasons(contents), None)
    name = NAMES.search(path.stem)
    if reason is None and name is not None:
        reason = f"of its name ('{name[0]}'; another name, if it does predict noise)"
    if reason is not None:
        raise UserError(f"{path}: refused, because {explain(reason)}")


def explain(reason: str) -> str:
    """Why a model is refused, to follow `because`."""
    return (
        f"{reason}: SiT, REPA and others of flow matching have DiT's tensors and predict velocity (or x_0), not noise; "
        "taught or sampled as noise it gives rubbish; wanted a DiT or MDTv2 that predicts noise; for flow "
        "matching make a folder that says so: dit-shd convert FILE OUT prediction=velocity_sit (REPA: velocity_repa)"
    )


def _reasons(contents: object) -> Iterator[str]:
    entries = [contents, *contents.values()] if isinstance(contents, dict) else []  # the average may lack projectors
    if any(PROJECTOR.match(str(name)) for entry in entries if isinstance(entry, dict) for name in entry):
        yield "it has REPA's projectors"
    for key, value in _entries(contents):
        entry = f"its training says {key}={one_line(str(value), 40)}"
        if isinstance(value, str):
            model = key in MODEL_KEYS and NAMES.search(value)
            target = key in PREDICTION_KEYS and NOT_NOISE.fullmatch(value.strip().rpartition(".")[2])
            if model or target or key == "path_type":
                yield entry
        elif value is True and key in FLAGS:
            yield entry


def _entries(contents: object, depth: int = DEPTH) -> Iterator[tuple[str, str | bool]]:
    """The strings and booleans in nested dictionaries and Namespaces, by key."""
    contents = vars(contents) if isinstance(contents, argparse.Namespace) else contents
    for key, value in contents.items() if isinstance(contents, dict) else ():
        if isinstance(value, (str, bool)):
            yield str(key), value
        elif depth and isinstance(value, (dict, argparse.Namespace)):
            yield from _entries(value, depth - 1)


def of_state(state: Mapping[str, Tensor]) -> str | None:
    """Why a public state dict is not of a model that predicts noise; None where nothing indicates that."""
    embed, weight = state.get("x_embedder.proj.weight"), state.get("final_layer.linear.weight")
    if embed is None or weight is None or embed.ndim != 4:
        return None
    return of_last_layer(weight, state.get("final_layer.linear.bias"), embed.shape[1], embed.shape[2])


def of_model(model: nn.Module) -> str | None:
    """The same for a model whose config says that it predicts noise: DiT, MDTv2 or diffusers' DiT."""
    last = getattr(getattr(model, "final_layer", None), "linear", None) or getattr(model, "proj_out_2", None)
    shape = shape_of(model)
    sizes = shape.names("in_channels") and shape.names("patch_size")
    if prediction_of(model) != NOISE or last is None or not sizes:
        return None
    return of_last_layer(dequantised(last.weight), last.bias, shape.channels, shape.patch)


def of_last_layer(weight: Tensor, bias: Tensor | None, channels: int, patch: int) -> str | None:
    """Whether the variance half [p p, c, e] of weights [p p 2c, e] is zero and the noise half is not; why, or None."""
    if weight.ndim != 2 or weight.shape[0] != 2 * channels * patch**2 or not weight.is_floating_point():
        return None
    tensors = [weight] if bias is None or bias.shape != weight.shape[:1] else [weight, bias[:, None]]
    halves = [tensor.unflatten(0, (patch**2, 2, channels)) for tensor in tensors]
    noise, variance = (any(bool((half[:, i] != 0).any()) for half in halves) for i in range(2))
    return "the variance half of its last layer is zero and was never trained" if noise and not variance else None
