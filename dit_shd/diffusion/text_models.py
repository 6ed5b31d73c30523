"""Text-to-image transformers and the text they have learned: what fits the data, and what a folder records."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.core.installation import require
from dit_shd.core.json_files import read_object
from dit_shd.core.pretrained import PIPELINE
from dit_shd.data.model_origin import loaded_folder
from dit_shd.data.pipeline_record import (
    INDEX,
    SCHEDULER,
    PipelineRecord,
    read_record,
    text_digests,
    text_parts,
    weight_files,
)
from dit_shd.diffusion.adapters import Adapter, by_class, settings_of
from dit_shd.diffusion.prompt_encoding import default_tokens
from dit_shd.diffusion.text_process import is_flow

OF_DDPM = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
}
"""Keys of a scheduler that say which noise a model learned, with diffusers' defaults."""


def check_fit(
    role: str, model: nn.Module, adapter: Adapter, latents: Sequence[int], text: tuple[int, int | None]
) -> None:
    """Refuse a model of other latents or of other text than the data's.

    Args:
        role: The role of the model, for the message.
        model: The transformer.
        adapter: The adapter of its class.
        latents: Shape of the data's [c,y,x].
        text: Width of the data's embeddings, and of their pooled vector or None.

    Raises:
        UserError: Naming both sizes.
    """
    config = settings_of(model)
    channels = adapter.channels(config)
    if channels != latents[0]:
        raise UserError(f"{role}: takes latents of {channels} channels, the data's have {latents[0]}")
    check_sides(role, config, adapter, latents[1:], "the data's")
    wanted = adapter.text_widths(config)
    if wanted[0] != text[0] or (wanted[1] is not None and wanted[1] != text[1]):
        raise UserError(
            f"{role}: takes embeddings of width {_words(wanted)}, the data's are {_words(text)}; encode the captions "
            "with the model's own pipeline"
        )


def check_sides(role: str, settings: Mapping[str, Any], adapter: Adapter, sides: Sequence[int], whose: str) -> None:
    """Refuse latents of a size that a model does not take.

    Args:
        role: The role of the model, for the message.
        settings: The config of the transformer.
        adapter: The adapter of its class.
        sides: Height and width of the latents.
        whose: Whose these are, for the message.

    Raises:
        UserError: Naming both sizes.
    """
    multiple, most = adapter.multiple(settings), adapter.most_side(settings)
    size = " x ".join(map(str, sides))
    if any(side % multiple for side in sides):
        raise UserError(f"{role}: takes latents whose sides are multiples of {multiple}, {whose} are {size}")
    if most is not None and max(sides) > most:
        raise UserError(f"{role}: has positions for latents of at most {most} a side, {whose} are {size}")


def _words(widths: tuple[int, int | None]) -> str:
    return f"{widths[0]}" + (f" and a pooled vector of {widths[1]}" if widths[1] is not None else "")


def require_cleaners(pipeline: str) -> None:
    """Refuse to give a pipeline prompts that it cannot clean, as it cleaned those of its training.

    Args:
        pipeline: The name of its class; others than those of adapters are not known.

    Raises:
        UserError: A package is missing.
    """
    cleaners = {
        package for adapter in by_class().values() if pipeline in adapter.pipelines for package in adapter.cleaners
    }
    require(sorted(cleaners), "pipelines", f"{pipeline}, which cleans prompts,")


def check_learned(
    role: str, model: nn.Module, adapter: Adapter, record: PipelineRecord, kind: Literal["flow", "ddpm"]
) -> None:
    """Refuse a model that has learned another process, other text or other noise than the data's.

    Args:
        role: The role of the model, for the message.
        model: Loaded from a pipeline's folder, or from a run's.
        adapter: The adapter of its class.
        record: The record of the data's pipeline.
        kind: Its process.

    Raises:
        UserError: Saying what is another.
    """
    if type(model).__name__ != record.transformer_class and adapter.process != kind:
        raise UserError(
            f"{role}: a {type(model).__name__} is of {adapter.process}, and the data are for a "
            f"{record.transformer_class}, of {kind}"
        )
    reason = text_differs(model, record) or tokens_differ(model, record) or noise_differs(model, record, kind)
    if reason is not None:
        raise UserError(f"{role}: {reason}")


