"""Autoencoders of diffusers: which classes, and how the latents of each are scaled for the diffusion model.

    encode: x = (z - shift) factor        decode: z = x / factor + shift

with one number, or one for each channel, as the pipelines of diffusers do it:

    AutoencoderKL and the like   shift_factor or 0                                scaling_factor or 1
    with latents_mean and _std   latents_mean (no pipeline has both shifts)       scaling_factor / latents_std
    AutoencoderKLFlux2           running mean of its batch norm, on patches 2x2   1 / root of its running variance
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.pretrained import autoencoder_folder, class_name, read_weights


@dataclass(frozen=True)
class Kind:
    """What is particular to a class of autoencoders."""

    posterior: bool = True
    """It gives a distribution, not a latent alone."""
    frames: bool = False
    """It takes videos; an image is one of a single frame, as in diffusers' image pipelines."""
    patch: int = 1
    """The diffusion model sees patches of so many latents' side as channels."""
    channels: str = "latent_channels"
    """What its config calls them."""


KINDS = {
    "AutoencoderKL": Kind(),
    "AsymmetricAutoencoderKL": Kind(),
    "AutoencoderTiny": Kind(posterior=False),
    "AutoencoderDC": Kind(posterior=False),
    "AutoencoderKLFlux2": Kind(patch=2),
    "AutoencoderKLHunyuanImage": Kind(),
    "AutoencoderKLQwenImage": Kind(frames=True, channels="z_dim"),
    "AutoencoderKLWan": Kind(frames=True, channels="z_dim"),
}
"""The classes that are taken, by name."""
REFUSED = {
    "ConsistencyDecoderVAE": "it decodes with fresh noise, so that an image would not depend on its seed alone",
    "VQModel": "the pipelines of diffusers disagree about how its latents are scaled",
    "AutoencoderRAE": "no pipeline of diffusers says how its latents are scaled",
    "AutoencoderKLKVAE": "no pipeline of diffusers says how its latents are scaled",
}
"""Autoencoders of images that are not, and why; all others are for video, sound or proteins."""
ENCODERS = ("encoder.", "quant_conv.")
"""Where the tensors are that make latents."""


