"""Squeezing h teacher heads into g student heads, and the divergence of attention maps (arXiv 2502.07436)."""

from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.matching import matched
from dit_shd.squeezing.plans import Plan, contiguous
from dit_shd.squeezing.squeeze import Squeeze, squeeze

__all__ = ["Plan", "Squeeze", "attention_kl", "contiguous", "matched", "squeeze"]