def text_differs(model: nn.Module, record: PipelineRecord) -> str | None:
    """Why a model has not learned the data's text encoders; None where it has, or nobody can say.

    Args:
        model: Loaded from a pipeline's folder, or from a run's.
        record: The record of the data's pipeline.
    """
    folder = loaded_folder(model)
    if folder is None:
        return None
    digests = text_of(folder)
    if not digests or record.text_sha256 in digests:
        return None
    return (
        f"{folder} has learned other text encoders (sha256 {digests[0][:12]}...) than the data's embeddings are of "
        f"({record.text_sha256[:12]}..., of '{record.pipeline}'); encode the captions with its own pipeline"
    )


def noise_differs(model: nn.Module, record: PipelineRecord, kind: Literal["flow", "ddpm"]) -> str | None:
    """Why a model has learned another noise than the data's pipeline adds; None where it has not, or nobody can say.

    Args:
        model: Loaded from a pipeline's folder, or from a run's.
        record: The record of the data's pipeline.
        kind: The process of both models' classes.
    """
    folder = loaded_folder(model)
    if folder is None:
        return None
    recorded = read_record(folder)
    if recorded is not None:
        learned, place = recorded.scheduler, folder / PIPELINE
    else:
        place = folder.parent / SCHEDULER
        learned = (read_object(place) if folder.name == "transformer" else None) or {}
    added = record.scheduler
    if not learned or not added:
        return None
    kinds = [is_flow(scheduler) for scheduler in (learned, added)]
    if kinds[0] != kinds[1]:
        here, there = ("flow" if flows else "DDPM" for flows in kinds)
        return f"{place} has a scheduler of {here}, and the data's pipeline, '{record.pipeline}', one of {there}"
    for key, default in OF_DDPM.items() if kind == "ddpm" else ():
        here, there = (scheduler.get(key, default) for scheduler in (learned, added))
        floats = isinstance(here, float) and isinstance(there, float)
        if not (math.isclose(here, there) if floats else here == there):
            return (
                f"{place} says {key}: {here}, and the data's pipeline, '{record.pipeline}', {there}; encode the "
                "captions with its own pipeline"
            )
    return None


def tokens_differ(model: nn.Module, record: PipelineRecord) -> str | None:
    """Why a model has learned prompts of another length than the data's; None where it has not, or nobody can say.

    Args:
        model: Loaded from a pipeline's folder, or from a run's.
        record: The record of the data's pipeline.
    """
    folder = loaded_folder(model)
    if folder is None:
        return None
    learned = read_record(folder)
    if learned is None:
        return None
    there, here = (one.text_tokens or default_tokens(one.pipeline_class) for one in (learned, record))
    if there == here:
        return None
    remedy = "without text_tokens" if learned.text_tokens is None else f"with text_tokens={there}"
    return (
        f"{folder} has learned prompts of {there or 'other'} tokens, and the data's are of {here or 'other'}; encode "
        f"the captions {remedy}"
    )


def text_of(folder: Path) -> tuple[str, ...]:
    """Hashes of the text encoders that the transformer in a folder has learned; none where nothing says it."""
    record = read_record(folder)
    if record is not None:
        return (record.text_sha256,)
    pipeline = folder.parent
    if folder.name != "transformer" or not (pipeline / INDEX).is_file():
        return ()
    encoders = [part for part in text_parts(pipeline) if part.name.startswith("text_encoder") and weight_files(part)]
    return text_digests(pipeline) if encoders else ()  # a transformer alone, as it is downloaded to train it