@dataclass(frozen=True)
class Scaling:
    """x = (z - shift) factor; each of one number, or of one for each channel of what the diffusion model sees."""

    shift: tuple[float, ...]
    factor: tuple[float, ...]

    @classmethod
    def of_config(cls, own: Mapping[str, Any], channels: int) -> "Scaling":
        """As an autoencoder's config tells; see the head of this file.

        Raises:
            UserError: numbers that are none, of other channels, or that no pipeline uses together.
        """
        scale = _number(own, "scaling_factor", 1.0)
        shift = _number(own, "shift_factor", 0.0)
        mean, deviation = (_numbers(own, key, channels) for key in ("latents_mean", "latents_std"))
        if (mean is None) != (deviation is None):
            raise UserError("its config.json has one of latents_mean and latents_std; wanted both or none")
        if not scale or (deviation is not None and min(deviation) <= 0):
            raise UserError("scaling_factor and latents_std: wanted no zeros, and no latents_std below")
        if mean is None or deviation is None:
            return cls((shift,), (scale,))
        if shift:
            raise UserError("its config.json has shift_factor and latents_mean; wanted one of them, as in diffusers")
        return cls(mean, tuple(scale / each for each in deviation))

    @classmethod
    def of_batch_norm(cls, norm: Any, eps: float, channels: int) -> "Scaling":
        """FLUX.2's, from the running statistics."""
        if norm.num_features != channels:
            raise UserError(f"its batch norm has {norm.num_features} channels, its patches of 2 x 2 have {channels}")
        deviation = (norm.running_var.double() + eps).sqrt()
        if not bool(torch.isfinite(norm.running_mean).all() and torch.isfinite(deviation).all()):
            raise UserError("the statistics of its batch norm are not finite")
        return cls(tuple(norm.running_mean.double().tolist()), tuple((1 / deviation).tolist()))

    @classmethod
    def of_record(cls, told: Any) -> "Scaling":
        """What `record` gave, read back.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        return cls(*(tuple(float(number) for number in told[key]) for key in ("shift", "factor")))

    def record(self) -> dict[str, list[float]]:
        return {key: list(numbers) for key, numbers in asdict(self).items()}

    def apply(self, z: Tensor) -> Tensor:
        """What the diffusion model sees of latents z [b,c,y,x]."""
        return (z - self._tensor(self.shift, z)) * self._tensor(self.factor, z)

    def apply_to_deviation(self, z: Tensor) -> Tensor:
        """The same of a standard deviation, which no shift moves."""
        return z * self._tensor(self.factor, z).abs()

    def undo(self, x: Tensor) -> Tensor:
        return x / self._tensor(self.factor, x) + self._tensor(self.shift, x)

    @staticmethod
    def _tensor(numbers: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


class Autoencoder:
    """One of diffusers' autoencoders, with images and latents as the diffusion model sees them.

    Args:
        vae: of a class in KINDS.

    Raises:
        UserError: of another class, or its config tells no scaling.
    """

    def __init__(self, vae: Any):
        self.vae, self.name = vae.eval().requires_grad_(False), type(vae).__name__
        self.kind = kind_of(self.name)
        own = vae.config
        self.channels: int = own[self.kind.channels] * self.kind.patch**2
        if self.kind.patch > 1:
            self.scaling = Scaling.of_batch_norm(vae.bn, own["batch_norm_eps"], self.channels)
        else:
            self.scaling = Scaling.of_config(own, self.channels)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, where there is a posterior, deviation [b,c,y,x] of pixels [b,3,y,x] in [-1, 1]; float32."""
        found = self.vae.encode(pixels[:, :, None] if self.kind.frames else pixels)
        if not self.kind.posterior:
            return self.scaling.apply(self._seen(found[0])), None
        mean, deviation = found.latent_dist.mean, found.latent_dist.std
        return self.scaling.apply(self._seen(mean)), self.scaling.apply_to_deviation(self._seen(deviation))

    def _seen(self, z: Tensor) -> Tensor:
        return pixel_unshuffle((z[:, :, 0] if self.kind.frames else z).float(), self.kind.patch)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [b,c,y,x] in [-1, 1] of latents [b,c,y,x], image by image, so that memory does not grow with b."""
        z = pixel_shuffle(self.scaling.undo(latents), self.kind.patch)
        z = z[:, :, None] if self.kind.frames else z
        x = torch.cat([self.vae.decode(one, return_dict=False)[0] for one in z.split(1)])
        return x[:, :, 0] if self.kind.frames else x

    @cached_property
    def image(self) -> tuple[int, int]:
        """Colours of an image, and how many pixels wide one latent is; tried out.

        Raises:
            UserError: it does not make latents of images and images of latents.
        """
        like = next(self.vae.parameters())
        try:  # of 2 x 2: norms of a single value are an error
            _, colours, *sides = self.decode(like.new_zeros(1, self.channels, 2, 2)).shape
            mean, _ = self.encode(like.new_zeros(1, colours, *sides))
        except (RuntimeError, ValueError, IndexError) as error:
            words = " ".join(str(error).split())[:120]
            raise UserError(
                f"vae: wanted an autoencoder of images, and this {self.name} takes none ({words})"
            ) from error
        if colours not in (1, 3) or mean.shape != (1, self.channels, 2, 2) or sides[0] != sides[1] or sides[0] % 2:
            raise UserError(
                f"vae: wanted an autoencoder of gray or RGB images; {self.name} makes {colours} x {sides} values of "
                f"{self.channels} x 2 x 2 latents, and latents {list(mean.shape[1:])} of those"
            )
        return colours, sides[0] // 2

    @cached_property
    def digest(self) -> str:
        """sha256 of its tensors."""

        return sha256_of_tensors(self.vae)

    @cached_property
    def encoder_digest(self) -> str:
        """sha256 of those that make latents: autoencoders of one encoder may have several decoders."""

        return sha256_of_tensors(self.vae, ENCODERS)


def kind_of(name: str) -> Kind:
    """What is particular to a class.

    Raises:
        UserError: it is not taken, and why.
    """
    if name not in KINDS:
        reason = REFUSED.get(name, "it is not one whose latents diffusers makes of single images")
        raise UserError(f"{name} is not taken: {reason}; taken are {', '.join(KINDS)}")
    return KINDS[name]


def read_autoencoder(source: str) -> Autoencoder:
    """An autoencoder of diffusers in a folder (or its `vae` folder, as a pipeline has it), or on the hub.

    Raises:
        UserError: there is none, it is of a class that is not taken, or its weights and its config do not fit.
    """
    import diffusers

    try:
        folder = autoencoder_folder(source)
        name = class_name(folder)
        kind_of(name)
        if not hasattr(diffusers, name):
            raise UserError(f"the installed diffusers {diffusers.__version__} has no {name}, which '{source}' holds")
        with _quiet():
            vae = read_weights(getattr(diffusers, name), folder)
        return Autoencoder(vae.float())
    except UserError as error:
        where = "" if source in str(error) else f"'{source}': "
        raise UserError(f"vae: {where}{error}") from error


@contextmanager
def _quiet() -> Generator[None]:
    """What diffusers would log about weights that do not fit is a UserError here."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _number(own: Mapping[str, Any], key: str, otherwise: float) -> float:
    value = own.get(key)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise UserError(f"{key}: wanted a number, found {str(value)[:40]!r}")
    return float(value)


def _numbers(own: Mapping[str, Any], key: str, channels: int) -> tuple[float, ...] | None:
    values = own.get(key)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or len(values) != channels:
        raise UserError(f"{key}: wanted {channels} numbers, one for each channel, found {str(values)[:40]!r}")
    if None in values:
        raise UserError(f"{key}: wanted numbers, found null among them")
    return tuple(_number({key: value}, key, 0.0) for value in values)
