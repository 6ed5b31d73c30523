"""Model families, one file each: mdt.py (MDTv2). A family is a diffusers ModelMixin."""

from dit_shd.models.mdt import MDTv2

__all__ = ["MDTv2"]
