"""How a class-conditional model is asked."""

from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.tasks.diffusion import NO_LABEL, Batch


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """A model's output for one batch; models of diffusers and ours are called alike."""
    masked = {} if batch.keep is None else {"keep": batch.keep}
    labels = torch.where(batch.labels == NO_LABEL, classes_of(model), batch.labels)
    x_t = batch.x_t.to(next(model.parameters()).dtype)  # a teacher may be held in bfloat16
    return model(x_t, batch.t, class_labels=labels, return_dict=False, **masked)[0]


def classes_of(model: nn.Module) -> int:
    """The number of classes of a model; that number is also its label for "none"."""
    config: Any = model.config
    return config.num_classes if "num_classes" in config else config.num_embeds_ada_norm


def known_classes(model: nn.Module) -> list[int]:
    """The classes that a model has learned: those that its config names, or all."""
    config: Any = model.config
    names = config.get("class_names")
    return [i for i in range(classes_of(model)) if names is None or (i < len(names) and names[i] is not None)]
