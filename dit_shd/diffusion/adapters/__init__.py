"""How transformers of diffusers are asked, one file a class: adding a class is one file.

An Adapter knows what the transformer's forward takes and what its output means, so that tasks ask every model alike:
latents [b,c,y,x] as the pipeline's autoencoder makes them, the share of noise (or the timestep) and text in; the
velocity noise - x_0 (or what DDPM's scheduler calls the prediction) out.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapter_sketch import SKETCH
from dit_shd.diffusion.prompt_encoding import MAX_TOKENS, encode_prompt
from dit_shd.diffusion.prompt_texts import Template, tokenizer_of
from dit_shd.diffusion.refused_classes import REFUSED
from dit_shd.diffusion.text_rows import TextRows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Adapter(ABC):
    """How a transformer class is asked, and which pipelines it belongs to."""

    transformer: ClassVar[str]
    """The name of the class in diffusers."""
    pipelines: ClassVar[tuple[str, ...]]
    """Names of pipeline classes with such a transformer."""
    process: ClassVar[Literal["flow", "ddpm"]] = "flow"
    """The way to noise: rectified flow, or the schedule of the pipeline's scheduler."""
    guidance: ClassVar[float | None] = None
    """The guidance scale that a guidance-distilled model is given where none is named: its training script's."""
    stream_multiple: ClassVar[int | None] = None
    """Of one stream of text and image: what the rows of each are a multiple of; see TextRows."""
    most_tokens: ClassVar[int | None] = None
    """The largest max_sequence_length that the pipeline's call takes; None for any."""
    example_tokens: ClassVar[int] = 256
    """Tokens of text in a batch that stands for any, for counting."""
    fixed_tokens: ClassVar[bool] = False
    """Whether the transformer takes that number of them alone."""
    example_side: ClassVar[int] = 128
    """Height and width of latents in such a batch, where the model's config names none."""
    cleaners: ClassVar[tuple[str, ...]] = ()
    """Packages by which the pipeline cleans prompts; without them it leaves that out."""
    attention: ClassVar[str] = "joint"
    """What its attention is, in words, for the table of adapters."""
    cross_attention: ClassVar[Sequence[str]] = ()
    """Patterns of the layers whose keys are all text and whose queries are the image's."""
    text_alone: ClassVar[Sequence[str]] = ()
    """Patterns of the layers that are of text alone."""
    sized_by: ClassVar[Sequence[str]] = ()
    """Attributes of the pipeline by which its call knows an image's size, beside its arguments."""
    mask_at: ClassVar[int | None] = 1
    """Which of the values of the pipeline's encode_prompt, of which embeddings are the first, is their mask, if any."""
    pooled_at: ClassVar[int | None] = None
    """Likewise the pooled vector."""

    def channels(self, settings: Mapping[str, Any]) -> int:
        """Channels c of the latents that a transformer with this config takes."""
        return settings["in_channels"]

    def multiple(self, settings: Mapping[str, Any]) -> int:
        """What height and width of latents are a multiple of."""
        return settings.get("patch_size") or 1

    def most_side(self, settings: Mapping[str, Any]) -> int | None:
        """The largest height and width of latents that such a transformer has positions for; None for any."""
        most = settings.get("pos_embed_max_size")
        return most * self.multiple(settings) if isinstance(most, int) else None

    def most_text(self, settings: Mapping[str, Any]) -> int | None:
        """The most tokens of text that the pipeline, and such a transformer, take; None for any."""
        return self.most_tokens

    def text_rows(self, settings: Mapping[str, Any]) -> TextRows:
        """Which rows are a sample's own in the layers of a transformer with this config."""
        return TextRows(self.multiple(settings), self.stream_multiple, self.text_alone)

    @abstractmethod
    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        """Width e of the embeddings, and width p of the pooled vector or None."""

    @abstractmethod
    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        """The keywords of the transformer's forward.

        Args:
            model: The transformer, for its config.
            x: Noised latents [b,c,y,x].
            time: Shares of noise in [0, 1] [b], float32; timesteps [b] where the process is ddpm.
            text: Of each sample.
            guidance: Scales that a guidance-distilled model is given [b], or None.
        """

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        """What an output of the transformer predicts: noise - x_0 [b,c,y,x], of ddpm [b, c or 2c, y, x].

        Args:
            output: The first value of its forward.
            x: The latents that it was given [b,c,y,x].
        """
        return output

    def shift(self, scheduler: Mapping[str, Any], tokens: int) -> float | None:
        """Alpha of SD3 eq. 23 that the pipeline's steps have; None where its scheduler's config says it.

        Args:
            scheduler: The config of the pipeline's scheduler.
            tokens: Of an image.
        """
        return None

    def guidance_arguments(self, settings: Mapping[str, Any], scale: float) -> dict[str, Any]:
        """Arguments of the pipeline's call that guide by u + w (c - u), or give w to a guidance-distilled model.

        Args:
            settings: The config of the transformer.
            scale: W; 1 for none.
        """
        return {"guidance_scale": scale}

    def guide(self, pipeline: "DiffusionPipeline", scale: float) -> dict[str, Any]:
        """Such arguments of a pipeline's call, which may be set itself.

        Args:
            pipeline: With its transformer.
            scale: W.
        """
        return self.guidance_arguments(settings_of(getattr(pipeline, "transformer")), scale)  # noqa: B009

    def guided(self, combined: Tensor, conditional: Tensor) -> Tensor:
        """What the pipeline makes of u + w (c - u) [b,c,y,x] before a step: the same, unless a class rescales it.

        Args:
            combined: U + w (c - u).
            conditional: C.
        """
        return combined

    def size_arguments(self, pipeline: "DiffusionPipeline", size: tuple[int, int]) -> dict[str, Any]:
        """Arguments of the pipeline's call for images of a height and width, of which it makes no others.

        Args:
            pipeline: Its attributes sized_by are set so that its call keeps to them.
            size: In pixels.
        """
        return {"height": size[0], "width": size[1]}

    def predict(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: float | None = None
    ) -> Tensor:
        """Ask a model: its prediction in float32; see `arguments` and `prediction`."""
        x = x.to(computed_in(model))  # a teacher may be held in bfloat16
        scale = self.embedded(settings_of(model), guidance)
        scales = None if scale is None else torch.full((len(x),), scale, device=x.device)
        output = model(**self.arguments(model, x, time, text.to(x), scales), return_dict=False)[0]
        return self.prediction(output, x).float()

    def embedded(self, settings: Mapping[str, Any], guidance: float | None) -> float | None:
        """The guidance scale that a transformer with this config is given; None where it is given none.

        Args:
            settings: The config.
            guidance: The scale that somebody names; None for the class's own.
        """
        if not settings.get("guidance_embeds"):
            return None
        return self.guidance if guidance is None else guidance

    def encode(self, pipeline: "DiffusionPipeline", prompts: Sequence[str], tokens: int | None = None) -> TextCondition:
        """The condition of prompts, as the pipeline's own call makes it.

        Args:
            pipeline: With text encoders and tokenizers.
            prompts: Texts.
            tokens: Of a prompt, the pipeline's max_sequence_length; None for its default.
        """
        return self.text(encode_prompt(pipeline, prompts, tokens))

    def encode_empty(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> TextCondition:
        """The condition of no prompt: that of the pipeline's default negative prompt."""
        return self.encode(pipeline, [""], tokens)

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        """Prompts with what the pipeline puts around them, all of which its limits are of; see `limits`."""
        return list(prompts)

    def lengths(self, pipeline: "DiffusionPipeline", tokenizer: str, prompts: Sequence[str]) -> list[int]:
        """Tokens that a tokenizer of the pipeline makes of framed prompts.

        Args:
            pipeline: With tokenizers.
            tokenizer: Its name in the pipeline.
            prompts: Without the frame.
        """
        texts = self.framed(pipeline, prompts)
        return [len(ids) for ids in tokenizer_of(pipeline, tokenizer)(texts).input_ids]

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        """Tokens of a framed prompt that the encoder of each tokenizer takes; a prompt beyond all of them is cut.

        Unless a class says it: the call's max_sequence_length, or the most that the tokenizer names; none if neither.

        Args:
            pipeline: With tokenizers.
            tokens: As in encode.
        """
        known = inspect.signature(type(pipeline).__call__).parameters
        limit = known[MAX_TOKENS].default if tokens is None and MAX_TOKENS in known else tokens
        if limit is None:  # at least what its tokenizer is for, where it has one
            limit = getattr(tokenizer_of(pipeline, "tokenizer"), "model_max_length", None)
        return {} if limit is None else {"tokenizer": limit}

    def image_tokens(self, model: nn.Module, layer: str, arguments: Mapping[str, Any]) -> range | None:
        """Where the (first) image's tokens stand among the keys of a layer; None where the layer's own modules say it.

        Empty in cross-attention, unless a class says more.

        Args:
            model: The transformer, for its config.
            layer: The name of its attention.
            arguments: Of the transformer's forward, by name.
        """
        return range(0) if any(fnmatchcase(layer, pattern) for pattern in self.cross_attention) else None

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template | None:
        """What the pipeline makes of a prompt; None where it is not known which text token is which.

        Args:
            pipeline: With its tokenizer.
            prompt: As a user gives it.
            call: Arguments of its call.
        """
        return None

    def text(self, encoded: Sequence[Any]) -> TextCondition:
        """The condition in what the pipeline's encode_prompt gives."""
        mask, pooled = (None if place is None else encoded[place] for place in (self.mask_at, self.pooled_at))
        return TextCondition.of(encoded[0], mask, pooled)


def computed_in(model: nn.Module) -> torch.dtype:
    """The precision that a model is given its inputs in: diffusers', which leaves out what stays in float32."""
    dtype: Any = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else next(model.parameters()).dtype


def settings_of(model: nn.Module) -> Mapping[str, Any]:
    """The config of a model; empty where it has none."""
    values: Any = getattr(model, "config", None)
    return values if isinstance(values, Mapping) else {}


ADAPTERS: PluginFolder[Adapter] = PluginFolder(__name__, Adapter, "adapter")


def adapter_of(transformer: str, name: str | None = None) -> Adapter:
    """The adapter of a transformer class.

    Args:
        transformer: The name of the class.
        name: Of the adapter, a dotted one of somebody's own; None: the one of the class.

    Raises:
        UserError: No such adapter, and how one looks.
    """
    if name is not None:
        return ADAPTERS.find(name)()
    adapters = by_class()
    if transformer in REFUSED:
        raise UserError(f"{transformer}: is not supported: {REFUSED[transformer]}")
    if transformer not in adapters:
        raise UserError(
            f"{transformer}: no adapter says how it is asked; there are those of {', '.join(adapters)}. Of videos and "
            "sound most autoencoders are not supported, and one frame is an image. An adapter is a file, "
            "such as my_package/my_adapter.py, which is used by adapter=my_package.my_adapter.CLASS --trust "
            f"my_package:{SKETCH.format(name=transformer)}"
        )
    return adapters[transformer]


def adapter_of_model(model: nn.Module, name: str | None = None) -> Adapter:
    """The adapter of a model, whose class may have been wrapped: compiled, or a subclass that shards it.

    Args:
        model: The transformer.
        name: As in adapter_of.

    Raises:
        UserError: A family of dit_shd, the default of student= among them; or no such adapter, and how one looks.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile(model)
    classes = [cls.__name__ for cls in type(model).__mro__]
    known = next((cls for cls in classes if cls in by_class()), None)
    if known is None and name is None and type(model).__module__.startswith("dit_shd."):
        raise UserError(
            f"{classes[0]}: is no text-to-image model, and a student is one where student= is left out or names a "
            "family; wanted a transformer of diffusers, as student='{like: teacher, num_layers: N}'"
        )
    return adapter_of(known or classes[0], name)


@lru_cache(maxsize=1)
def by_class() -> dict[str, Adapter]:
    """Every adapter of dit_shd by the class of its transformer."""
    adapters = [ADAPTERS.find(name)() for name in ADAPTERS.names()]
    return {adapter.transformer: adapter for adapter in adapters}
