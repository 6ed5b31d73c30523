"""Which prompt each picture of a set is of, by the settings beside the pictures."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MODEL = "model_sha256"
"""In the sampler's settings the hash of the model."""
DIGITS = re.compile(r"(\d+)")


def prompts_of(
    settings: Mapping[str, Any], count: int, numbers: np.ndarray | None, names: Sequence[str] | None
) -> list[str] | None:
    """The prompt of each picture; None where the settings do not say it.

    The sampler's pictures have the numbers of its prompts. Of somebody else's, prompts are by the names of the files,
    or as many as pictures, in order; unless all pictures have different numbers.

    Args:
        settings: Beside the pictures; `prompts` are a list, or a dictionary by names.
        count: Of pictures.
        numbers: Of each picture's prompt, if pictures are numbered, int64 [n].
        names: Of each picture's file, below their folder, if they are files.
    """
    prompts = settings.get("prompts")
    if isinstance(prompts, dict):
        named = [prompts.get(name) for name in names or ()]
        return _texts(named)
    if not isinstance(prompts, list):
        return None
    unnumbered = numbers is None or len(set(numbers.tolist())) < count
    if len(prompts) == count and MODEL not in settings and unnumbered:
        numbers = np.arange(count) if names is None or _in_order(names) else None
    if numbers is None or not len(numbers) or not 0 <= min(numbers) <= max(numbers) < len(prompts):
        return None
    return _texts([prompts[number] for number in numbers])


def _texts(prompts: Sequence[object]) -> list[str] | None:
    """The prompts, if each is a text."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return texts if 0 < len(texts) == len(prompts) else None


def _in_order(names: Sequence[str]) -> bool:
    """Whether names are in the order of the numbers in them, too, in which 10 comes after 9."""
    keys = [[int(part) if i % 2 else part for i, part in enumerate(DIGITS.split(name))] for name in names]
    return keys == sorted(keys)
