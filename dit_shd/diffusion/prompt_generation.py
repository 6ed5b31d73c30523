"""Images of prompts by a pipeline's own class, with a student in the place of its transformer."""

import inspect
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dit_shd.core import hashing, rng
from dit_shd.core.config import check_ranges, checked
from dit_shd.core.distributed import joined, launched
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.memory import is_out_of_memory
from dit_shd.data.buckets import bucket_folders
from dit_shd.data.datasets.text_buckets import TextBuckets
from dit_shd.data.datasets.text_latents import TextLatents
from dit_shd.data.pipeline_record import (
    PipelineRecord,
)
from dit_shd.diffusion.adapters import Adapter, adapter_of, by_class, settings_of
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.generation import make_file
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.prompt_encoding import MAX_TOKENS
from dit_shd.diffusion.sample_config import GUIDANCE, SampleConfig
from dit_shd.diffusion.sample_files import output_path
from dit_shd.diffusion.sampled_run import drawn_size_remarks, prompt_remarks, size_remarks
from dit_shd.diffusion.teacher_sampling import about_teacher

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OURS = ("prompt", "generator", "output_type", "return_dict", "num_images_per_prompt")
"""Arguments of a pipeline's call that are not a user's to choose here."""
REWRITE = "enable_prompt_rewrite"
"""The argument of LongCat-Image's call, whose own negative prompt, too, is one for all prompts."""
ONE_BY_ONE = ("PRXPipeline",)
"""Pipelines that fail on several prompts with guidance; those with an ocr_guider take it for all prompts if one has
words in quotes."""
FRAMES = ("num_frames", "video_length", "frames")
"""Arguments of calls that make videos, each the number of frames; one frame is an image."""
TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx")
_log = logging.getLogger("dit_shd")


def sample_prompts(config: SampleConfig) -> Path:
    """Sample images of prompts into an npz, with a grid (png) and the settings (json) beside it; resumable.

    Args:
        config: What to sample; its run is a run, a student's folder, or a pipeline itself.

    Returns:
        Where the npz is: arr_0 uint8 [n,y,x,c], arr_1 the number of each image's prompt.

    Raises:
        UserError: No prompts, a pipeline of other text encoders, or an argument that its call does not have.
    """
    config = checked(config, "sample")
    assert config.prompts is not None
    prompts = read_prompts(config.prompts)
    config = replace(config, count=config.count or len(prompts))
    check_ranges(config)
    out = output_path(config)
    state = joined()
    launched(state.num_processes)
    pipeline, record = assemble(config.run, config.pipeline, config.precision)
    call = call_arguments(pipeline, record, config.call)
    if state.is_main_process:
        _warn_of_long(pipeline, record, prompts, call.get(MAX_TOKENS))
        of_run = prompt_remarks(config.run, _scale(pipeline, call)), _other_scale(pipeline, record, call)
        for remark in chain(size_remarks(record, config.call), *of_run):
            _log.warning("%s", remark)
    pipeline.to(state.device)

    def images_of(indices: range, on_step: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
        numbers = [index % len(prompts) for index in indices]
        images = draw(pipeline, [prompts[number] for number in numbers], config.seed, indices, call)
        for remark in drawn_size_remarks(call, images.shape[1:3]) if not indices.start else ():
            _log.warning("%s", remark)
        on_step(len(indices))
        return images, np.array(numbers)

    settings: dict[str, Any] = {"prompts": prompts, "call": call, "seed": config.seed, "count": config.images}
    settings |= {"batch_size": config.batch_size, "precision": config.precision, "run": config.run}
    settings |= {"pipeline": record.pipeline, "pipeline_class": record.pipeline_class}
    settings |= {"text_sha256": record.text_sha256, "scheduler": _plain(record.scheduler)}
    settings |= {"model_sha256": hashing.sha256_of_tensors(pipeline.transformer), **about_teacher(config.run)}
    guiders = {name: getattr(pipeline, name, None) for name in ("guider", "ocr_guider")}
    settings |= {name: _plain(dict(guider.config)) for name, guider in guiders.items() if guider is not None}
    settings |= _beside_the_call(pipeline, record, config.call)
    vae = getattr(pipeline, "vae", None)
    settings |= {} if vae is None else {"vae_sha256": hashing.sha256_of_tensors(vae)}
    make_file(state, config, settings, out, images_of)
    return out


def read_prompts(file: Path) -> list[str]:
    """The lines of a file that are not empty, the captions of a folder of latents, or the prompts of samples.

    Args:
        file: Text, a folder, or the .json beside samples.

    Raises:
        UserError: There are none, or no such file.
    """
    if file.is_dir():
        latents = TextLatents(file) if bucket_folders(file) is None else TextBuckets(file)
        return [caption for caption in latents.captions() if caption]
    if not file.is_file():
        raise UserError(
            f"prompts: wanted a text file with a prompt a line, or a folder of latents with captions; "
            f"found no file {file}"
        )
    if file.suffix.lower() in TABLES:
        raise UserError(
            f"prompts: wanted a text file with a prompt a line, found the table {file}; write its column of prompts "
            "to a file of their own"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
        # a prompt may hold what Unicode calls ends of lines, as U+2028
        lines = json.loads(text)["prompts"] if file.suffix == ".json" else [line.strip() for line in text.split("\n")]
        if not all(isinstance(line, str) for line in lines):
            raise ValueError("prompts that are no texts")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"prompts: wanted a text file with a prompt a line, found {error_line(error, 100)}") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"prompts: wanted a prompt a line, found none in {file}")
    return prompts


