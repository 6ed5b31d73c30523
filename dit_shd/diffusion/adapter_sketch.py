"""How an adapter looks, for the error about a class that has none."""

SKETCH = """
    from dit_shd.diffusion.adapters import Adapter

    class {name}(Adapter):
        transformer = "{name}"
        pipelines = ("...Pipeline",)
        process = "flow"  # ddpm: by the betas of the pipeline's scheduler; time is its timestep then

        def text_widths(self, settings):  # by the transformer's config: of the embeddings, of a pooled vector or None
            return settings["caption_channels"], None

        def arguments(self, model, x, time, text, guidance):  # of its forward; time is the share of noise, 0 to 1
            return {{"hidden_states": x, "timestep": 1000 * time, "encoder_hidden_states": text.embeddings}}

        def prediction(self, output, x):  # of its output: the velocity noise - x_0, shaped like the latents x
            return output"""
"""The file of an adapter, with a place for the name of the class."""
