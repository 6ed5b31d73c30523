"""The sizes of a class-conditional transformer of square latents, for the models of dit_shd and diffusers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

HEADS = ("heads", "num_heads", "num_attention_heads", "n_heads", "head_dim", "head_size")
"""What modules of attention call the number of their heads, or the width of one."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes that a model's config names; reading one that it does not name is a ValueError."""

    model: str
    """The class of the model, for errors."""
    config: Mapping[str, object]

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self._size("num_layers")

    @property
    def heads(self) -> int:
        """Heads of a block."""
        return self._size("num_attention_heads")

    @property
    def width(self) -> int:
        """e, the width of the tokens."""
        return self.heads * self._size("attention_head_dim")

    @property
    def patch(self) -> int:
        """p, height and width of a token's patch of the latents."""
        return self._size("patch_size")

    @property
    def tokens(self) -> int:
        """n, the number of tokens of an unmasked pass."""
        return (self.side // self.patch) ** 2

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self._size("in_channels")

    @property
    def side(self) -> int:
        """Height and width of the latents."""
        return self._size("sample_size")

    @property
    def latents(self) -> tuple[int, int, int]:
        """Shape of one sample's latents (c, y, x)."""
        return self.channels, self.side, self.side

    @property
    def classes(self) -> int:
        """Number of classes; this number is also the label for "no class"."""
        return self._size("num_classes", "num_embeds_ada_norm")

    @property
    def class_names(self) -> Sequence[str | None] | None:
        """The name of each class, "" where it has none, None where it was not trained; None: no names are known."""
        return cast("Sequence[str | None] | None", self.config.get("class_names"))

    def names(self, *keys: str) -> bool:
        """Whether the config names one of several sizes."""
        return any(isinstance(self.config.get(key), int) for key in keys)

    def _size(self, *keys: str) -> int:
        for key in keys:
            if isinstance(size := self.config.get(key), int):
                return size
        raise ValueError(f"{self.model}: its config does not name {' or '.join(keys)}")


def shape_of(model: nn.Module) -> ModelShape:
    """The sizes of a model, also of a compiled one; a model without a config names none."""
    config: object = getattr(model, "config", None)
    return ModelShape(type(model).__name__, config if isinstance(config, Mapping) else {})


def is_conditional(model: nn.Module) -> bool:
    """Whether the config of a model names the sizes of latents and classes."""
    shape = shape_of(model)
    latents = shape.names("in_channels") and shape.names("sample_size")
    return latents and shape.names("num_classes", "num_embeds_ada_norm")


def differing_heads(
    student: nn.Module, other: nn.Module, source_of: Callable[[str], str] = str
) -> tuple[str, int, int] | None:
    """The first attention of two models that divides tensors of the same shapes into other heads, if any does.

    Args:
        student: Whose modules are looked through.
        other: What they are compared with.
        source_of: Gives the name of a module in the other model by its name in the student.

    Returns:
        "KEY of MODULE", and its value in the student and in the other model.
    """
    modules = dict(other.named_modules())
    for name, module in student.named_modules():
        for key in HEADS:
            here, there = (vars(x).get(key) for x in (module, modules.get(source_of(name), module)))
            if isinstance(here, int) and isinstance(there, int) and here != there:
                return f"{key} of {name}", here, there
    return None
