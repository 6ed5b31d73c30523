"""Every key of sampling, with its default and its meaning."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.places import MODEL, Place
from dit_shd.diffusion.schedule import Schedule


@dataclass(frozen=True)
class SampleConfig:
    """What to sample and how; the defaults are MDT's protocol for reported figures."""

    run: Place = option("", MODEL)
    count: int = option(50_000, "images")
    steps: int = option(250, "sampling steps, evenly spaced over the schedule")
    solver: Literal["ddpm", "ddim", "dpm++"] = option(
        "ddpm", "ddpm (ancestral), ddim (eta 0), or diffusers' DPM-Solver++"
    )
    guidance: float = option(3.8, "classifier-free guidance scale; 1 for none")
    guidance_schedule: Literal["power-cosine", "constant"] = option(
        "power-cosine", "MDT's ramp, or the scale throughout"
    )
    guidance_power: float = option(4.0, "exponent of the power-cosine ramp; 0.01 with guidance 4 for pretty pictures")
    guidance_tolerance: float = option(
        1e-3,
        "where |weight - 1| is within this, no guidance and half of the network's work; 0 for guidance everywhere",
    )
    guided_channels: int | None = option(3, "noise channels that are guided (the public code's 3); empty for all")
    labels: Literal["random", "balanced"] = option(
        "random", "class of image i: drawn, or in turn; of the classes that the training saw"
    )
    rounding: Literal["floor", "nearest"] = option("floor", "to uint8: floor (MDT) or nearest (DiT); it moves FID")
    seed: int = option(0, "image i is a function of the seed and i")
    batch_size: int = option(64, "images in one batch of one process")
    diffusion_steps: int = option(1000, "steps of the schedule the model was trained with; a run folder knows its own")
    vae: Place | None = option(
        "auto",
        "autoencoder that decodes: auto (the run's, none for pixels), a folder, hub:OWNER/NAME, pixels, or null to "
        "keep latents as they are (float32 [n,c,y,x])",
    )
    precision: Literal["no", "bf16"] = option("no", "autocast of the network")
    compile: bool = option(False, "torch.compile the network (needs a compiler; minutes at first, then faster)")
    out: Path | None = option(None, "the npz; empty: samples_<count>_seed<seed>.npz in the run folder")
    force: bool = option(False, "replace an npz that is there already")

    def check(self) -> None:
        for key in ("count", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: wanted 1 or more, found {getattr(self, key)}")
        if self.count > 10**8:
            raise UserError(f"count: wanted up to 10^8, found {self.count}")
        Schedule.linear(self.diffusion_steps)  # refuses what is no schedule
        if not 1 <= self.steps <= self.diffusion_steps:
            raise UserError(f"steps: wanted 1 to {self.diffusion_steps}, found {self.steps}")
        for key in ("guidance_tolerance", "guidance_power"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: wanted 0 or more, found {getattr(self, key)}")
        if self.guided_channels is not None and self.guided_channels < 0:
            raise UserError(f"guided_channels: wanted 0 or more, found {self.guided_channels}")
