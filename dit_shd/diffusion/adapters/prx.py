"""PRX: image tokens attend to themselves and to text, which is T5Gemma's and has no rows of its own."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of
from dit_shd.diffusion.prompt_texts import Template
from dit_shd.diffusion.text_rows import TextRows

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class PRX(Adapter):
    """Time is the share of noise, the output the velocity to noise.

    Of PRXPixelPipeline, which is another, it would be the clean image.
    """

    transformer = "PRXTransformer2DModel"
    pipelines = ("PRXPipeline",)
    cleaners = ("ftfy",)
    attention = "joint, without rows of text"

    def text_rows(self, settings: Mapping[str, Any]) -> TextRows:
        return TextRows(self.multiple(settings), text_keys=True)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["context_in_dim"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        condition = {"encoder_hidden_states": text.embeddings, "attention_mask": text.mask}
        return {"hidden_states": x, "timestep": time, **condition}

    def framed(self, pipeline: "DiffusionPipeline", prompts: Sequence[str]) -> list[str]:
        whole: Any = pipeline
        return [whole.text_preprocessor.clean_text(prompt) for prompt in prompts]

    def limits(self, pipeline: "DiffusionPipeline", tokens: int | None = None) -> dict[str, int]:
        tokenizer: Any = getattr(pipeline, "tokenizer")  # noqa: B009
        return {"tokenizer": tokenizer.model_max_length}

    def image_tokens(self, model: nn.Module, layer: str, arguments: Mapping[str, Any]) -> range | None:
        """Among the keys behind the text, with its padding."""
        text = arguments["encoder_hidden_states"].shape[1]
        y, x = (side // self.multiple(settings_of(model)) for side in arguments["hidden_states"].shape[2:])
        return range(text, text + y * x)

    def template(self, pipeline: "DiffusionPipeline", prompt: str, call: Mapping[str, Any]) -> Template | None:
        """The prompt is cleaned; Gemma's tokenizer pads before it."""
        whole: Any = pipeline
        cleaner = whole.text_preprocessor
        text = (cleaner.basic_clean if call.get("skip_text_cleaning") else cleaner.clean_text)(prompt)
        tokens = call.get("tokenizer_max_length") or whole.tokenizer.model_max_length
        behind = whole.tokenizer.padding_side == "right"
        return Template("", text, 0 if behind else min(0, len(whole.tokenizer(text).input_ids) - tokens))

    def text(self, encoded: Sequence[Any]) -> TextCondition:
        """Without padding to the tokenizer's limit; text has no places, so that its tokens come first everywhere."""
        embeddings, mask = encoded[0], encoded[1].bool()
        order = (~mask).byte().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        rows = order[..., None].expand(-1, -1, embeddings.shape[-1])
        return TextCondition.of(embeddings.gather(1, rows), mask.gather(1, order))
