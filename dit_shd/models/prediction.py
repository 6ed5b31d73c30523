"""What a model predicts, and how it is given time. A model's config names it under `prediction`.

`noise` is DDPM's: the model is given the timestep, a whole number. The others are velocities of the straight path
x = (1 - s) x_0 + s noise between data and noise, where s is the share of noise (rectified flow, arXiv 2209.03003).
Public codes differ in which end of time is noise, and with it in the velocity's sign, and in the unit of time:

| name | time of noise | velocity | the model is given | used by |
|---|---|---|---|---|
| velocity_sit | 0 | x_0 - noise | 1 - s | SiT (arXiv 2401.08740) |
| velocity_repa | 1 | noise - x_0 | s | REPA (arXiv 2410.06940) |
| velocity_sd3 | 1 | noise - x_0 | 1000 s | SD3 (arXiv 2403.03206) and most transformers of diffusers |
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dit_shd.core.errors import UserError

NOISE = "noise"
PREDICTION = "prediction"
"""The key of a model's config, and of the metadata of a file."""


@dataclass(frozen=True)
class Convention:
    """How a model of velocities is given time, and which way its velocity points: along its own time."""

    noise_at: int
    """The time of pure noise, 0 or 1; data are at the other end."""
    scale: float
    """What time is multiplied by before the model is given it."""

    def time(self, share: Tensor) -> Tensor:
        """What the model is given at a share of noise [b]."""
        return self.scale * (share if self.noise_at == 1 else 1 - share)

    def velocity(self, output: Tensor) -> Tensor:
        """Noise - x_0, whichever way the model's output points; it is its own inverse."""
        return output if self.noise_at == 1 else -output


CONVENTIONS: Mapping[str, Convention] = {
    "velocity_sit": Convention(noise_at=0, scale=1.0),
    "velocity_repa": Convention(noise_at=1, scale=1.0),
    "velocity_sd3": Convention(noise_at=1, scale=1000.0),
}
"""Of velocities, by what `prediction` says."""


def prediction_of(model: nn.Module) -> str:
    """What a model predicts: what its config names, and noise where it names nothing.

    Raises:
        UserError: It names something that is not known.
    """
    config = getattr(model, "config", None)
    name = config.get(PREDICTION) if isinstance(config, Mapping) else getattr(config, PREDICTION, None)
    return checked_prediction(name or NOISE, type(model).__name__)


def checked_prediction(name: object, where: str) -> str:
    """The name of a prediction as it is.

    Raises:
        UserError: There is none of that name.
    """
    if not isinstance(name, str) or (name != NOISE and name not in CONVENTIONS):
        raise UserError(f"{where}: prediction: wanted {NOISE} or {', '.join(CONVENTIONS)}, found {str(name)[:60]!r}")
    return name


def convention_of(model: nn.Module) -> Convention | None:
    """The convention of a model of velocities; None for one that predicts noise."""
    return CONVENTIONS.get(prediction_of(model))
