"""Lumina-Image 2.0 (arXiv 2503.21758): one stream of text and image tokens, grouped-query attention, Gemma 2."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.pipeline_guidance import rescaled
from dit_shd.diffusion.prompt_encoding import encode_prompt
from dit_shd.diffusion.prompt_texts import Template

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

MOST_TOKENS = 512
"""Of the pipeline's call."""


class Lumina2(Adapter):
    """Time is 0 at the noise and 1 at the data, and the output is the velocity along it."""

    transformer = "Lumina2Transformer2DModel"
    pipelines = ("Lumina2Pipeline",)
    most_tokens = MOST_TOKENS
    attention = "joint, one stream"
    stream_multiple = 1
    text_alone = ("context_refiner.*",)

    def most_side(self, settings: Mapping[str, Any]) -> int | None:
        return min(settings["axes_lens"][1:]) * self.multiple(settings)

    def most_text(self, settings: Mapping[str, Any]) -> int | None:
        """The image's tokens take the position after the text's."""
        return min([MOST_TOKENS, *(size - 1 for size in settings.get("axes_lens", ())[:1])])

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["cap_feat_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        condition = {"encoder_hidden_states": text.embeddings, "encoder_attention_mask": text.mask}
        return {"hidden_states": x, "timestep": 1 - time, **condition}

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return -output

    def guided(self, combined: Tensor, conditional: Tensor) -> Tensor:
        """With the norm of the conditional prediction in each row of a channel."""
        return rescaled(combined, conditional)

    def encode_empty(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> TextCondition:
        """The pipeline puts its instruction before prompts and not before negative ones."""
        return self.text(encode_prompt(pipeline, [""], tokens, guided=True)[2:])

    def image_tokens(self, model: nn.Module, layer: str, arguments: Mapping[str, Any]) -> range | None:
        """Behind the prompt's own tokens, without its padding; the refiners before are of one of the two alone."""
        if not layer.startswith("layers."):
            return None
        text = int(arguments["encoder_attention_mask"][0].sum())
        y, x = (side // self.multiple(settings_of(model)) for side in arguments["hidden_states"].shape[2:])
        return range(text, text + y * x)

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        templates = [self.template(pipeline, prompt, {}) for prompt in prompts]
        return [template.before + template.prompt for template in templates]

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template:
        instruction: Any = call.get("system_prompt") or getattr(pipeline, "system_prompt")  # noqa: B009
        return Template(f"{instruction} <Prompt Start> ", prompt)
