"""Loading a model: from a run folder, a diffusers folder, a checkpoint file, the hub or the assets."""

import inspect
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from dit_shd.core.config import cast
from dit_shd.core.devices import find_device
from dit_shd.core.errors import UserError
from dit_shd.core.places import Asset, HubName, find
from dit_shd.core.pretrained import (
    WEIGHTS,
    asset,
    class_name,
    folder_of_weights,
    is_stored_in_bfloat16,
    model_folder,
    of_hub,
    read_config,
    read_weights,
)
from dit_shd.core.run_files import CHECKPOINTS, RUN_CONFIG, STUDENT
from dit_shd.models import public_checkpoints, velocity
from dit_shd.models.bfloat16 import KEPT, in_bfloat16
from dit_shd.models.families import FAMILIES, FAMILY, LibraryModel, named
from dit_shd.models.prediction import NOISE
from dit_shd.models.quantization import (
    CONFIG,
    Precision,
    check_whole,
    config_for,
    is_quantised,
    mend_zeros,
    plain_parts,
    unread,
)
from dit_shd.models.shape import is_conditional, shape_of
from dit_shd.models.transformer import LatentTransformer

_log = logging.getLogger("dit_shd")


def load(source: str | Path, precision: Precision = "no", device: str | int | torch.device = "cpu") -> ModelMixin:
    """Load a model; of a pipeline its transformer.

    Args:
        source: A run folder, a diffusers folder, a checkpoint file, `asset:NAME` (ships with dit_shd), or
            `hub:OWNER/NAME[@REVISION]` of the Hugging Face hub.
        precision: Of the weights: no is float32; in fewer than 16 bits they are quantised as they are read.
        device: Where the model is put, `auto` for a CUDA GPU if there is one; a quantised model is read there.

    Raises:
        UserError: No such model or device; weights that are not finite, or look like a velocity's and do not say so.
    """
    cast(Precision, precision, "precision")
    place = find_device(device)
    if is_quantised(precision):
        model = _read_quantised(source, precision, place)
    else:
        model = _read(source, torch.bfloat16 if precision == "bf16" else None)
        model = in_bfloat16(model) if precision == "bf16" else model
    check_finite(str(source), model)
    reason = velocity.of_model(model)
    if reason is not None:
        raise UserError(f"{source}: refused, because {velocity.explain(reason)}")
    if place.type != "cpu" and not is_quantised(precision):
        nn.Module.to(model, place)  # in place
    return model


def check_finite(where: str, model: nn.Module) -> None:
    """Refuse a model whose weights, or statistics that are saved with them, are not finite.

    Args:
        where: The model, for the error.
        model: With its weights.

    Raises:
        UserError: NaN or infinity.
    """
    parameters, saved = model.named_parameters(), model.state_dict().keys()
    bad = next((name for name, p in parameters if not all(map(_is_finite, plain_parts(p).values()))), None)
    bad = bad or next((name for name, b in model.named_buffers() if name in saved and _is_bad_statistic(b)), None)
    if bad is not None:
        raise UserError(f"{where}: its weights are not finite (NaN or infinity), first in {bad}")


def _is_finite(tensor: Tensor) -> bool:
    return tensor.dtype.itemsize == 1 or bool(torch.isfinite(tensor).all())  # 8 bits have finite scales beside them


def _is_bad_statistic(buffer: Tensor) -> bool:
    """NaN or infinity; minus infinity stands in masks."""
    return buffer.is_floating_point() and buffer.dtype.itemsize > 1 and not bool((buffer < math.inf).all())


def load_conditional(source: str | Path) -> ModelMixin:
    """Load a class-conditional model of latents, as training and sampling need it; see `load`.

    Raises:
        UserError: As `load`, or it is another kind of model.
    """
    model = load(source)
    reason = why_not_conditional(model)
    if reason is not None:
        raise UserError(f"{source}: {reason}")
    return model


