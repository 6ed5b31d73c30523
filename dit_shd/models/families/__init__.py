"""Model families, one file each: adding a family is one file. A family is a diffusers ModelMixin."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Self

from diffusers import ModelMixin

from dit_shd.core.plugins import PluginFolder


class LibraryModel(ModelMixin):
    """A model that is built by another library, whose folders are read and written as that library has them."""

    @classmethod
    @abstractmethod
    def is_config(cls, values: dict[str, Any]) -> bool:
        """Whether a config.json is one of that library's."""

    @classmethod
    @abstractmethod
    def of_folder(cls, folder: Path, values: dict[str, Any]) -> Self:
        """The model of such a folder.

        Args:
            values: what its config.json says.

        Raises:
            UserError: it cannot be read.
        """


FAMILIES = PluginFolder(__name__, ModelMixin, "models")
