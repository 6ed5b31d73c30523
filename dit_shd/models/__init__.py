"""Model families, checkpoints of dit_shd and of others, and the provenance of weights."""

from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2
from dit_shd.models.loading import load

__all__ = ["DiT", "MDTv2", "load"]
