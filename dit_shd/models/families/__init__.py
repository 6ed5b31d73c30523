"""Model families, one file each: adding a family is one file. A family is a diffusers ModelMixin."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import ConfigMixin, ModelMixin

from dit_shd.core.plugins import PluginFolder

FAMILY = "_dit_shd_family"
"""Key of a config.json: the dotted name of a family of another package. diffusers warns of no key that begins so."""


class LibraryModel(ModelMixin):
    """A model of another library, read from and written to folders in that library's format."""

    card_tags: ClassVar[tuple[str, ...]] = ()
    """What the hub calls such models, for the cards of exports."""
    library: ClassVar[str] = "dit_shd"
    """The library's name, as the hub has it."""
    opened_by: ClassVar[tuple[str, ...]] = ()
    """What opens such folders in that library, in code."""

    @classmethod
    @abstractmethod
    def is_config(cls, values: dict[str, Any]) -> bool:
        """Whether a config.json is one of that library's."""

    @classmethod
    @abstractmethod
    def of_folder(cls, folder: Path, values: dict[str, Any]) -> Self:
        """The model of such a folder.

        Args:
            folder: With config.json and the weights.
            values: Of config.json.

        Raises:
            UserError: It cannot be read.
        """


def named(model: ModelMixin, name: str) -> ModelMixin:
    """The model, in whose config the dotted name of its family stands, so that its folder can be read."""
    if isinstance(model, ConfigMixin):
        model.register_to_config(**{FAMILY: name})
    return model


FAMILIES = PluginFolder(__name__, ModelMixin, "models", note_name=named)
