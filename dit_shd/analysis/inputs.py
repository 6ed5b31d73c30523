"""What a model is shown when its attention is looked at: images of a dataset, a user's own tensors, or (drawn.py)
random ones. Timesteps count 0..1000, or the steps of a run's schedule, whatever the model's own unit is.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.embeddings import Timesteps
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import NPZ, SAFETENSORS, file_kind
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.process import FLOW_STEPS, Process
from dit_shd.models.prediction import Convention, convention_of

Time = Literal["auto", "steps", "fraction"]
"""The unit of a model's `timestep`: steps 0..1000, or the fraction t / 1000."""
REMEDY = "give the forward's arguments by inputs=FILE (npz or safetensors)"


class Inputs(ABC):
    """The keyword arguments of a model's forward, at any timestep."""

    name: str
    words: str
    """What these inputs are, for the page."""
    batches: Sequence[range]
    """The samples of every forward."""
    fraction: bool | None = None
    """Whether the model wants t / 1000; None: not known yet."""
    convention: Convention | None = None
    """Of a model of velocities, whose config says how it is given time."""

    @abstractmethod
    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        """The arguments of some samples at timestep t."""

    @property
    def first(self) -> range:
        """The samples of the pictures: one, if samples can be told apart."""
        return self.batches[0][:1]

    def time(self, t: int) -> float:
        """What the model is given at timestep t."""
        if self.convention is not None:
            return float(self.convention.time(torch.tensor(t / FLOW_STEPS, dtype=torch.float64)))
        return t / 1000 if self.fraction else t


class DatasetInputs(Inputs):
    """Images (or latents) of a dataset, noised to timestep t, with their labels."""

    name = "images of the data"

    def __init__(self, model: nn.Module, dataset: Dataset, process: Process, batches: Sequence[range], seed: int):
        denoiser = Denoiser(model)
        shape = denoiser.shape
        if shape != tuple(dataset.shape):
            raise UserError(f"data: the model takes latents of shape {shape}, the data's are {tuple(dataset.shape)}")
        if denoiser.classes < dataset.classes:
            raise UserError(f"data: the model knows {denoiser.classes} classes, the data has {dataset.classes}")
        self.batches, self._process, self._seed = batches, process, seed
        chosen = rng.permutation(seed, "inspect", 0, len(dataset))[: batches[-1].stop]
        sample = dataset.batch(chosen, rng.Draws(seed, 0, range(len(chosen)), len(chosen)))
        self.x_0, self._labels = sample["latents"], sample["labels"]
        if len(chosen) < batches[-1].stop:
            raise UserError(f"samples: wanted up to {len(chosen)}, all that the data has, found {batches[-1].stop}")
        self.words = f"{len(chosen)} images of the data, noised to each timestep, with their labels"

    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        x_0 = self.x_0[samples.start : samples.stop]
        noise = rng.normal(self._seed, "inspect noise", 0, samples, x_0.shape[1:])
        step = torch.full((len(samples),), t)
        x_t, labels = self._process.add_noise(x_0, noise, step), self._labels[samples.start : samples.stop]
        return {"hidden_states": x_t, "timestep": self._process.time(step), "class_labels": labels}


class FileInputs(Inputs):
    """The arrays of a file, all in one forward; `a.b` is the entry b of the dictionary a; only `timestep` changes.

    Raises:
        UserError: not such a file, or arguments the forward does not know.
    """

    def __init__(self, model: nn.Module, path: Path, time: Time):
        arrays = _read(path)
        known = inspect.signature(model.forward).parameters
        unknown = [name for name in arrays if name.partition(".")[0] not in known]
        if unknown:
            raise UserError(f"{path}: '{unknown[0]}' is no argument of the forward. Known: {', '.join(known)}")
        if "hidden_states" not in arrays:
            raise UserError(f"{path}: wanted hidden_states among the arrays, found {', '.join(arrays) or 'none'}")
        self.name, self.convention = str(path), convention_of(model)
        self._timestep = arrays.pop("timestep", torch.zeros(len(arrays["hidden_states"])))
        told = self._timestep.is_floating_point() and 0 < float(self._timestep.max()) <= 1
        self.fraction = {"steps": False, "fraction": True, "auto": True if told else None}[time]
        self._keywords: dict[str, Any] = {}
        for name, array in arrays.items():
            outer, dot, entry = name.partition(".")
            if dot:
                self._keywords.setdefault(outer, {})[entry] = array
            else:
                self._keywords[name] = array
        count = len(arrays["hidden_states"])
        self.batches = [range(count)]
        self.words = f"the {count} samples of {path.name}; hidden_states are the same at every timestep"

    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        timestep = self._timestep.float() if self.fraction or self.convention else self._timestep
        return {**self._keywords, "timestep": torch.full_like(timestep, self.time(t))}

    @property
    def first(self) -> range:
        return self.batches[0]


def try_out(model: nn.Module, inputs: Inputs, t: int) -> None:
    """One forward at timestep t (1 or more), unrecorded: what does not fit is said, the unit of `timestep` found out.

    diffusers' Timesteps module is shown 1000 t by a model that multiplies what it is given.

    Raises:
        UserError: the forward failed.
    """
    seen: list[float] = []

    def look(module: Any, args: tuple[Any, ...]) -> None:
        seen.append(float(args[0].max()) * module.scale)

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, Timesteps)]
    try:
        model(**on_device(inputs.keywords(inputs.first, t), model), return_dict=False)
    except Exception as error:  # anybody's model, with whatever it makes of the inputs
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{type(model).__name__}: its forward failed on {inputs.name} ({reason}); {REMEDY}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if inputs.fraction is None:
        inputs.fraction = bool(seen) and seen[0] >= 100 * t


def on_device(value: Any, model: nn.Module) -> Any:
    """Tensors, also inside dictionaries, where the model is."""
    if isinstance(value, dict):
        return {k: on_device(v, model) for k, v in value.items()}
    return value.to(next(model.parameters()).device) if isinstance(value, Tensor) else value


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz or safetensors file; floating ones as float32."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted an npz or safetensors file of the forward's arguments")
    try:
        if file_kind(path) == SAFETENSORS:
            found = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except Exception as error:  # a stranger's file can be wrong in any way; nothing in it is executed
        kind = file_kind(path)
        found = f"{kind} with more than numbers in it, or damaged" if kind in (NPZ, SAFETENSORS) else kind
        raise UserError(
            f"{path}: wanted an npz or safetensors file of the forward's arguments, found {found}"
        ) from error
    return {name: x.float() if x.is_floating_point() else x for name, x in found.items()}
