"""A model like another but smaller, of diffusers, MDTv2 or DiT: `student: {like: teacher, num_layers: 14}`."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin

from dit_shd.core.errors import UserError, error_line, unknown
from dit_shd.core.places import Asset, HubName, Place, find
from dit_shd.core.pretrained import asset, class_name, model_folder, of_hub, read_config
from dit_shd.models.families import FAMILIES
from dit_shd.models.quantization import OF_QUANTISED
from dit_shd.models.students import smaller

NO_SIZES = ("_class_name", "_diffusers_version", "_name_or_path", *OF_QUANTISED)
"""Keys of a config.json that are no arguments of the class."""


class Diffusers(ModelMixin):
    """A transformer with random weights; what is built is of diffusers' own class, or that of the family mdt or dit.

    Args:
        like: The model whose class and config it has: a folder or hub:OWNER/NAME, of a pipeline its transformer.
        transformer: In place of like: the name of a class of diffusers, whose own defaults are its config.
        config: Keys that differ, such as {num_layers: 14, num_attention_heads: 12}; what follows from them follows.
    """

    @classmethod
    def from_options(
        cls, like: Place | None = None, transformer: str | None = None, config: dict[str, object] | None = None
    ) -> ModelMixin:
        """The model.

        Args:
            like: The model whose class and config it has.
            transformer: In place of it: the name of a class, whose own defaults are its config.
            config: Keys that differ.

        Raises:
            UserError: No such model, keys that its class does not have, or sizes that do not fit together.
        """
        if (like is None) == (transformer is None):
            raise UserError("student: wanted like=MODEL or transformer=CLASS, and one of them")
        if like is None:
            made, values = _class(str(transformer), "diffusers"), {**(config or {})}
        else:
            folder = _folder(like)
            if "model_type" in read_config(folder):
                raise UserError(
                    f"student.like: is for models of diffusers, and '{like}' is one of transformers; wanted student="
                    "{name: transformers, config: {model_type: ..., sizes in that library's keys}}"
                )
            name = class_name(folder)
            made = _class_of_families(name) or _class(name, str(folder))
            source = {key: value for key, value in read_config(folder).items() if key not in NO_SIZES}
            values = smaller(source, config or {})
        return _built(made, values)


def described(teacher: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a student like a teacher that is not here, but is described.

    Args:
        teacher: Options of this family: transformer, and the keys of config that are not the class's defaults.
        changes: Keys in which the student differs.

    Raises:
        UserError: No such class, a key that it does not have, or a size beyond the teacher's.
    """
    cls = _class(str(teacher.get("transformer")), "diffusers")
    parameters = inspect.signature(cls.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    sizes = {**defaults, **(teacher.get("config") or {})}
    return {"transformer": cls.__name__, "config": smaller(sizes, changes)}


def _built(cls: type[ModelMixin], values: dict[str, Any]) -> ModelMixin:
    """The model of a class and its arguments.

    Raises:
        UserError: An argument that it does not have, or sizes that do not fit together.
    """
    known = inspect.signature(cls.__init__).parameters
    for key in values:
        if key not in known:
            raise unknown(f"student.config of {cls.__name__}", key, known)
    try:
        return cls(**values)  # type: ignore[call-arg]
    except Exception as error:  # of diffusers, for sizes that do not fit together
        raise UserError(f"student: no {cls.__name__} has these sizes ({error_line(error, 200)})") from error


def _folder(place: str) -> Path:
    path = find(place, "model", "student.like")
    if isinstance(path, Asset):
        return asset(path.name)
    folder = of_hub(path) if isinstance(path, HubName) else model_folder(path)
    if folder is None:
        raise UserError(f"student.like: wanted a folder with a model or a pipeline, found none in '{place}'")
    return folder


def _class_of_families(name: str) -> type[ModelMixin] | None:
    """The class of dit_shd's own that a config.json names; None where there is none."""
    families = [] if hasattr(diffusers, name) else map(FAMILIES.find, FAMILIES.names())
    return next((family for family in families if family.__name__ == name and family is not Diffusers), None)


def _class(name: str, where: str) -> type[ModelMixin]:
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, ModelMixin)):
        raise UserError(f"student: {where} holds a {name}, which the installed diffusers does not have")
    return cls
