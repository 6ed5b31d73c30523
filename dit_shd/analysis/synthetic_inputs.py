"""Random inputs for any transformer, by the names of its forward's arguments and the sizes in its config.

Adding an argument is one function and one line of MAKERS.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dit_shd.analysis.inputs import REMEDY, Inputs, Time
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.models.prediction import convention_of

SIDE, TEXT_LENGTH, PIXELS, GUIDANCE = 16, 77, 8, 3.5
"""Defaults for a config without these: tokens on a side, text tokens, pixels of a latent, the embedded guidance."""
TEXT_WIDTHS = "caption_channels", "joint_attention_dim", "text_embed_dim", "cap_feat_dim", "cross_attention_dim"


Argument = Tensor | dict[str, Tensor] | list[tuple[int, int, int]] | None
"""The value of an argument; None if it cannot be made."""


class SyntheticInputs(Inputs):
    """Random arguments, the same for the same seed and sample.

    Raises:
        UserError: A required argument that is not in MAKERS.
    """

    name = "random inputs"

    def __init__(self, model: nn.Module, batches: Sequence[range], seed: int, time: Time):
        self.batches, self._seed, self.convention = batches, seed, convention_of(model)
        self._config = dict(cast("Mapping[str, Any]", model.config))
        self.fraction = {"steps": False, "fraction": True, "auto": None}[time]
        parameters = inspect.signature(model.forward).parameters
        self._timed = "timestep" in parameters
        self._names = [name for name in parameters if name in MAKERS and self._make(name, range(1)) is not None]
        for name, parameter in parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and name not in (*self._names, "timestep"):
                raise UserError(f"{type(model).__name__}: cannot make up its argument '{name}'; {REMEDY}")
        self.words = (
            f"{batches[-1].stop} random inputs: pure noise as hidden_states, the same at every timestep, and random "
            "conditions; they show the model's structure, not its behaviour on images"
        )

    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        arguments = {name: self._make(name, samples) for name in self._names}
        time = torch.full((len(samples),), float(self.time(t)))
        return arguments | ({"timestep": time} if self._timed else {})

    def _make(self, name: str, samples: range) -> Argument:
        return MAKERS[name](self, name, samples)

    def size(self, *keys: str) -> int | None:
        """The value of the first of these config keys that holds a whole number."""
        return next((v for key in keys if isinstance(v := self._config.get(key), int)), None)

    def has(self, key: str) -> bool:
        """Whether a config key is set."""
        return bool(self._config.get(key))

    @property
    def axes(self) -> int:
        """Axes of the rotary positions of packed tokens; 0 if the model has none."""
        return len(self._config.get("axes_dims_rope") or ())

    @property
    def text_length(self) -> int:
        """Number of text tokens."""
        return self.size("max_text_seq_length", "text_len") or TEXT_LENGTH

    @property
    def side(self) -> int:
        """Height and width of the latents."""
        return self.size("sample_size") or 2 * SIDE

    def normal(self, name: str, samples: range, *shape: int | None) -> Tensor | None:
        """Standard normal numbers [b,*shape]; None if a size is unknown."""
        if None in shape:
            return None
        return rng.normal(self._seed, f"inspect {name}", 0, samples, shape)  # type: ignore[arg-type]

    def integers(self, name: str, samples: range, high: int | None) -> Tensor | None:
        """Whole numbers below `high` [b]; None if that is unknown."""
        if high is None:
            return None
        return (rng.uniform(self._seed, f"inspect {name}", 0, samples) * high).long()


def _latents(drawn: SyntheticInputs, name: str, samples: range) -> Tensor | None:
    channels = drawn.size("in_channels")
    if drawn.axes and drawn.size("sample_size") is None:  # packed tokens, as Flux has them
        return drawn.normal(name, samples, SIDE * SIDE, channels)
    return drawn.normal(name, samples, channels, drawn.side, drawn.side)


def _text(drawn: SyntheticInputs, name: str, samples: range) -> Tensor | None:
    return drawn.normal(name, samples, drawn.text_length, drawn.size(*TEXT_WIDTHS))


def _mask(drawn: SyntheticInputs, name: str, samples: range) -> Tensor:
    return torch.ones(len(samples), drawn.text_length, dtype=torch.bool)


def _pooled(drawn: SyntheticInputs, name: str, samples: range) -> Tensor | None:
    return drawn.normal(name, samples, drawn.size("pooled_projection_dim"))


def _labels(drawn: SyntheticInputs, name: str, samples: range) -> Tensor | None:
    return drawn.integers(name, samples, drawn.size("num_classes", "num_embeds_ada_norm"))


def _guidance(drawn: SyntheticInputs, name: str, samples: range) -> Tensor | None:
    return torch.full((len(samples),), GUIDANCE) if drawn.has("guidance_embeds") else None


def _pixels(drawn: SyntheticInputs, name: str, samples: range) -> Tensor:
    return torch.full((len(samples), 2), float(PIXELS * drawn.side))


def _corner(drawn: SyntheticInputs, name: str, samples: range) -> Tensor:
    return torch.zeros(len(samples), 2)


def _conditions(drawn: SyntheticInputs, name: str, samples: range) -> dict[str, Tensor]:
    return {"resolution": _pixels(drawn, name, samples), "aspect_ratio": torch.ones(len(samples), 1)}


def _shapes(drawn: SyntheticInputs, name: str, samples: range) -> list[tuple[int, int, int]]:
    return [(1, SIDE, SIDE)] * len(samples)


def _image_positions(drawn: SyntheticInputs, name: str, samples: range) -> Tensor:
    """[n,axes]: row and column of every token in the second and third axis."""
    at = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).float()
    return torch.nn.functional.pad(at, (1, max(drawn.axes, 3) - 3))


def _text_positions(drawn: SyntheticInputs, name: str, samples: range) -> Tensor:
    return torch.zeros(drawn.text_length, max(drawn.axes, 3))


MAKERS: dict[str, Callable[[SyntheticInputs, str, range], Argument]] = {
    "hidden_states": _latents,
    "encoder_hidden_states": _text,
    "encoder_hidden_states_mask": _mask,
    "encoder_attention_mask": _mask,
    "pooled_projections": _pooled,
    "class_labels": _labels,
    "guidance": _guidance,
    "added_cond_kwargs": _conditions,
    "img_shapes": _shapes,
    "img_ids": _image_positions,
    "txt_ids": _text_positions,
    "original_size": _pixels,
    "target_size": _pixels,
    "crop_coords": _corner,
}
"""Argument -> function that makes it; it returns None, and the argument is left out, if the config lacks a size."""
