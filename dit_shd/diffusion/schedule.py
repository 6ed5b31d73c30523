"""The noise schedule of DDPM: q(x_t | x_0), its posterior, and respacing."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError

FEWEST, MOST = 21, 10**6
"""Steps of a linear schedule: with 20 the last beta, 20 / steps, is 1, and a step that keeps nothing has no inverse."""


@dataclass(frozen=True)
class Schedule:
    """Betas of a diffusion process and the original timestep of each of its steps.

    Index arguments called `step` count the steps of this process; `timesteps[step]` is what a model is given.
    """

    betas: np.ndarray
    timesteps: np.ndarray

    @classmethod
    def linear(cls, steps: int = 1000, key: str = "diffusion_steps") -> "Schedule":
        """The linear schedule of DDPM, section 4, scaled to any number of steps that leaves every beta below 1.

        Args:
            steps: How many.
            key: The name of that number where it was given.

        Raises:
            UserError: Steps is not in FEWEST..MOST.
        """
        if not FEWEST <= steps <= MOST:
            raise UserError(
                f"{key}: wanted {FEWEST} to {MOST:,} (the last step's noise variance, 20 / {key}, must be below 1), "
                f"found {steps}"
            )
        scale = 1000 / steps
        return cls(np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64), np.arange(steps))

    def respaced(self, count: int) -> "Schedule":
        """The process that visits `count` evenly spaced steps of this one, the first and the last (IDDPM, section 4).

        A single step is the last, the noisiest: x_0 as the noise alone has it (the public code visits 0, where next to
        nothing is noise for the model, and the noise comes back).

        Raises:
            UserError: Count is not in 1..len(self).
        """
        if not 1 <= count <= len(self):
            raise UserError(f"steps: wanted 1 to {len(self)} sampling steps, found {count}")
        if count == 1:
            return self._visiting([len(self) - 1])
        stride = (len(self) - 1) / (count - 1)
        position, chosen = 0.0, []
        for _ in range(count):  # summed, not multiplied: rounds as the public code does
            chosen.append(round(position))
            position += stride
        return self._visiting(chosen)

    def _visiting(self, chosen: list[int]) -> "Schedule":
        kept = self.alphas_cumprod[chosen]
        betas = 1 - kept / np.append(1.0, kept[:-1])
        return Schedule(betas, self.timesteps[chosen])

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @cached_property
    def _previous(self) -> np.ndarray:
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """The log of DDPM eq. 7's variance, which is 0 at the first step: there the second step's is taken (IDDPM)."""
        variance = self.betas * (1 - self._previous) / (1 - self.alphas_cumprod)
        variance[0] = variance[1] if len(self) > 1 else self.betas[0]
        return np.log(variance)

    @cached_property
    def snr(self) -> np.ndarray:
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def at(self, table: np.ndarray, step: Tensor, ndim: int = 4) -> Tensor:
        """Entries of a float64 table as float32, [b,1,...] with `ndim` axes."""
        return self._copied(table, step.device)[step].float().view(-1, *[1] * (ndim - 1))

    @cached_property
    def _copies(self) -> dict[tuple[bytes, torch.device], Tensor]:
        return {}

    def _copied(self, table: np.ndarray, device: torch.device) -> Tensor:
        """A table on a device, copied once: every copy to a GPU would wait for all that was issued before it."""
        if device.type in ("cpu", "meta"):
            return torch.from_numpy(table).to(device)
        known = self._copies.get((table.tobytes(), device))
        if known is None:
            with torch.inference_mode(False):  # training may read what an evaluation copied
                known = self._copies[table.tobytes(), device] = torch.from_numpy(table).to(device)
        return known

    def add_noise(self, x_0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t [b,...] (DDPM eq. 4)."""
        kept = self.at(np.sqrt(self.alphas_cumprod), step, x_0.ndim)
        return kept * x_0 + self.at(np.sqrt(1 - self.alphas_cumprod), step, x_0.ndim) * noise

    def predict_x_0(self, x_t: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_0 as the predicted noise has it (DDPM eq. 4, solved)."""
        scale = self.at(np.sqrt(1 / self.alphas_cumprod), step, x_t.ndim)
        return scale * x_t - self.at(np.sqrt(1 / self.alphas_cumprod - 1), step, x_t.ndim) * noise

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        first = self.betas * np.sqrt(self._previous) / (1 - self.alphas_cumprod)
        second = (1 - self._previous) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        return self.at(first, step, x_t.ndim) * x_0 + self.at(second, step, x_t.ndim) * x_t

    def log_variance(self, v: Tensor, step: Tensor) -> Tensor:
        """The learned range: (v+1)/2 interpolates log beta~ and log beta (IDDPM eq. 15)."""
        share = (v + 1) / 2
        low = self.at(self.posterior_log_variance, step, v.ndim)
        return share * self.at(np.log(self.betas), step, v.ndim) + (1 - share) * low

    def fixed_log_variance(self, step: Tensor, ndim: int) -> Tensor:
        """The log of beta, the large fixed variance of DDPM, for models that predict none."""
        fixed = np.log(np.append(np.exp(self.posterior_log_variance[0]), self.betas[1:]))
        return self.at(fixed, step, ndim)

    def ddpm_step(self, x_t: Tensor, noise: Tensor, v: Tensor | None, step: Tensor, fresh: Tensor) -> Tensor:
        """x_{t-1} by ancestral sampling, no clipping of x_0 (DDPM algorithm 2 with IDDPM's variance).

        Args:
            x_t: Noised latents [b,c,y,x].
            noise: Predicted noise, of the same shape.
            v: Predicted variance share, of the same shape, or None for the fixed large variance.
            step: The step of this process [b].
            fresh: New standard normal noise, unused at the last step (0).
        """
        mean = self.posterior_mean(self.predict_x_0(x_t, noise, step), x_t, step)
        log_variance = self.fixed_log_variance(step, x_t.ndim) if v is None else self.log_variance(v, step)
        moving = (step != 0).to(x_t.dtype).view(-1, *[1] * (x_t.ndim - 1))
        return mean + moving * torch.exp(0.5 * log_variance) * fresh

    def ddim_step(self, x_t: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """The deterministic step of DDIM (arXiv 2010.02502, eq. 12 with sigma = 0) to the step before; x_0 at step 0.

        diffusers' DDIMScheduler counts back 1000 // steps timesteps whatever its timesteps are, which is another
        process wherever `steps` does not divide 1000.
        """
        x_0 = self.predict_x_0(x_t, noise, step)
        kept, noisy = np.sqrt(self._previous), np.sqrt(1 - self._previous)
        return self.at(kept, step, x_t.ndim) * x_0 + self.at(noisy, step, x_t.ndim) * noise
