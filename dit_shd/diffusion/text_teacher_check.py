"""Whether a text-to-image teacher predicts what it should: the questions of teacher_check.py, of captions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.teacher_check import NoisedImages, TeacherCheck, Words


@dataclass(frozen=True)
class TextTeacherCheck(TeacherCheck[TextCondition]):
    """What is asked of a teacher that is given embeddings of captions."""

    adapter: Adapter
    empty: TextCondition
    """No caption [1,...]."""
    guidance: float | None = None
    words = Words(
        "true captions",
        "others",
        "the captions make it worse than none: are they of other pictures?",
        "it is no better under the true captions than under others: were they encoded by other text encoders, or do "
        "they say nothing of the pictures? (text_dropout=1 teaches without)",
    )
    most_rounds = 6

    def condition(self, sample: Mapping[str, Tensor]) -> TextCondition:
        text = TextCondition(sample["text"], sample["text_mask"], sample.get("text_pooled"))
        return text.to(sample["latents"].to(self.device))

    def others(
        self, teacher: nn.Module, images: NoisedImages, true: TextCondition
    ) -> tuple[TextCondition, TextCondition, Tensor]:
        wrong = true.rolled()
        differs = (wrong.embeddings != true.embeddings).flatten(1).any(1)
        return wrong, true.replaced(torch.ones_like(differs), self.empty), differs

    def predict(self, teacher: nn.Module, images: NoisedImages, condition: TextCondition) -> Tensor:
        return self.adapter.predict(teacher, images.x_t, images.t, condition, self.guidance)