def call_arguments(pipeline: "DiffusionPipeline", record: PipelineRecord, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a pipeline's call: a user's, and the size and tokens that the student has learned.

    Raises:
        UserError: An argument that the call does not have, steps, a guidance or frames that it is not given here, or
            a pipeline of sound.
    """
    known = inspect.signature(pipeline.__class__.__call__).parameters
    frames = [key for key in FRAMES if key in known]
    if not frames and any(key.startswith("audio_") for key in known):
        raise UserError(_no_images(pipeline, "sound"))
    given = {**_guided(pipeline, record, given), **{key: value for key, value in given.items() if key != GUIDANCE}}
    for key in given:
        if key not in known or key in OURS:
            raise UserError(f"call.{key}: is no argument of {type(pipeline).__name__}'s call that may be given here")
    steps = given.get("num_inference_steps", 1)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps: wanted 1 or more, found {steps}")
    call: dict[str, Any] = {}
    if record.text_tokens is not None and "max_sequence_length" in known:
        call["max_sequence_length"] = record.text_tokens
    for key in frames:
        call[key] = 1
        if given.get(key, 1) != 1:
            raise UserError(f"call.{key}: wanted 1, found {given[key]}: one frame is an image, videos are not drawn")
    if REWRITE in known:  # a language model would write other prompts than were learned, and other ones in each batch
        call |= {REWRITE: False} | ({} if "negative_prompt_embeds" in given else {"negative_prompt": ""})
    if record.size is not None:
        call |= {"height": record.size[0], "width": record.size[1]}
        if "use_resolution_binning" in known:
            call["use_resolution_binning"] = False
    scale = _embedded(pipeline, record)
    call = {**call, **(scale if not scale.keys() & given.keys() else {}), **given}
    adapter, height, width = adapter_of_record(record), call.get("height"), call.get("width")
    if adapter is not None and isinstance(height, int) and isinstance(width, int):
        call |= adapter.size_arguments(pipeline, (height, width))
    return call


def adapter_of_record(record: PipelineRecord) -> Adapter | None:
    """The adapter of a recorded pipeline's transformer; None where the class has none.

    Args:
        record: Of the pipeline.
    """
    if record.adapter is None and record.transformer_class not in by_class():
        return None
    return adapter_of(record.transformer_class, record.adapter)


def _guided(pipeline: "DiffusionPipeline", record: PipelineRecord, given: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's own arguments for a guidance scale whose 1 is none."""
    if GUIDANCE not in given:
        return {}
    scale = given[GUIDANCE]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale < math.inf:
        raise UserError(f"guidance: wanted 0 or more, found {scale}")
    adapter, settings = adapter_of_record(record), settings_of(pipeline.transformer)
    if adapter is None:
        return {"guidance_scale": scale}
    if scale < 1 and not settings.get("guidance_embeds"):
        raise UserError(f"guidance: wanted 1, for none, or more (pipelines do not guide below), found {scale}")
    return adapter.guide(pipeline, scale)


def _beside_the_call(pipeline: "DiffusionPipeline", record: PipelineRecord, given: Mapping[str, Any]) -> dict[str, Any]:
    """The guidance scale that was given, where the pipeline itself was set to it and its call has no such argument."""
    adapter = adapter_of_record(record)
    if GUIDANCE not in given or adapter is None:
        return {}
    of_call = adapter.guidance_arguments(settings_of(pipeline.transformer), given[GUIDANCE])
    return {} if of_call else {GUIDANCE: given[GUIDANCE]}


def _embedded(pipeline: "DiffusionPipeline", record: PipelineRecord) -> dict[str, Any]:
    """The arguments of the call that give a guidance-distilled student the scale that it learned; none of others."""
    adapter = adapter_of_record(record)
    if adapter is None or record.guidance is None:
        return {}
    settings = settings_of(pipeline.transformer)
    return adapter.guidance_arguments(settings, record.guidance) if settings.get("guidance_embeds") else {}


def _other_scale(pipeline: "DiffusionPipeline", record: PipelineRecord, call: Mapping[str, Any]) -> Iterator[str]:
    """A line where a student is given another scale than the one that it learned."""
    for key, scale in _embedded(pipeline, record).items():
        if call[key] != scale:
            yield f"guidance: the student was given the scale {scale:g} in training, and is given {call[key]} here"


def _scale(pipeline: "DiffusionPipeline", call: dict[str, Any]) -> float:
    """The scale of guidance by predictions without text, as the pipeline's call has it; 1 for none."""
    known = inspect.signature(pipeline.__class__.__call__).parameters
    if settings_of(pipeline.transformer).get("guidance_embeds"):
        return 1.0  # an input of the model
    guider: Any = getattr(pipeline, "guider", None)
    if guider is not None:
        return max(1.0, getattr(guider, "guidance_scale", 1.0))
    key = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    if key not in known or (key == "true_cfg_scale" and call.get("negative_prompt") is None):
        return 1.0
    scale = call.get(key, known[key].default)
    return max(1.0, scale) if isinstance(scale, (int, float)) else 1.0


@torch.no_grad()
def draw(
    pipeline: "DiffusionPipeline", prompts: list[str], seed: int, indices: range, call: dict[str, Any]
) -> np.ndarray:
    """Images uint8 [b,y,x,c] of prompts; an image's noise is a function of the seed and its number.

    Args:
        pipeline: A whole one.
        prompts: One for each image.
        seed: The seed of all images.
        indices: The images' numbers.
        call: More arguments of the pipeline's call.

    Raises:
        UserError: The pipeline's call fails on them, or its images are not finite.
    """
    seeds = [int(rng.stream(seed, "sample prompt", 0, index).integers(2**62)) for index in indices]
    generators = [torch.Generator("cpu").manual_seed(number) for number in seeds]
    whole: Any = pipeline
    if len(prompts) > 1 and (type(whole).__name__ in ONE_BY_ONE or getattr(whole, "ocr_guider", None) is not None):
        pairs = zip(prompts, indices)
        return np.concatenate([draw(pipeline, [one], seed, range(i, i + 1), call) for one, i in pairs])
    if isinstance(call.get("negative_prompt"), str):  # not every pipeline repeats it for several prompts
        call = {**call, "negative_prompt": [call["negative_prompt"]] * len(prompts)}
    try:
        output = whole(prompt=list(prompts), generator=generators, output_type="np", **call)
    except (ValueError, TypeError, AssertionError, LookupError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        where = "call: " if isinstance(error, (ValueError, TypeError)) else ""
        raise UserError(f"{where}{type(pipeline).__name__} fails ({error_line(error, 200)})") from error
    images = output.images if hasattr(output, "images") else _only_frames(pipeline, output)
    if not np.isfinite(images).all():
        raise UserError(f"sampling images {indices[0]}..{indices[-1]}: the pipeline's images are not finite")
    return (np.asarray(images) * 255).round().astype(np.uint8)


def _only_frames(pipeline: "DiffusionPipeline", output: object) -> np.ndarray:
    """Images [b,y,x,c] of videos [b,1,y,x,c]."""
    videos = getattr(output, "frames", None)
    if videos is None:
        raise UserError(_no_images(pipeline, f"a {type(output).__name__}"))
    frames = np.asarray(videos)
    if frames.ndim != 5 or frames.shape[1] != 1:
        raise UserError(_no_images(pipeline, f"videos of shape {list(frames.shape)}, not of one frame,"))
    return frames[:, 0]


def _no_images(pipeline: "DiffusionPipeline", makes: str) -> str:
    return f"{type(pipeline).__name__} makes {makes} where images are wanted; videos and sound are not drawn here"


def _warn_of_long(
    pipeline: "DiffusionPipeline", record: PipelineRecord, prompts: list[str], tokens: int | None
) -> None:
    """Log how many prompts are cut, where an adapter knows what the encoders take."""
    adapter = adapter_of_record(record)
    if adapter is None:
        return
    cut = Prompts(pipeline, adapter, replace(record, text_tokens=tokens)).too_long(prompts)
    if cut:
        _log.warning("prompts: %d of %d are longer than the text encoders take, and are cut", cut, len(prompts))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's config without what names its files."""
    return {key: value for key, value in values.items() if not key.startswith("_")}
