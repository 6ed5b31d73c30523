"""How often a model runs for one image, by the defaults of what draws it."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_shd.diffusion.adapters import by_class, settings_of
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.tasks import Task


@dataclass(frozen=True)
class Sampling:
    """The forwards of one image."""

    steps: int
    forwards: int
    """Of a step: two with guidance."""

    @property
    def words(self) -> str:
        """Steps and forwards."""
        return f"{self.steps} {'guided steps, two forwards' if self.forwards == 2 else 'steps, one forward'} each"


def sampling_of(task: Task[Any], model: nn.Module, steps: int | None, guided: bool = True) -> Sampling:
    """How a model is sampled: by dit-shd's own defaults, or by those of the call of its pipeline.

    Args:
        task: What it learned.
        model: The model.
        steps: That somebody names; None for the defaults.
        guided: Whether a second forward guides it, where its pipeline takes one.
    """
    adapter = by_class().get(type(model).__name__) if task.prompted else None
    if adapter is None:
        return Sampling(steps or SampleConfig.steps, 2 if guided else 1)
    import diffusers

    known = inspect.signature(getattr(diffusers, adapter.pipelines[0]).__call__).parameters
    # A scale that is an input of the model, and true_cfg_scale without a negative prompt, take no second forward.
    alone = settings_of(model).get("guidance_embeds") or "true_cfg_scale" in known
    return Sampling(steps or known["num_inference_steps"].default, 1 if alone or not guided else 2)
