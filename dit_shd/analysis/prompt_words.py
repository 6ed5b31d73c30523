"""Which word of a prompt each text token of a text-to-image transformer is."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.prompt_encoding import MAX_TOKENS
from dit_shd.diffusion.prompt_texts import Template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

IN_ORDER = (
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "ChromaPipeline",
    "BriaPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "AuraFlowPipeline",
)
"""Pipelines whose text tokens are those of their tokenizers one after the other, each padded to its limit. Others put
a template around the prompt, which the adapter may know."""
CLEAN = "clean_caption"
"""The argument of a pipeline's call by which it cleans prompts."""
MOST = 32
"""Tokens that are named one by one."""
REST = "other text"
"""Start, end, padding, and what is beyond the most."""


@dataclass(frozen=True)
class Word:
    """A token of a prompt."""

    text: str
    place: int
    """Among the text tokens of the transformer."""


def prompt_words(
    pipeline: "DiffusionPipeline", adapter: Adapter, prompt: str, tokens: int, call: Mapping[str, Any]
) -> list[Word]:
    """The words of a prompt, in the order of the text tokens; numbers where it is not known which token is which.

    Args:
        pipeline: With tokenizers.
        adapter: The adapter of its transformer.
        prompt: The text.
        tokens: Text tokens that the transformer was given.
        call: Arguments of the pipeline's call.
    """
    template = adapter.template(pipeline, prompt, call)
    if template is not None:
        return _behind(template, getattr(pipeline, "tokenizer"), tokens)  # noqa: B009
    limits = adapter.limits(pipeline, call.get(MAX_TOKENS))
    if type(pipeline).__name__ not in IN_ORDER or sum(limits.values()) != tokens:
        return [Word(f"token {place}", place) for place in range(min(tokens, MOST))]
    words: list[Word] = []
    first, prompt = 0, _cleaned(pipeline, prompt, call)
    for name, length in limits.items():
        tokenizer = getattr(pipeline, name)
        encoder = type(getattr(pipeline, name.replace("tokenizer", "text_encoder"))).__name__
        kind = "CLIP" if encoder.startswith("CLIP") else "T5" if encoder.startswith("T5") else encoder
        ids = tokenizer(prompt, truncation=True, max_length=length).input_ids
        for place, (token, piece) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids))):
            if token not in tokenizer.all_special_ids:
                text = piece.removesuffix("</w>").strip("▁Ġ")
                words.append(Word(f"{text} ({kind})" if len(limits) > 1 else text, first + place))
        first += length
    return words[:MOST]


def _cleaned(pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> str:
    """A prompt as its tokenizer is given it: of PixArt in small letters, and cleaned unless the call says otherwise."""
    clean: Any = getattr(pipeline, "_text_preprocessing", None)
    known = inspect.signature(type(pipeline).__call__).parameters
    if clean is None or CLEAN not in known:
        return prompt
    return clean(prompt, clean_caption=call.get(CLEAN, known[CLEAN].default))[0]


def _behind(template: Template, tokenizer: Any, tokens: int) -> list[Word]:  # noqa: ANN401
    """The words of a prompt behind a template, by the letters that each token is of."""
    encoded, begin = tokenizer(template.before + template.prompt, return_offsets_mapping=True), len(template.before)
    words = []
    for place, (first, last) in enumerate(encoded["offset_mapping"], -template.dropped):
        text = template.prompt[max(0, first - begin) : max(0, last - begin)].strip()
        if text and place < tokens:
            words.append(Word(text, place))
    return words[:MOST]
