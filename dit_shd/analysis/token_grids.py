"""How the tokens of a layer lie: in the rows and columns of an image, or in a line."""

from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.joint import Block

Grid = tuple[int, int]
"""(rows, columns) of tokens."""
Grids = tuple[Grid | None, Grid | None]
"""Of query tokens and of key tokens; None for a line."""


def grids(name: str, layer: Capture, block: Block, keywords: dict[str, Any]) -> Grids:
    """How a layer's tokens lie; text is a line, also where its number is a square."""
    _, _, n, m = layer.shape
    text, words = keywords.get("encoder_hidden_states"), None
    if isinstance(text, Tensor) and text.ndim == 3:
        words = text.shape[1]
    joint = layer.image is not None or name.endswith(":text")
    text_queries = block == "text-image" or name.endswith(":text") or (joint and n == m)
    text_keys = block == "image-text" or joint or (m == words and m != n)
    return None if text_queries else layout(n, keywords), None if text_keys else layout(m, keywords)


def layout(n: int, keywords: dict[str, Any]) -> Grid | None:
    """The grid of n tokens, by the latents' height and width, by their positions, or square; None: a line.

    Text, sound, videos of several frames, and packed tokens that no argument places are lines.
    """
    if "input_ids" in keywords:
        return None
    latents, positions, sides = keywords.get("hidden_states"), keywords.get("img_ids"), _sides(keywords)
    if sides is not None:
        y, x = sides
        rows = round((n * y / x) ** 0.5)
        if rows and n % rows == 0 and rows * x == n // rows * y:
            return rows, n // rows
    if isinstance(positions, Tensor) and positions.ndim > 1 and positions.shape[-2] == n:
        rows, columns = (len(axis.unique()) for axis in positions.reshape(-1, *positions.shape[-2:])[0, :, 1:3].T)
        if rows * columns == n:
            return rows, columns
    side = round(n**0.5)
    unplaced = sides is None and isinstance(latents, Tensor) and latents.ndim in (3, 5)
    return None if unplaced or side * side != n else (side, side)


def _sides(keywords: dict[str, Any]) -> Grid | None:
    """Height and width of latents, or of the image that is packed in tokens; None where there are several frames."""
    latents, shapes = keywords.get("hidden_states"), keywords.get("img_shapes")
    if not isinstance(latents, Tensor):
        return None
    if latents.ndim == 4 or (latents.ndim == 5 and 1 in latents.shape[1:3]):
        return latents.shape[-2], latents.shape[-1]
    sizes = [keywords.get(key) for key in ("num_frames", "height", "width")] if shapes is None else shapes[0]
    if latents.ndim != 3 or any(size is None for size in sizes):
        return None
    frames, *sides = (int(size) for size in torch.as_tensor(sizes).flatten())
    return (sides[0], sides[1]) if frames == 1 and len(sides) == 2 else None
