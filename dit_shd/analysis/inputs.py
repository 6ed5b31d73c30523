"""Inputs of a model whose attention is analysed: images of a dataset, or tensors in a file.

Random inputs are in synthetic_inputs.py. Timesteps count 0..1000, or the steps of a run's schedule, whatever the unit
of the model.
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
from torch.utils._pytree import tree_map_only

from dit_shd.core import rng
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.file_kinds import NPZ, SAFETENSORS, file_kind
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.conditioning import check_shape
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.process import Ddpm, Flow, Process
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models.prediction import Convention, convention_of

Time = Literal["auto", "steps", "fraction"]
"""The unit of a model's `timestep`: steps 0..1000, or the fraction t / 1000."""
FLOW_STEPS = 1000
"""Of a path, which has none by itself: a share of noise is t / 1000."""
REMEDY = "give the forward's arguments by inputs=FILE (npz or safetensors)"


class Inputs(ABC):
    """The keyword arguments of a model's forward, at any timestep."""

    name: str
    """For errors."""
    words: str
    """A description for the page."""
    batches: Sequence[range]
    """The samples of every forward."""
    fraction: bool | None = None
    """Whether the model's timestep is t / 1000; None if it is not known yet."""
    convention: Convention | None = None
    """Of a model of velocities, whose config says how it is given time."""

    @abstractmethod
    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        """The arguments for samples at timestep t."""

    @property
    def first(self) -> range:
        """The samples whose maps are drawn: one, if samples can be separated."""
        return self.batches[0][:1]

    def time(self, t: int) -> float:
        """Timestep t in the model's unit."""
        if self.convention is not None:
            return float(self.convention.time(torch.tensor(t / FLOW_STEPS, dtype=torch.float64)))
        return t / 1000 if self.fraction else t


class DatasetInputs(Inputs):
    """Images (or latents) of a dataset, noised to timestep t of a schedule or of rectified flow, with their labels."""

    name = "images of the data"

    def __init__(self, model: nn.Module, dataset: Dataset, schedule: Schedule, batches: Sequence[range], seed: int):
        denoiser = Denoiser(model)
        check_shape("data: the model takes", denoiser.shape, dataset)
        if denoiser.classes < dataset.classes:
            raise UserError(f"data: the model knows {denoiser.classes} classes, the data has {dataset.classes}")
        self.batches, self._seed, self.convention = batches, seed, convention_of(model)
        self._process: Process = Ddpm(schedule) if self.convention is None else Flow()
        chosen = rng.permutation(seed, "inspect", 0, len(dataset))[: batches[-1].stop]
        sample = dataset.batch(chosen, rng.Draws(seed, 0, range(len(chosen)), len(chosen)))
        self.x_0, self._labels = sample["latents"], sample["labels"]
        if len(chosen) < batches[-1].stop:
            raise UserError(f"samples: wanted up to {len(chosen)}, the size of the data, found {batches[-1].stop}")
        self.words = f"{len(chosen)} images of the data, noised to each timestep, with their labels"

    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        x_0 = self.x_0[samples.start : samples.stop]
        noise = rng.normal(self._seed, "inspect noise", 0, samples, x_0.shape[1:])
        step, convention = torch.full((len(samples),), t), self.convention
        time = step if convention is None else step.float() / FLOW_STEPS
        x_t, labels = self._process.add_noise(x_0, noise, time), self._labels[samples.start : samples.stop]
        given = time if convention is None else convention.time(time)
        return {"hidden_states": x_t, "timestep": given, "class_labels": labels}


class FileInputs(Inputs):
    """The arrays of a file, all in one forward; `a.b` is the entry b of the dictionary a; only `timestep` changes.

    Raises:
        UserError: Not such a file, or names that are no arguments of the forward.
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
        is_fraction = self._timestep.is_floating_point() and 0 < float(self._timestep.max()) <= 1
        self.fraction = {"steps": False, "fraction": True, "auto": True if is_fraction else None}[time]
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
    """Run one forward at timestep t (1 or more) without recording; it determines the unit of `timestep`.

    A model that multiplies its timestep passes 1000 t to diffusers' Timesteps module.

    Raises:
        UserError: The forward failed.
    """
    timesteps: list[float] = []

    def read_timestep(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, Timesteps)
        timesteps.append(float(args[0].max()) * module.scale)

    hooks = [m.register_forward_pre_hook(read_timestep) for m in model.modules() if isinstance(m, Timesteps)]
    try:
        model(**on_device(inputs.keywords(inputs.first, t), model), return_dict=False)
    except Exception as error:  # a model of any package can fail in any way
        words = f"its forward failed on {inputs.name} ({error_line(error)})"
        raise UserError(f"{type(model).__name__}: {words}; {REMEDY}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if inputs.fraction is None:
        inputs.fraction = bool(timesteps) and timesteps[0] >= 100 * t


def on_device(keywords: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Arguments with their tensors, also inside of dictionaries, on the model's device."""
    device = next(model.parameters()).device
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), keywords)


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of an npz or safetensors file; floating ones as float32."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; wanted an npz or safetensors file of the forward's arguments")
    try:
        if file_kind(path) == SAFETENSORS:
            arrays = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except Exception as error:  # an untrusted file can be wrong in any way; nothing in it is executed
        kind = file_kind(path)
        content = f"{kind} with more than numbers in it, or damaged" if kind in (NPZ, SAFETENSORS) else kind
        raise UserError(
            f"{path}: wanted an npz or safetensors file of the forward's arguments, found {content}"
        ) from error
    return {name: x.float() if x.is_floating_point() else x for name, x in arrays.items()}
