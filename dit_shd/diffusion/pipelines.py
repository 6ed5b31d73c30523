"""Pipelines of diffusers: their folders, their text encoders, and whole ones with a student in them."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.installation import require
from dit_shd.core.json_files import read_object
from dit_shd.core.launcher import is_first_process
from dit_shd.core.places import Asset, HubName, find
from dit_shd.core.pretrained import PIPELINE, READING, asset
from dit_shd.data.autoencoder import check_pipeline
from dit_shd.data.pipeline_record import (
    ENCODERS,
    INDEX,
    SCHEDULER,
    WEIGHTS,
    PipelineRecord,
    only_variant,
    opened_weights,
    read_index,
    read_record,
    text_digest,
)
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, adapter_of, by_class
from dit_shd.diffusion.prompt_encoding import MAX_TOKENS
from dit_shd.diffusion.quiet import quiet
from dit_shd.diffusion.text_models import check_sides, require_cleaners

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TRANSFORMER, LEARNED = "transformer/config.json", f"transformer/{PIPELINE}"
SD3 = "StableDiffusion3Pipeline"
MAY_LACK = {SD3: ("text_encoder_3", "tokenizer_3")}
"""Components that a pipeline does without, if whoever opens it says so."""
LEAST_TOKENS = 4
"""Of a prompt, besides what stands around it: with fewer, captions are hardly told apart."""
_log = logging.getLogger("dit_shd")


class Prompts:
    """The text encoders of a pipeline: prompts to what its transformer is given of them.

    Args:
        pipeline: With text encoders and tokenizers.
        adapter: The adapter of its transformer.
        record: The record of the pipeline.
        transformer: The config of its transformer, where it is known.
    """

    def __init__(
        self,
        pipeline: "DiffusionPipeline",
        adapter: Adapter,
        record: PipelineRecord,
        transformer: Mapping[str, Any] | None = None,
    ):
        self.pipeline, self.adapter, self.record, self.transformer = pipeline, adapter, record, transformer

    @classmethod
    def load(
        cls,
        place: str,
        device: torch.device,
        precision: Literal["no", "bf16"] = "no",
        adapter: str | None = None,
        text_tokens: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> "Prompts":
        """The text encoders of a pipeline by name.

        Args:
            place: A folder or hub:OWNER/NAME.
            device: Where they go.
            precision: Bf16 holds and runs them in bfloat16.
            adapter: The name of somebody's own adapter.
            text_tokens: Of a prompt; None for those that its transformer is recorded to have learned, or
                its default.
            size: Height and width of the images that the prompts are of.

        Raises:
            UserError: No such pipeline, one that no adapter is for, or text_tokens out of range.
        """
        folder = folder_of(place, text_alone=True)
        learned = read_record(folder / "transformer") if text_tokens is None else None
        text_tokens = text_tokens if learned is None else learned.text_tokens
        if learned is not None and text_tokens is not None and is_first_process():
            _log.warning("text_tokens: %d, as %s says that its transformer has learned", text_tokens, folder / LEARNED)
        record = replace(record_of(place, folder, adapter), text_tokens=text_tokens, size=size)
        if adapter is None and record.transformer_class not in by_class():
            check_pipeline(read_index(folder))  # before an adapter is asked for, which would not help
        chosen = adapter_of(record.transformer_class, adapter)
        if adapter is None and record.pipeline_class not in chosen.pipelines:
            raise UserError(
                f"pipeline: {record.pipeline_class} is not supported, wanted {' or '.join(chosen.pipelines)}; an "
                "adapter of your own (adapter=...) may say how another is asked"
            )
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        pipeline = open_pipeline(folder, dtype, True)
        if text_tokens is not None and MAX_TOKENS not in inspect.signature(type(pipeline).__call__).parameters:
            raise UserError(f"text_tokens: a {record.pipeline_class} has fixed numbers of tokens; leave it out")
        for name, part in pipeline.components.items():
            if name.startswith(ENCODERS) and isinstance(part, nn.Module):
                part.to(device)
        prompts = cls(pipeline, chosen, record, read_object(folder / TRANSFORMER))
        if text_tokens is not None:
            prompts._refuse_tokens(text_tokens)
        return prompts

    def __call__(self, prompts: Sequence[str]) -> TextCondition:
        """The condition of prompts, on the CPU."""
        with quiet():
            return self.adapter.encode(self.pipeline, prompts, self.record.text_tokens).to(torch.empty(0))

    def empty(self) -> TextCondition:
        """The condition of no prompt [1,...]."""
        with quiet():
            return self.adapter.encode_empty(self.pipeline, self.record.text_tokens).to(torch.empty(0))

    def too_long(self, prompts: Sequence[str]) -> int:
        """How many of some prompts are longer than what every tokenizer's encoder takes."""
        limits = self.adapter.limits(self.pipeline, self.record.text_tokens)
        with quiet():
            lengths = [
                [length <= limit for length in self.adapter.lengths(self.pipeline, name, prompts)]
                for name, limit in limits.items()
            ]
        return sum(not any(fits) for fits in zip(*lengths))

    def check_sides(self, sides: tuple[int, int]) -> None:
        """Refuse latents that the transformer does not take; where its config is not known, none."""
        if self.transformer is not None:
            role = f"size: the pipeline's {self.record.transformer_class}"
            check_sides(role, self.transformer, self.adapter, sides, "the images'")

    def _refuse_tokens(self, tokens: int) -> None:
        most = self.adapter.most_text(self.transformer or {})
        if most is not None and tokens > most:
            raise UserError(
                f"text_tokens: wanted {most} or less, as a {self.record.pipeline_class} takes, found {tokens}"
            )
        for name, limit in self.adapter.limits(self.pipeline, tokens).items():
            with quiet():
                around = self.adapter.lengths(self.pipeline, name, [""])[0]
            if limit - around < LEAST_TOKENS:
                raise UserError(
                    f"text_tokens: wanted {tokens + LEAST_TOKENS - limit + around} or more, found {tokens}: a "
                    f"{self.record.pipeline_class} puts {around} tokens around every prompt, and cuts the prompt"
                )


