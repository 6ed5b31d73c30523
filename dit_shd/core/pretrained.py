"""Folders of diffusers models, local, on the hub or among the assets: finding them and reading weights safely."""

import logging
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.json_files import read_object
from dit_shd.core.places import WANTED, Asset, HubName, find
from dit_shd.core.run_files import RUN_CONFIG, STUDENT

if TYPE_CHECKING:
    from diffusers import ModelMixin

Model = TypeVar("Model", bound="ModelMixin")
RECORD, COPY = "autoencoder.json", "vae"
TRAINING = "training.json"
"""File of an exported student with its training step, and what sampling must know of its run."""
PIPELINE = "pipeline.json"
"""File of a student with the pipeline that its text was encoded by."""


def asset(name: str) -> Path:
    """The folder of the model of `asset:NAME`; of a pipeline, its transformer's."""
    assets = Path(str(resources.files("dit_shd") / "assets"))
    known = {file.parent.name: file.parent for file in sorted(assets.glob("*/config.json"))}
    known |= {file.parent.parent.name: file.parent for file in sorted(assets.glob("*/transformer/config.json"))}
    if name not in known:
        raise UserError(f"asset:{name}: no such model among dit_shd's assets; there is: {', '.join(known)}")
    return known[name]


SUBFOLDERS = (STUDENT, ".", "transformer")
"""Where the model is in the folder of a run, of a model, of a pipeline."""
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
"""How diffusers names files of weights, with the number of a shard and a variant such as fp16."""
LIBRARY_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""How timm and transformers name them."""
READING = threading.RLock()
"""Held while a model is read or made: diffusers and transformers patch torch for all threads while they read."""

_log = logging.getLogger("dit_shd")


def model_folder(path: Path) -> Path | None:
    """The diffusers model in the folder of a run, a model or a pipeline; None where there is none."""
    return next((path / inside for inside in SUBFOLDERS if (path / inside / "config.json").is_file()), None)


def folder_of_weights(file: Path) -> Path | None:
    """The folder of the model whose weights a file holds; None for a checkpoint by itself, without config.json."""
    beside = WEIGHTS.fullmatch(file.name) is not None and file.is_file() and (file.parent / "config.json").is_file()
    return file.parent if beside else None


def config_of_run(place: str | Path) -> Path | None:
    """The config.yaml of the run that a model is of; None for a model of no run.

    A run's models are its folders `student` and `student_*`; what else lies in its folder may be of others.

    Args:
        place: A run, a student's folder in it, or the file of its weights; of other places, and of "", there is none.
    """
    if place == "":
        return None
    path = folder_of_weights(Path(place)) or Path(place)
    inside = path.absolute().name.startswith(STUDENT)
    files = [folder / RUN_CONFIG for folder in ((path, path.absolute().parent) if inside else (path,))]
    return next((file for file in files if file.is_file()), None)


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json; empty where there is none, or it is not readable."""
    return read_object(folder / "config.json") or {}


def class_name(folder: Path) -> str:
    """The class that a folder's config.json names.

    Raises:
        UserError: It is not the config of a diffusers model.
    """
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{folder}/config.json: not the config of a diffusers model (no _class_name)")
    return name


def read_weights(cls: type[Model], folder: Path, variant: str | None = None, **options: Any) -> Model:
    """Read a model of a diffusers class from its folder, without executing anything in it or asking the hub.

    Args:
        cls: A subclass of diffusers.ModelMixin.
        folder: With config.json and the weights.
        variant: Of the weights, such as fp16; None for those without a variant, or for the only one.
        options: More arguments of from_pretrained: precision, quantization, device.

    Raises:
        UserError: No weights, an ambiguous variant, or weights that do not fit config.json.
    """
    import torch

    default = torch.get_default_dtype()
    chosen = choose_weights((file.name for file in folder.iterdir()), str(folder), variant)
    load: Any = cls.from_pretrained  # its annotation lacks the loading info
    try:  # weights that are no safetensors are read with weights_only by diffusers
        with READING:
            model, info = load(
                str(folder),
                variant=chosen.variant,
                use_safetensors=chosen.safe,
                output_loading_info=True,
                local_files_only=True,
                **options,
            )
    except Exception as error:  # of several libraries, for a folder that may be wrong in any way
        torch.set_default_dtype(default)  # diffusers leaves the one that it reads in
        raise UserError(f"{folder}: cannot be read as {cls.__name__}: {_reason(error)}") from error
    for wrong, words in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        if info[wrong]:
            count, first = len(info[wrong]), sorted(info[wrong])[0]
            raise UserError(f"{folder}: the weights do not fit config.json: {count} {words}, first {first}")
    if chosen.note:
        _log.info("%s: %s", folder, chosen.note)
    return model