def why_not_conditional(model: nn.Module) -> str | None:
    """Why a model is not a class-conditional transformer of square latents; None for one that is."""
    parameters = inspect.signature(model.forward).parameters
    wrapped = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # compiled, or in another module
    by_class = wrapped or ("class_labels" in parameters and "encoder_hidden_states" not in parameters)
    if by_class and is_conditional(model):
        return None
    hint = ""
    if isinstance(model, LibraryModel) and model.opened_by:
        hint = f"; this one is {model.library}'s, whose folder is opened by {model.opened_by[0]}"
    elif "encoder_hidden_states" in parameters:
        hint = "; text-to-image models are trained by task.name=text_to_image and sampled by prompts=FILE"
    return (
        f"holds {type(model).__name__}, whose forward takes {', '.join([*parameters][:4]) or 'nothing'}; "
        f"wanted a transformer of square latents by class: MDTv2, DiT or diffusers' DiTTransformer2DModel{hint}"
    )


def stored_precision(source: str | Path) -> Precision:
    """The precision that holds a model's weights as its files have them: bf16 where these have no other, else no.

    Args:
        source: As in load.
    """
    path = find(source, "model")
    folder, _ = _folder(path)
    return "bf16" if folder is not None and is_stored_in_bfloat16(folder) else "no"


def _folder(path: Path | Asset | HubName) -> tuple[Path | None, str | None]:
    """The folder of a model, and the variant of its weights that a file was named of; None for what is in no folder."""
    if isinstance(path, Asset):
        return asset(path.name), None
    if isinstance(path, HubName):
        return of_hub(path), None
    if path.is_file():
        match = WEIGHTS.fullmatch(path.name)
        return folder_of_weights(path), match and match["variant"]
    return model_folder(path), None


def _read(source: str | Path, dtype: torch.dtype | None) -> ModelMixin:
    path = find(source, "model")
    folder, variant = _folder(path)
    if folder is None and isinstance(path, Path) and path.is_file():
        return read_file(path)
    if folder is None:
        assert isinstance(path, Path)
        inside = ", ".join(sorted(file.parent.name for file in path.glob("*/config.json")))
        actual = f"one with {inside} in it (a pipeline without a transformer?)" if inside else "none with a config.json"
        raise UserError(f"{path}: wanted a folder of a model, a run, or a pipeline with a transformer, found {actual}")
    return read_folder(folder, variant, dtype)


def _read_quantised(source: str | Path, precision: Precision, device: torch.device) -> ModelMixin:
    """A model in fewer bits than 16, of a folder of diffusers.

    Raises:
        UserError: It is something else, or quantised already.
    """
    folder, variant = _folder(find(source, "model"))
    values: dict[str, Any] = {} if folder is None else read_config(folder)
    check_whole(str(source), values)
    name = values.get("_class_name")
    cls: Any = None if name is None else families().get(str(name)) or _diffusers_class(str(name))
    if folder is None or cls is None:
        library = _library(values)
        made = "none; dit-shd convert makes one of a checkpoint file"
        raise unread(source, precision, made if library is None else f"one of {library.library}")
    quantised = config_for(precision, device, cls, values)
    options: dict[str, Any] = {"torch_dtype": torch.bfloat16, CONFIG: quantised}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    model = read_weights(cls, folder, variant, **options)
    mend_zeros(model)
    return model


def read_file(
    path: Path,
    weights: public_checkpoints.Weights | None = None,
    heads: int | None = None,
    prediction: str | None = None,
) -> LatentTransformer:
    """A model from a checkpoint file of a public code.

    Args:
        path: The file.
        weights: As in read_tensors.
        heads: As in LatentTransformer.from_public; None: what `dit-shd convert` recorded in the file, if it did.
        prediction: As in of_public; None: what `dit-shd convert` recorded in the file, else noise.

    Raises:
        UserError: It is no such file, or something in it does not fit.
    """
    checkpoints = path.absolute().parent.parent
    run = checkpoints.parent
    if checkpoints.name == CHECKPOINTS and (run / RUN_CONFIG).is_file():
        students = " or ".join(str(place) for place in sorted(run.glob(f"{STUDENT}*"))) or str(run)
        raise UserError(
            f"{path}: a checkpoint of {run} is what that run goes on from, and does not say what model it is of; what "
            f"can be sampled or learned from is {students}"
        )
    recorded = public_checkpoints.recorded(path)
    for key, says, given in (("prediction", recorded.prediction, prediction), ("heads", recorded.heads, heads)):
        if None not in (says, given) and says != given:
            raise UserError(f"{path}: its metadata says {key}={says}, found {key}={given}; leave it out")
    prediction = prediction or recorded.prediction or NOISE
    state = public_checkpoints.read_tensors(path, weights, prediction)
    try:
        model = of_public(state, recorded.heads if heads is None else heads, prediction)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    classes = shape_of(model).classes
    if recorded.class_names is not None and len(recorded.class_names) == classes:
        model.register_to_config(class_names=list(recorded.class_names))
    if classes + 1 in public_checkpoints.USUAL_CLASSES:
        _log.warning(
            "%s: its class embedding has %d rows, read as %d classes and one row for no class; if it knows %d classes "
            "and was trained without dropping labels, guidance with it is wrong: guidance=1",
            *(path, classes + 1, classes, classes + 1),
        )
    return model


