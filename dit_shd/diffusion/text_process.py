"""The way to noise of a text-to-image pipeline, as its scheduler's config has it."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.diffusion.flow import TimestepDensity, Weighting
from dit_shd.diffusion.process import Ddpm, Flow, Process
from dit_shd.diffusion.schedule import Schedule

Shift = Callable[[Mapping[str, Any], int], float | None]
"""Of the scheduler's config and the image's tokens."""


def process_of(
    kind: Literal["flow", "ddpm"],
    scheduler: Mapping[str, Any],
    density: TimestepDensity,
    weighting: Weighting,
    gamma: float | None,
    multiple: int,
    shift: Shift | None = None,
) -> Process:
    """The process of a pipeline.

    Args:
        kind: As its transformer's adapter has it.
        scheduler: The config of its scheduler.
        density: The density of flow's timesteps.
        weighting: The weighting of flow's loss.
        gamma: Of DDPM, for min-SNR; None for weight 1.
        multiple: Side of a token's patch of the latents.
        shift: Of flow: the adapter's, which gives None where the scheduler's config says it.

    Raises:
        UserError: A scheduler whose betas or predictions are not known here, or one of DDPM where flow is wanted.
    """
    if kind == "flow":
        if "beta_schedule" in scheduler and not is_flow(scheduler):
            name = scheduler.get("_class_name", "another")
            raise UserError(f"the pipeline's scheduler: wanted one of rectified flow, found {name}; not supported")
        return Flow(density, weighting, partial(_alpha, scheduler, multiple, shift))
    target = scheduler.get("prediction_type", "epsilon")
    if target not in ("epsilon", "v_prediction"):
        raise UserError(f"the pipeline's scheduler: prediction_type: wanted epsilon or v_prediction, found {target}")
    return Ddpm(ddpm_schedule(scheduler), target, gamma)


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of rectified flow."""
    is_named = "FlowMatch" in str(scheduler.get("_class_name"))
    return is_named or scheduler.get("prediction_type") == "flow_prediction" or bool(scheduler.get("use_flow_sigmas"))


def ddpm_schedule(scheduler: Mapping[str, Any]) -> Schedule:
    """The noise schedule in a scheduler's config, in diffusers' terms; of an empty one that of diffusers' defaults.

    Raises:
        UserError: Betas of a kind that is not known here, or none.
    """
    scheduler = {**_defaults(scheduler), **scheduler} or {"beta_start": 1e-4, "beta_end": 0.02}
    steps, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start"), scheduler.get("beta_end")
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError("the pipeline's scheduler: rescale_betas_zero_snr: wanted false, found true; not supported")
    if (factor := scheduler.get("snr_shift_scale", 1)) != 1:
        raise UserError(f"the pipeline's scheduler: snr_shift_scale: wanted 1, found {factor}; not supported")
    if scheduler.get("trained_betas") is not None:
        betas = np.array(scheduler["trained_betas"], dtype=np.float64)
        steps = len(betas)
    elif kind not in ("linear", "scaled_linear"):
        raise UserError(f"the pipeline's scheduler: beta_schedule: wanted linear or scaled_linear, found {kind}")
    elif first is None or last is None:
        name = scheduler.get("_class_name", "a scheduler")
        raise UserError(
            f"the pipeline's scheduler: wanted one of DDPM, with beta_start and beta_end or with trained_betas, found "
            f"{name} without; not supported"
        )
    elif kind == "linear":
        betas = np.linspace(first, last, steps)
    else:
        betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    return Schedule(betas, np.arange(steps))


def _defaults(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers has of a class's settings that its config does not name; none of a class that is not there."""
    import diffusers

    cls = getattr(diffusers, str(scheduler.get("_class_name")), None)
    known = {} if cls is None else inspect.signature(cls.__init__).parameters
    return {name: given.default for name, given in known.items() if given.default is not inspect.Parameter.empty}


def pipeline_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """alpha of SD3 eq. 23 that the scheduler's steps have at a number of image tokens.

    A dynamic shift is exp(mu), with mu a line through (base_image_seq_len, base_shift) and (max_image_seq_len,
    max_shift).
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift") or scheduler.get("flow_shift") or 1.0)
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    first, last = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = first + (last - first) * (tokens - low) / (high - low)
    return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu


def _alpha(scheduler: Mapping[str, Any], multiple: int, shift: Shift | None, area: int) -> float:
    """The adapter's or the scheduler's own, for an area of latents."""
    tokens = area // multiple**2
    alpha = None if shift is None else shift(scheduler, tokens)
    return pipeline_shift(scheduler, tokens) if alpha is None else alpha