def _stand_ins(name: str, folder: Path, dtype: torch.dtype) -> dict[str, nn.Module | None]:
    """What stands for a transformer (of which Bria and SD3 without T5 read the config) and an autoencoder, if any."""
    import diffusers

    transformer: Any = None
    with quiet():
        if name == "BriaPipeline":
            transformer = diffusers.BriaTransformer2DModel(num_layers=0, num_single_layers=0, num_attention_heads=1)
            return {"transformer": transformer.to(dtype), "vae": diffusers.AutoencoderKL()}
        if name == SD3 and lacking(folder):
            width = (read_object(folder / TRANSFORMER) or {}).get("joint_attention_dim", 4096)
            sizes: Any = dict.fromkeys(("num_attention_heads", "attention_head_dim", "caption_projection_dim"), 2)
            transformer = diffusers.SD3Transformer2DModel(num_layers=0, **sizes, joint_attention_dim=width)
    return {"transformer": transformer, "vae": None}


def lacking(folder: Path) -> tuple[str, ...]:
    """The components that a pipeline's folder is without, though its class takes them: None is to be given for each."""
    index = read_index(folder)
    return tuple(name for name in MAY_LACK.get(index["_class_name"], ()) if index.get(name) == [None, None])


def record_of(place: str, folder: Path, adapter: str | None = None) -> PipelineRecord:
    """What a run must know of a pipeline.

    Args:
        place: Its name as a user gives it.
        folder: Where it is.
        adapter: The name of somebody's own adapter.

    Raises:
        UserError: It is no pipeline with a transformer.
    """
    index = read_index(folder)
    scheduler = read_scheduler(folder)
    classes = index["_class_name"], index["transformer"][1]
    if (index.get("transformer_2") or [None])[0] is not None:
        raise UserError(f"pipeline: {place} has two transformers, for much and for little noise; wanted one with one")
    return PipelineRecord(name_of(place, folder), *classes, text_digest(folder), scheduler, adapter)


def name_of(place: str, folder: Path) -> str:
    """What a pipeline is called in records: as it was given, or where its folder is.

    Args:
        place: Its name as a user gives it.
        folder: Where it is.
    """
    return place if place.startswith(("hub:", "asset:")) else str(folder.resolve())


def reads_text(folder: Path) -> bool:
    """Whether a pipeline has text encoders; of others the transformer's classes are asked for."""
    return any(part.startswith(ENCODERS) for part in read_index(folder))


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The config of a pipeline's scheduler; empty where there is none."""
    return read_object(folder / SCHEDULER) or {}


