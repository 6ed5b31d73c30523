"""Model families of ours, one file each: adding a family is one file. A family is a diffusers ModelMixin."""

from diffusers import ModelMixin

from dit_shd.core.plugins import PluginFolder

FAMILIES = PluginFolder(__name__, ModelMixin, "models")