def of_public(state: Mapping[str, Tensor], heads: int | None = None, prediction: str = NOISE) -> LatentTransformer:
    """A model from a public state dict of any family.

    Args:
        state: The tensors by name.
        heads: As in LatentTransformer.from_public.
        prediction: What the model predicts, for its config. SiT and REPA have DiT's tensors, and predict a velocity.

    Raises:
        UserError: Of no family, or something in it does not fit.
    """
    known = {name: cls for name, cls in families().items() if issubclass(cls, LatentTransformer)}
    state = public_checkpoints.clean(state)
    if any(name.endswith(".mlp.w12.weight") for name in state):
        raise UserError(
            "of LightningDiT (arXiv 2501.01423): its blocks (SwiGLU, RMS norm, rotary places) and its autoencoder are "
            "not among dit_shd's; DiT, SiT, REPA and MDTv2 are read"
        )
    if prediction == NOISE and (reason := velocity.of_state(state)) is not None:
        raise UserError(f"refused, because {velocity.explain(reason)}")
    if prediction != NOISE:  # REPA's projectors serve its training only
        state = {name: tensor for name, tensor in state.items() if not velocity.PROJECTOR.match(name)}
    for cls in known.values():
        if cls.is_public(state):
            model = cls.from_public(state, heads)
            model.register_to_config(prediction=prediction)
            return model
    first = ", ".join(sorted(state)[:2]) or "none"
    raise UserError(f"not a state dict of {' or '.join(known)}: none has tensors of these names ({first}, ...)")


def read_folder(folder: Path, variant: str | None = None, dtype: torch.dtype | None = None) -> ModelMixin:
    """The model of a diffusers folder.

    Args:
        folder: With config.json and weights.
        variant: As in read_weights.
        dtype: That diffusers is to read its own classes in, unless it names what stays in float32; None: float32.

    Raises:
        UserError: It cannot be read, is quantised already, or weights and config.json do not fit together.
    """
    config = read_config(folder)
    check_whole(str(folder), config)
    library = _library(config)
    if library is not None:
        return library.of_folder(folder, config).float()
    foreign = config.get(FAMILY)
    if isinstance(foreign, str):
        return named(read_weights(FAMILIES.find(foreign), folder, variant), foreign).float()
    name = class_name(folder)
    family, cls = families().get(name), _diffusers_class(name)
    if family is None and cls is not None and dtype is not None and not getattr(cls, KEPT, None):
        return read_weights(cls, folder, variant, torch_dtype=dtype)  # never whole in float32
    model_class: Any = family or cls
    if model_class is None:
        raise UserError(
            f"{folder}: model class '{name}' is neither ours ({', '.join(families())}) nor diffusers'; one "
            f'of your own is found by "{FAMILY}": "PACKAGE.MODULE.{name}" in its config.json and --trust PACKAGE'
        )
    return read_weights(model_class, folder, variant).float()


def families() -> dict[str, type]:
    """Every family of dit_shd, by the name of its class."""
    return {cls.__name__: cls for cls in (FAMILIES.find(name) for name in FAMILIES.names())}


def _library(values: dict[str, Any]) -> type[LibraryModel] | None:
    """Of another library's models, the family whose config.json this is."""
    return next((cls for cls in families().values() if issubclass(cls, LibraryModel) and cls.is_config(values)), None)


def _diffusers_class(name: str) -> type[ModelMixin] | None:
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin else None
