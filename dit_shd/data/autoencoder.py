"""Autoencoders of diffusers: the supported classes, and how each scales its latents for the diffusion model.

    encode: x = (z - shift) factor        decode: z = x / factor + shift

with one number, or one for each channel, as in the pipelines of diffusers:

    AutoencoderKL and the like   shift_factor or 0                                scaling_factor or 1
    with latents_mean and _std   latents_mean (no pipeline has both shifts)       scaling_factor / latents_std
    AutoencoderKLFlux2           running mean of its batch norm, on patches 2x2   1 / root of its running variance
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.pretrained import autoencoder_folder, class_name, read_weights


@dataclass(frozen=True)
class Kind:
    """The properties of a class of autoencoders."""

    posterior: bool = True
    """Whether it encodes to a distribution, not to a latent alone."""
    frames: bool = False
    """Whether it is for videos; an image is then a video of one frame, as in diffusers' image pipelines."""
    patch: int = 1
    """Side of the patches of latents that are channels of the diffusion model."""
    channels: str = "latent_channels"
    """The config key of the number of channels."""


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
"""The supported classes by name."""
REFUSED = {
    "ConsistencyDecoderVAE": "it decodes with fresh noise, so that an image would not depend on its seed alone",
    "VQModel": "the pipelines of diffusers disagree about how its latents are scaled",
    "AutoencoderRAE": "no pipeline of diffusers says how its latents are scaled",
    "AutoencoderKLKVAE": "no pipeline of diffusers says how its latents are scaled",
}
"""Autoencoders of images that are not supported, and why; all others are for video, sound or proteins."""
ENCODERS = ("encoder.", "quant_conv.")
"""Prefixes of the encoder's tensors."""


@dataclass(frozen=True)
class Scaling:
    """x = (z - shift) factor; each is one number, or one for each channel of the diffusion model's input."""

    shift: tuple[float, ...]
    factor: tuple[float, ...]

    @classmethod
    def of_config(cls, vae_config: Mapping[str, Any], channels: int) -> "Scaling":
        """The scaling in an autoencoder's config; see the head of this file.

        Raises:
            UserError: Values that are no numbers, of other channels, or that no pipeline combines.
        """
        scale = _number(vae_config, "scaling_factor", 1.0)
        shift = _number(vae_config, "shift_factor", 0.0)
        mean, deviation = (_numbers(vae_config, key, channels) for key in ("latents_mean", "latents_std"))
        if (mean is None) != (deviation is None):
            raise UserError("its config.json has one of latents_mean and latents_std; wanted both or none")
        if not scale or (deviation is not None and min(deviation) <= 0):
            raise UserError("scaling_factor and latents_std: wanted no zeros, and no negative latents_std")
        if mean is None or deviation is None:
            return cls((shift,), (scale,))
        if shift:
            raise UserError("its config.json has shift_factor and latents_mean; wanted one of them, as in diffusers")
        return cls(mean, tuple(scale / std for std in deviation))

    @classmethod
    def of_batch_norm(cls, norm: nn.BatchNorm2d, eps: float, channels: int) -> "Scaling":
        """The scaling of FLUX.2, from the running statistics of a batch norm.

        Raises:
            UserError: Statistics that are not finite, or of other channels.
        """
        if norm.num_features != channels:
            raise UserError(f"its batch norm has {norm.num_features} channels, its patches of 2 x 2 have {channels}")
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None, "AutoencoderKLFlux2 tracks running statistics"
        deviation = (variance.double() + eps).sqrt()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
            raise UserError("the statistics of its batch norm are not finite")
        return cls(tuple(mean.double().tolist()), tuple((1 / deviation).tolist()))

    @classmethod
    def of_record(cls, record: Mapping[str, Sequence[float]]) -> "Scaling":
        """The inverse of `record`, on the content of a file.

        Raises:
            ValueError, TypeError, KeyError: The content is no record.
        """
        return cls(*(tuple(float(number) for number in record[key]) for key in ("shift", "factor")))

    def record(self) -> dict[str, list[float]]:
        """The scaling as JSON values."""
        return {key: list(numbers) for key, numbers in asdict(self).items()}

    def apply(self, z: Tensor) -> Tensor:
        """Latents z [b,c,y,x] as input of the diffusion model."""
        return (z - self._tensor(self.shift, z)) * self._tensor(self.factor, z)

    def apply_to_deviation(self, z: Tensor) -> Tensor:
        """Standard deviations z [b,c,y,x] of latents as those of the diffusion model's input; no shift changes them."""
        return z * self._tensor(self.factor, z).abs()

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `apply`."""
        return x / self._tensor(self.factor, x) + self._tensor(self.shift, x)

    @staticmethod
    def _tensor(numbers: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None, None]


class Autoencoder:
    """An autoencoder of diffusers, with images and latents as the diffusion model uses them.

    Args:
        vae: A model of a class in KINDS.

    Raises:
        UserError: It is of another class, or its config has no valid scaling.
    """

    def __init__(self, vae: nn.Module) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        self.name = type(vae).__name__
        self.kind = kind_of(self.name)
        config = self.vae.config
        self.channels: int = config[self.kind.channels] * self.kind.patch**2
        if self.kind.patch > 1:
            self.scaling = Scaling.of_batch_norm(self.vae.bn, config["batch_norm_eps"], self.channels)
        else:
            self.scaling = Scaling.of_config(config, self.channels)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, if there is a posterior, deviation [b,c,y,x] of pixels [b,3,y,x] in [-1, 1]; float32."""
        output = self.vae.encode(pixels[:, :, None] if self.kind.frames else pixels)
        if not self.kind.posterior:
            return self.scaling.apply(self._patches(output[0])), None
        mean, deviation = output.latent_dist.mean, output.latent_dist.std
        return self.scaling.apply(self._patches(mean)), self.scaling.apply_to_deviation(self._patches(deviation))

    def _patches(self, z: Tensor) -> Tensor:
        return pixel_unshuffle((z[:, :, 0] if self.kind.frames else z).float(), self.kind.patch)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [b,c,y,x] in [-1, 1] of latents [b,c,y,x], image by image, so that memory does not grow with b."""
        z = pixel_shuffle(self.scaling.undo(latents), self.kind.patch)
        z = z[:, :, None] if self.kind.frames else z
        x = torch.cat([self.vae.decode(latent, return_dict=False)[0] for latent in z.split(1)])
        return x[:, :, 0] if self.kind.frames else x

    @cached_property
    def image(self) -> tuple[int, int]:
        """Channels of an image, and pixels along one side of a latent, measured on a small image.

        Raises:
            UserError: It does not encode images to latents and decode latents to images.
        """
        like = next(self.vae.parameters())
        try:  # on 2 x 2 latents: norms of a single value are an error
            _, colours, *sides = self.decode(like.new_zeros(1, self.channels, 2, 2)).shape
            mean, _ = self.encode(like.new_zeros(1, colours, *sides))
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(
                f"vae: wanted an autoencoder of images, and this {self.name} encodes none ({error_line(error, 120)})"
            ) from error
        if colours not in (1, 3) or mean.shape != (1, self.channels, 2, 2) or sides[0] != sides[1] or sides[0] % 2:
            raise UserError(
                f"vae: wanted an autoencoder of gray or RGB images; {self.name} decodes {self.channels} x 2 x 2 "
                f"latents to {colours} x {sides} values, and encodes those to latents {list(mean.shape[1:])}"
            )
        return colours, sides[0] // 2

    @cached_property
    def digest(self) -> str:
        """sha256 of its tensors."""
        return sha256_of_tensors(self.vae)

    @cached_property
    def encoder_digest(self) -> str:
        """sha256 of the encoder's tensors: autoencoders with one encoder may have several decoders."""
        return sha256_of_tensors(self.vae, ENCODERS)


