"""The tokenizers of pipelines, and the texts that chat templates make of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Template:
    """What a pipeline with one tokenizer makes of a prompt before it is tokenized."""

    before: str
    """The text before the prompt, tokenized with it."""
    prompt: str
    """The prompt as it is tokenized."""
    dropped: int = 0
    """Tokens before the prompt that the transformer is not given."""


def tokenizer_of(pipeline: "DiffusionPipeline", name: str) -> Any:  # noqa: ANN401
    """A tokenizer of a pipeline; of a processor of images and text the one that is in it; None if it has none.

    Args:
        pipeline: With tokenizers.
        name: Of the component.
    """
    part = getattr(pipeline, name, None)
    return getattr(part, "tokenizer", part)


def of_chat(pipeline: "DiffusionPipeline", chats: Sequence[Any], **options: bool) -> list[str]:
    """The texts of chats by the template of a pipeline's tokenizer, to be tokenized with its first and last token.

    Args:
        pipeline: With a tokenizer that has a template, or a processor that has one.
        chats: Lists of messages.
        options: Of the template.
    """
    part: Any = getattr(pipeline, "tokenizer")  # noqa: B009
    texts: list[str] = part.apply_chat_template(list(chats), tokenize=False, **options)
    tokenizer = tokenizer_of(pipeline, "tokenizer")
    if part is tokenizer:
        return texts
    return [text.removeprefix(tokenizer.bos_token or "") for text in texts]  # a processor adds no second one
