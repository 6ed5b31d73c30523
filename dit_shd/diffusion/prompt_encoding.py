"""What a pipeline's own call makes of prompts."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MAX_TOKENS = "max_sequence_length"
OF_CALL = (MAX_TOKENS, "clean_caption", "complex_human_instruction")
"""Arguments of encode_prompt whose defaults are those of the pipeline's __call__."""


def encode_prompt(
    pipeline: "DiffusionPipeline", prompts: Sequence[str], tokens: int | None, guided: bool = False
) -> Sequence[Any]:
    """What a pipeline's encode_prompt gives, called as its __call__ calls it.

    Args:
        pipeline: With text encoders and tokenizers.
        prompts: Texts.
        tokens: As in Adapter.encode.
        guided: Also encode the default negative prompt, where the pipeline can.
    """
    known = inspect.signature(pipeline.encode_prompt).parameters
    of_call = inspect.signature(type(pipeline).__call__).parameters
    keywords: dict[str, Any] = {key: of_call[key].default for key in OF_CALL if key in known and key in of_call}
    keywords |= {key: None for key in ("prompt_2", "prompt_3") if key in known}
    keywords |= {"batch_size": len(prompts)} if "batch_size" in known else {}
    keywords |= {"device": pipeline.text_encoder.device} if "device" in known else {}
    if tokens is not None and MAX_TOKENS in known:
        keywords[MAX_TOKENS] = tokens
    if "do_classifier_free_guidance" in known:
        keywords["do_classifier_free_guidance"] = guided
    with torch.no_grad():
        return pipeline.encode_prompt(prompt=list(prompts), **keywords)


def default_tokens(pipeline_class: str) -> int | None:
    """Tokens of a prompt that the call of a pipeline of diffusers takes where it is told nothing; None if unknown.

    Args:
        pipeline_class: The name of the class.
    """
    import diffusers

    known = getattr(diffusers, pipeline_class, None)
    parameters = inspect.signature(known.__call__).parameters if isinstance(known, type) else {}
    return parameters[MAX_TOKENS].default if MAX_TOKENS in parameters else None
