"""Model families of ours, one file each: adding a family is one file. A family is a diffusers ModelMixin."""