def kind_of(name: str) -> Kind:
    """The properties of a class of autoencoders.

    Raises:
        UserError: It is not supported, and why.
    """
    if name not in KINDS:
        reason = REFUSED.get(name, "diffusers does not use it for latents of single images")
        raise UserError(f"{name} is not supported: {reason}; supported are {', '.join(KINDS)}")
    return KINDS[name]


def check_pipeline(index: Mapping[str, Any]) -> None:
    """Refuse a pipeline whose autoencoder is of a class that is not supported.

    Args:
        index: Its model_index.json.

    Raises:
        UserError: Naming both, and why.
    """
    vae = index.get("vae")
    name = vae[1] if isinstance(vae, list) and len(vae) == 2 else None
    try:
        _ = kind_of(name) if isinstance(name, str) else None
    except UserError as error:
        raise UserError(f"pipeline: {index['_class_name']}: its autoencoder {error}") from error


def read_autoencoder(source: str) -> Autoencoder:
    """Read an autoencoder of diffusers from a folder (or its `vae` folder, as in a pipeline), or from the hub.

    Raises:
        UserError: There is none, it is of a class that is not supported, or its weights do not fit its config.
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
    """Silence what diffusers logs about weights that do not fit, which is a UserError here."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _number(vae_config: Mapping[str, Any], key: str, default: float) -> float:
    value = vae_config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise UserError(f"{key}: wanted a number, found {str(value)[:40]!r}")
    return float(value)


def _numbers(vae_config: Mapping[str, Any], key: str, channels: int) -> tuple[float, ...] | None:
    values = vae_config.get(key)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or len(values) != channels:
        raise UserError(f"{key}: wanted {channels} numbers, one for each channel, found {str(values)[:40]!r}")
    if None in values:
        raise UserError(f"{key}: wanted numbers, found null among them")
    return tuple(_number({key: value}, key, 0.0) for value in values)
