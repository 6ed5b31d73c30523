"""What unlike numbers of tokens of two models may come from."""

import math
from collections.abc import Sequence

MOST_IN_FRONT = 8
"""Tokens before the patches, of networks that have some."""
ANY = "same patch size, latents and text? other layers=?"


def reason(student: Sequence[int], teacher: Sequence[int]) -> str:
    """A question about the numbers of query and key tokens of two layers that differ; of images in front of patches.

    Args:
        student: Query and key tokens.
        teacher: Likewise.
    """
    if student[0] != student[1] or teacher[0] != teacher[1]:
        return ANY
    counts = student[0], teacher[0]
    patches = math.isqrt(min(counts)) ** 2
    front = [count - patches for count in counts]
    if max(front) > MOST_IN_FRONT or all(math.isqrt(count) ** 2 == count for count in counts):
        return ANY
    return (
        f"of images: {patches} patches each, with {front[0]} tokens in front of them in the student and {front[1]} in "
        "the teacher (class, distillation, registers)? Give the student as many; or does one drop patches?"
    )
