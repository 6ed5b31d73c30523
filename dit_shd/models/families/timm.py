"""Image classifiers of timm by name, and timm's checkpoints: what timm.create_model loads is what is exported.

A folder of timm holds config.json (architecture, arguments, normalisation) and model.safetensors; so do timm's
repositories on the hub. Nothing else is read: no pickle.
"""

import inspect
import json
from pathlib import Path
from typing import Any, Self

import timm
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dit_shd.core.errors import UserError, one_line
from dit_shd.data.augmentation import ImageInput
from dit_shd.models.families import LibraryModel
from dit_shd.models.stochastic_depth import count_calls, replace_drop_paths

WEIGHTS = "model.safetensors"
PREPROCESSING = ("input_size", "interpolation", "crop_mode")
"""What a network does not determine of its images, beside mean, std and crop_pct."""
RESERVED = frozenset(inspect.signature(timm.create_model).parameters) - {"model_name", "kwargs"}
"""Arguments of timm.create_model that are not an architecture's: the source of weights, and the like."""
KEYS = frozenset({"num_classes", "in_chans", "img_size", "drop_path_rate"})
"""Of TimmModel, which gives them to the architecture."""


class TimmModel(LibraryModel, ConfigMixin):
    """A classifier of timm: images [b,c,y,x], normalised, to logits [b,k].

    Args:
        model: The architecture's name, as deit3_small_patch16_224.
        num_classes: Classes k.
        in_chans: Channels of an image, 1 or 3.
        img_size: Height and width of an image, one number or both; empty: the architecture's.
        mean: Of each channel, of values in [0, 1]; empty: the architecture's.
        std: Likewise.
        crop_pct: Share of an image's smaller side that evaluation takes; empty: the architecture's.
        preprocessing: How evaluation scales and crops, in timm's keys: {input_size: [c, y, x], interpolation: bilinear,
            crop_mode: squash}; empty: the architecture's.
        drop_path_rate: Stochastic depth: the last block's rate, from 0 at the first.
        class_names: Of each class, "" for a class without a name, None for a class that was not trained.
        options: Further arguments of timm.create_model, such as {depth: 6, num_heads: 3}.
    """

    config_name = "config.json"
    card_tags = ("image-classification", "timm")
    library = "timm"
    opened_by = (
        'timm.create_model("local-dir:FOLDER", pretrained=True)',
        'timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
    )

    @register_to_config
    def __init__(
        self,
        *,  # diffusers would save the default of an argument that is given by position
        model: str = "deit_tiny_patch16_224",
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        crop_pct: float | None = None,
        preprocessing: dict[str, Any] | None = None,
        drop_path_rate: float = 0.0,
        class_names: list[str | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"timm: drop_path_rate: wanted a number from 0 and below 1, found {drop_path_rate}")
        arguments = {"num_classes": num_classes, "in_chans": in_chans, "drop_path_rate": drop_path_rate or None}
        if isinstance(img_size, (list, tuple)) and len(img_size) != 2:
            raise UserError(f"timm: img_size: wanted a number, or height and width, found {list(img_size)}")
        _check_options(options or {})
        self.network = _network(model, {**(options or {}), **arguments, "img_size": img_size})
        replace_drop_paths(self.network, drop_path_rate > 0)  # timm has rates of its own for some, as Swin's
        self.input = self._input(in_chans, img_size, mean, std, crop_pct, preprocessing or {})
        if drop_path_rate:
            count_calls(self.network, self.input.shape)

    def _input(
        self,
        in_chans: int,
        img_size: int | list[int] | None,
        mean: list[float] | None,
        std: list[float] | None,
        crop_pct: float | None,
        preprocessing: dict[str, Any],
    ) -> ImageInput:
        """Size and normalisation of the images; those of timm's configuration where none are given."""
        if unknown := sorted(preprocessing.keys() - PREPROCESSING):
            raise UserError(f"timm: preprocessing: wanted {', '.join(PREPROCESSING)}, found {unknown[0]}")
        defaults: Any = {**self.network.pretrained_cfg, **preprocessing}  # type: ignore[dict-item]
        sides = defaults["input_size"][1:] if img_size is None else img_size
        height, width = (sides, sides) if isinstance(sides, int) else sides
        values = {"mean": mean, "std": std}
        for name, value in values.items():
            chosen = [float(x) for x in (defaults[name] if value is None else value)]
            if len(chosen) != in_chans:
                raise UserError(f"timm: {name}: wanted {in_chans} numbers, one for each channel, found {chosen}")
            values[name] = chosen
        moments = {name: tuple(value or ()) for name, value in values.items()}
        crop, interpolation = crop_pct or defaults.get("crop_pct") or 0.875, defaults.get("interpolation") or "bicubic"
        mode = str(defaults.get("crop_mode") or "center")
        return ImageInput(
            (in_chans, height, width), **moments, crop=float(crop), interpolation=str(interpolation), crop_mode=mode
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [b,k] of images [b,c,y,x]."""
        return self.network(pixels)

    def enable_gradient_checkpointing(self, *_: Any, **__: Any) -> None:
        """Recompute blocks in the backward.

        Raises:
            UserError: The architecture is one for which timm cannot.
        """
        network: Any = self.network
        try:
            network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # not supported, or it has no such method
            name = network.pretrained_cfg.get("architecture") or type(network).__name__
            raise UserError(
                f"gradient_checkpointing: timm recomputes no blocks of {name}; wanted gradient_checkpointing=false"
            ) from error

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the rest of diffusers' has no meaning here
        self, save_directory: str | Path, **_: Any
    ) -> None:
        """Write a folder that timm.create_model("local-dir:FOLDER", pretrained=True) reads."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.timm_config(), indent=2)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        state = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def timm_config(self) -> dict[str, Any]:
        """The config.json of timm for this model."""
        settings: Any = self.config
        arguments = {**(settings.options or {}), "img_size": settings.img_size, "in_chans": settings.in_chans}
        defaults: Any = self.network.pretrained_cfg
        c, y, x = self.input.shape
        kept = ("pool_size", "fixed_input_size", "first_conv", "classifier")
        configuration = {key: defaults[key] for key in kept if defaults.get(key) is not None}
        configuration |= {"num_classes": settings.num_classes, "input_size": [c, y, x]}
        configuration |= {"mean": list(self.input.mean), "std": list(self.input.std), "crop_pct": self.input.crop}
        configuration |= {"interpolation": self.input.interpolation, "crop_mode": self.input.crop_mode}
        classes = settings.class_names
        names = {} if classes is None else {"label_names": [name or "" for name in classes]}
        return {
            "architecture": settings.model,
            "num_classes": settings.num_classes,
            "num_features": getattr(self.network, "num_features", None),
            **names,
            "pretrained_cfg": configuration,
            "model_args": {key: value for key, value in arguments.items() if value is not None},
        }

    @classmethod
    def is_config(cls, values: dict[str, Any]) -> bool:
        """Whether a config.json is timm's: it names an architecture."""
        return isinstance(values.get("architecture"), str) and "_class_name" not in values

    @classmethod
    def of_folder(cls, folder: Path, values: dict[str, Any]) -> Self:
        """The model of a folder of timm."""
        try:
            return cls._read(values, folder / WEIGHTS)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @classmethod
    def _read(cls, values: dict[str, Any], file: Path) -> Self:
        state, options = _tensors(file), _options(values)
        with torch.device("meta"):
            wanted = cls(**options).network.state_dict()
        if state.keys() != wanted.keys():
            state = _renamed(file, options, sorted(wanted.keys() ^ state.keys())[0])
        for name, tensor in state.items():
            if tensor.shape != wanted[name].shape:
                raise UserError(f"{name}: wanted {list(wanted[name].shape)}, found {list(tensor.shape)}")
        model = cls(**options)
        model.network.load_state_dict(state)
        return model


def _options(values: dict[str, Any]) -> dict[str, Any]:
    """The arguments of TimmModel for a config.json of timm."""
    pretrained = values.get("pretrained_cfg", values)
    arguments = dict(values.get("model_args") or {})
    size = pretrained.get("input_size") or (3, None)
    fixed = size[1:] if pretrained.get("fixed_input_size") and len(size) == 3 else None
    names = values.get("label_names")
    given = {"input_size": list(size) if fixed is None and len(size) == 3 else None}
    given |= {key: pretrained.get(key) for key in PREPROCESSING[1:]}
    for key in ("drop_path_rate", "num_classes"):
        arguments.pop(key, None)
    return {
        "model": str(values["architecture"]),
        "num_classes": values.get("num_classes", pretrained.get("num_classes", 1000)),
        "in_chans": arguments.pop("in_chans", size[0]),
        "img_size": _side(arguments.pop("img_size", fixed)),
        **{name: list(pretrained[name]) for name in ("mean", "std") if pretrained.get(name)},
        "crop_pct": pretrained.get("crop_pct"),
        "preprocessing": {key: value for key, value in given.items() if value} or None,
        "class_names": list(names) if isinstance(names, (list, tuple)) else None,
        "options": arguments or None,
    }


def _side(size: object) -> object:
    """One number of a square's two, which timm itself writes."""
    if not isinstance(size, (list, tuple)):
        return size
    return size[0] if len({*size}) == 1 else list(size)


def _renamed(file: Path, options: dict[str, Any], first: str) -> dict[str, Tensor]:
    """The tensors of a file with the names of another code, converted by timm.

    Raises:
        UserError: They are not those of the architecture.
    """
    arguments = {key: options[key] for key in ("num_classes", "in_chans", "img_size")}
    source = {"file": str(file), "custom_load": False, "num_classes": options["num_classes"]}
    try:
        network = timm.create_model(
            options["model"],
            pretrained=True,
            pretrained_cfg_overlay=source,
            **{**(options["options"] or {}), **arguments},
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{file.name}: the tensors are not those of {options['model']}, first {first}") from error
    return network.state_dict()


def _check_options(options: dict[str, Any]) -> None:
    """Refuse options that are no architecture's, or that the student's own keys would replace.

    Raises:
        UserError: Such a key.
    """
    if reserved := sorted(RESERVED & options.keys()):
        raise UserError(f"timm: options: wanted arguments of the architecture, found {reserved[0]}")
    if doubled := sorted(KEYS & options.keys()):
        key = doubled[0]
        raise UserError(
            f"timm: options: {key} is a key beside options; wanted student.{key}={options[key]}, not "
            f"student.options.{key}"
        )


def _network(model: str, arguments: dict[str, Any]) -> nn.Module:
    """A module of timm by name; no weights are read.

    Raises:
        UserError: No such architecture, or arguments that it does not take.
    """
    if not timm.is_model(model):
        near = timm.list_models(f"*{model.partition('.')[0].partition('_')[0]}*")[:4]
        raise UserError(f"timm: no architecture called '{model}'; timm has {', '.join(near) or 'timm.list_models()'}")
    try:
        return timm.create_model(model, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"timm: {model} cannot be made with {_list(arguments)} ({one_line(str(error))})") from error


def _list(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items() if value is not None)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Of a safetensors file.

    Raises:
        UserError: There is none, or it is damaged.
    """
    if not file.is_file():
        others = sorted(
            other.name for other in file.parent.glob("*") if other.suffix in (".bin", ".pth", ".safetensors")
        )
        raise UserError(f"wanted {file.name} beside config.json, found {', '.join(others) or 'no weights'}")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file.name} is no readable safetensors file ({one_line(str(error))})") from error
