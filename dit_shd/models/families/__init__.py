"""Model families, one file each: adding a family is one file. A family is a diffusers ModelMixin."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from diffusers import ModelMixin

from dit_shd.core.plugins import PluginFolder


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


FAMILIES = PluginFolder(__name__, ModelMixin, "models")