def folder_of(place: str, text_alone: bool = False) -> Path:
    """The local folder of a pipeline, downloaded where it is on the hub.

    Args:
        place: A folder or hub:OWNER/NAME.
        text_alone: Without the transformer's weights, which need not be downloaded.

    Raises:
        UserError: No such pipeline, or neither network nor cache.
    """
    path = find(place, "model", "pipeline")
    if isinstance(path, Asset):
        model = asset(path.name)
        path = model.parent if (model.parent / INDEX).is_file() else model
    if isinstance(path, Path):
        if not (path / INDEX).is_file():
            raise UserError(
                f"pipeline: wanted a folder with {INDEX}, as save_pretrained writes it, found none in {path}"
            )
        return path
    return _of_hub(path, text_alone)


def _of_hub(name: HubName, text_alone: bool) -> Path:
    files = name.files()
    if files is None:
        cached = name.cached(INDEX)
        if cached is None:
            raise name.unreachable()
        return cached.parent
    if INDEX not in files:
        raise UserError(f"{name}: wanted a pipeline of diffusers, it has no {INDEX}")
    folder = name.download([INDEX])
    parts = {part for part, value in read_index(folder).items() if isinstance(value, list)}
    parts -= {"transformer"} if text_alone else set()
    kinds = (".json", ".safetensors", ".txt", ".model", ".jinja")
    wanted = [file for file in files if file.partition("/")[0] in parts and file.endswith(kinds)]
    folders = {file.rpartition("/")[0] for file in wanted}
    opened = {f"{inside}/{name}" for inside in folders for name in opened_weights(_names_in(inside, files))}
    wanted = [file for file in wanted if not file.endswith(WEIGHTS) or file in opened]
    wanted += [name for name in (TRANSFORMER, LEARNED) if text_alone and name in files]
    return name.download([INDEX, *wanted])


def _names_in(folder: str, files: Sequence[str]) -> list[str]:
    return [name for inside, _, name in (file.rpartition("/") for file in files) if inside == folder]


def _variant(folder: Path, parts: Iterable[str]) -> str | None:
    """The variant that some components of a pipeline have alone; None where all have plain weights.

    Raises:
        UserError: They have several.
    """
    variants = {only_variant(folder / part) for part in parts if (folder / part).is_dir()} - {None}
    if len(variants) > 1:
        names = ", ".join(sorted(filter(None, variants)))
        raise UserError(f"pipeline: {folder} has weights of several variants ({names}), wanted one")
    return next(iter(variants), None)


def open_pipeline(
    folder: Path, dtype: torch.dtype = torch.float32, text_alone: bool = False, /, **components: nn.Module | None
) -> "DiffusionPipeline":
    """A pipeline of a folder, without running code of it and without pickles.

    Args:
        folder: As `folder_of` gives it.
        dtype: The dtype of its weights.
        text_alone: Whether neither its transformer nor its autoencoder is read.
        components: That are given in place of the folder's; None for none.

    Raises:
        UserError: It cannot be read, or transformers, whose text encoders it has, or what it cleans prompts by, is
            not installed.
    """
    require(("transformers",), "pipelines", "a text-to-image pipeline")
    name = str(read_index(folder)["_class_name"])
    require_cleaners(name)
    import diffusers

    # By its own class: DiffusionPipeline leaves out what is given of a component that the class calls optional.
    known: Any = getattr(diffusers, name, None)
    is_pipeline = isinstance(known, type) and issubclass(known, diffusers.DiffusionPipeline)
    opened_by = known if is_pipeline else diffusers.DiffusionPipeline
    stand_ins = _stand_ins(name, folder, dtype) if text_alone else {}
    components = {**dict.fromkeys(lacking(folder)), **stand_ins, **components}
    variant = _variant(folder, read_index(folder).keys() - components.keys())
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
    with READING, quiet():
        try:
            pipeline = opened_by.from_pretrained(str(folder), variant=variant, **options, **components)
        except Exception as error:  # of several libraries, for a folder that may be wrong in any way
            raise UserError(f"pipeline: {folder} cannot be read ({error_line(error, 200)})") from error
    other = next((key for key, part in components.items() if getattr(pipeline, key, None) is not part), None)
    if other is not None:
        raise UserError(f"pipeline: a {name} of {folder} does not take the {other} that it is given")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