def _reason(error: Exception) -> str:
    """The helpful part of a library's error about a folder."""
    text = error_line(error, 300)
    if text.startswith("Cannot load because "):
        misfit = text.removeprefix("Cannot load because ").partition(". If you want")[0]
        return f"the weights do not fit config.json: {misfit}"
    if text.startswith("Unable to load weights from checkpoint file"):
        return "its file of weights is damaged; copy or download it again"
    if isinstance(error, (TypeError, AttributeError)):
        return f"a value in config.json is of a kind that it cannot be ({text[:120]})"
    return text[:200]


@dataclass(frozen=True)
class Chosen:
    """The weights of a folder that are read: their files, and the arguments of diffusers for them."""

    files: list[str]
    variant: str | None
    safe: bool
    """Whether they are safetensors."""
    note: str
    """About the choice, for the log; empty for none."""


def choose_weights(names: Iterable[str], where: str, variant: str | None = None) -> Chosen:
    """The weights to read in a diffusers folder.

    Those without a variant come before the only variant, safetensors before PyTorch files.

    Args:
        names: The names of the files in the folder.
        where: The folder, for errors.
        variant: As in read_weights.

    Raises:
        UserError: There are none, or several variants.
    """
    files: dict[tuple[str, bool], list[str]] = {}
    names = sorted(names)
    for name in names:
        match = WEIGHTS.fullmatch(name)
        if match:
            files.setdefault((match["variant"] or "", match["kind"] == "safetensors"), []).append(name)
    variants = sorted({key[0] for key in files})
    if not variants:
        others = ", ".join(
            name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".sft"))
        )
        raise UserError(
            f"{where}: wanted diffusion_pytorch_model.safetensors beside config.json, found {others or 'no weights'}"
        )
    wanted = variant or ("" if "" in variants or len(variants) > 1 else variants[0])
    if wanted not in variants:
        first = files[min(files)][0]
        raise UserError(
            f"{where}: holds weights of several variants ({', '.join(variants)}); name the file: {where}/{first}"
        )
    safe = (wanted, True) in files
    notes = [f"its only weights are of variant {wanted}, read as float32"] if wanted and variant is None else []
    notes += [] if safe else ["read from a PyTorch file (.bin), without running code"]
    index = [f"diffusion_pytorch_model.{'safetensors' if safe else 'bin'}.index{'.' + wanted if wanted else ''}.json"]
    return Chosen([*files[(wanted, safe)], *index], wanted or None, safe, "; ".join(notes))


def is_stored_in_bfloat16(folder: Path) -> bool:
    """Whether a model's files are safetensors, all of whose weights are bfloat16.

    Args:
        folder: Of the model.

    Raises:
        UserError: A file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    dtypes = set[str]()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                dtypes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot be read ({error_line(error)}); copy or download it again") from error
    return {dtype for dtype in dtypes if "F" in dtype} == {"BF16"}


def _library_weights(names: Sequence[str]) -> list[str]:
    """The safetensors of a repository of timm or transformers; empty where it has weights in diffusers' names."""
    if any(WEIGHTS.fullmatch(name) for name in names):
        return []
    return [name for name in names if LIBRARY_WEIGHTS.fullmatch(name)]


def autoencoder_folder(source: str | Path) -> Path:
    """The local folder of an autoencoder: of the name's own folder, of a pipeline's, or of a repository of the hub.

    Raises:
        UserError: There is none.
    """
    path = find(source, "autoencoder")
    if isinstance(path, HubName):
        return of_hub(path, (".", "vae"))
    if isinstance(path, Asset):
        path = asset(path.name).parent
    folder = next((path / inside for inside in (".", "vae") if (path / inside / "config.json").is_file()), None)
    if folder is None:
        raise UserError(f"'{source}': wanted {WANTED['autoencoder']}, found no config.json in it")
    return folder


def of_hub(name: HubName, subfolders: Sequence[str] = (".", "transformer")) -> Path:
    """The local folder of a model of the hub: downloaded, or where the hub cannot be reached, from the local cache.

    Args:
        name: The repository.
        subfolders: Where in it the model may be.

    Raises:
        UserError: No such repository, no model in it, or neither network nor cache.
    """
    configs = [f"{inside}/config.json".removeprefix("./") for inside in subfolders]
    files = name.files()
    if files is None:
        cached = next(filter(None, map(name.cached, configs)), None)
        if cached is None:
            raise name.unreachable()
        return cached.parent
    config = next((config for config in configs if config in files), None)
    if config is None:
        raise UserError(f"{name}: wanted a repository with {' or '.join(configs)}, it has none")
    inside = config.removesuffix("config.json")
    names = [f.removeprefix(inside) for f in files if f.startswith(inside)]
    weights = _library_weights(names) or choose_weights(names, str(name)).files
    wanted = [config, *(inside + file for file in weights), "README.md", RECORD, inside + TRAINING, inside + PIPELINE]
    return name.download([file for file in wanted if file in files]) / inside
