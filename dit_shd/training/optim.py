"""Optimizers and learning rates."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dit_shd.core.config import option
from dit_shd.core.installation import require
from dit_shd.training.compilation import check_compiler


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer; the defaults are MDT's recipe."""

    name: Literal["adan", "adamw", "adamw8bit"] = option(
        "adan",
        "adan (MDT's, from timm), adamw, or adamw8bit (torchao's: states of 8 bits, arXiv 2110.02861; compiled, "
        "which wants a C++ compiler and takes a minute)",
    )
    lr: float = option(5e-4, "peak learning rate", range=(0, 1e3))
    betas: list[float] = option([], "empty: adan 0.98 0.92 0.99, adamw 0.9 0.999")
    eps: float = option(1e-8, "added to the denominator", range=(1e-16, 1))
    weight_decay: float = option(0.0, "decoupled weight decay", range=(0, 1e3))
    clip: float = option(1.0, "largest gradient norm; 0 for no clipping", range=(0, 1e12))
    warmup_steps: int = option(0, "linear warm-up", range=(0, 1e12))
    decay: Literal["constant", "linear", "cosine"] = option(
        "constant", "after the warm-up, down to final_lr, which the step after the last would have"
    )
    final_lr: float = option(0.0, "learning rate that the decay goes down to", range=(0, 1e3))
    decayed: Literal["all", "matrices"] = option(
        "all", "what weight_decay acts on: matrices leaves out biases, norms, tokens and position embeddings"
    )


POSITIONS = re.compile(
    r"(pos_embed|position_embeddings?(\.weight)?|relative_(position|attention)_bias(_table|\.weight)|rel_pos_[hwt]|"
    r"wpe\.weight|embed_positions\.weight|positions_embed\.weight|attention_biases|"
    r"(height|width)_rel|pos_emb(_[thw])?|pos_frequencies|position_embedding_table|"
    r"rope\.freqs|(rel_pos\.mlp\.fc|(cpb|position_bias)_mlp\.)\d\.weight|pos_block\.\d+\.proj\.\d\.weight|"
    r"scale_shift_table|A_log|_bias|latent_queries)$"
)
"""Names of what has the shape of a matrix and is none: position embeddings, tokens, biases of modulation and gates."""


def build(config: OptimizerConfig, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """Build timm's Adan (arXiv 2208.06677), PyTorch's AdamW or torchao's.

    Args:
        config: Name and settings.
        named: Parameters to be trained, and their names.

    Raises:
        UserError: The package torchao, or a compiler, is wanted, and not installed.
    """
    groups = _groups(config, list(named))
    common = dict(lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)
    if config.betas:
        common["betas"] = tuple(config.betas)  # type: ignore[assignment]
    if config.name == "adan":
        from timm.optim import Adan

        return Adan(groups, **common)  # type: ignore[arg-type]
    if config.name == "adamw8bit":
        require(("torchao",), "lowbit", "optimizer.name=adamw8bit")
        check_compiler("optimizer.name=adamw8bit", "install a C++ compiler, or take adamw")  # its step is compiled
        from torchao.optim import AdamW8bit

        return AdamW8bit(groups, **common)  # type: ignore[arg-type]
    return torch.optim.AdamW(groups, **common)  # type: ignore[arg-type]


def _groups(config: OptimizerConfig, named: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Parameters with weight decay, and those without where some are left out."""
    parameters = [p for _, p in named]
    if config.decayed == "all":
        return [{"params": parameters}]
    matrices = [p for name, p in named if _is_matrix(name, p) and not POSITIONS.search(name)]
    known = {id(p) for p in matrices}
    return [{"params": matrices}, {"params": [p for p in parameters if id(p) not in known], "weight_decay": 0.0}]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not a token [1,e] or [1,1,e], nor a scale of each head or channel [h,1,1]; a weight of one row [1,e] is one."""
    if parameter.ndim == 2:
        return len(parameter) > 1 or name.endswith("weight")
    return parameter.ndim > 2 and len(parameter) > 1 and parameter[0].numel() > 1


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step: a function of the step alone, so that resuming needs no state.

    Args:
        config: Peak, warm-up and decay.
        step: The step, from 0.
        steps: The number of steps of the run.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))}[
        config.decay
    ]
    return config.final_lr + (config.lr - config.final_lr) * max(factor, 0.0)


def remarks(config: OptimizerConfig, steps: int) -> list[str]:
    """What is allowed and hardly meant: a warm-up that does not end, an end of a rate that does not fall.

    Args:
        config: Peak, warm-up and decay.
        steps: The number of steps of the run.
    """
    lines: list[str] = []
    if config.warmup_steps >= steps:
        reached = learning_rate(config, steps - 1, steps)
        lines.append(
            f"optimizer.warmup_steps: {config.warmup_steps} of {steps} steps: the learning rate only rises, to "
            f"{reached:.3g}; for a short trial say optimizer.warmup_steps=0"
        )
    if config.final_lr and config.decay == "constant":
        lines.append(f"optimizer.final_lr: {config.final_lr:g} is not read with decay: constant")
    return lines


def jump(config: OptimizerConfig, done: int, planned: int, steps: int) -> str | None:
    """A warning of a run that goes on with another number of steps, and so at another learning rate; None elsewhere.

    Args:
        config: Peak, warm-up and decay.
        done: Steps that were taken.
        planned: Steps of the run until now.
        steps: Steps of the run from now on.
    """
    before, now = (learning_rate(config, done, count) for count in (planned, steps))
    if done >= steps or abs(now - before) <= 0.01 * config.lr:
        return None
    return (
        f"optimizer.decay: {config.decay} is over all steps: with steps={steps} in place of {planned} the learning "
        f"rate goes on at {now:.3g} and not at {before:.3g}"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int) -> None:
    """Give all parameters the learning rate of a step.

    Args:
        optimizer: Whose rate is set.
        config: Peak, warm-up and decay.
        step: The step, from 0.
        steps: The number of steps of the run.
    """
    rate = learning_rate(config, step, steps)
    for group in optimizer.param_groups:  # torchao's is compiled, and takes it as a tensor
        group["lr"] = torch.tensor(rate) if config.name == "adamw8bit" else rate
