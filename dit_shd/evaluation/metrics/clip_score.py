"""CLIP score (Hessel et al., arXiv 2104.08718): how well pictures fit their prompts, in a CLIP network of the user's.

The mean over images of 100 max(cos(image, prompt), 0). Their paper's factor is 2.5, the field's usual one 100. Only
scores of the same network may be compared, and a teacher's is the scale for its students'. Images of one prompt have
scores that are alike: the interval takes prompts as drawn, not images (Cochran 1977, single-stage cluster sampling).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import NORMAL, Metric


class CLIPScore(Metric):
    """CLIP score(title), from 0 to 100, of the samples alone; its interval is in the notes, and in resamples=."""

    minimum = 1
    needs_text = True

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """The mean over all images."""
        return {samples.named("CLIP score"): float(_scores(samples).mean())}

    def details(self, samples: FeatureSet, reference: FeatureSet) -> tuple[dict[str, float], dict[str, Tensor]]:
        return self.compute(samples, reference), {samples.named("CLIP score"): _scores(samples)}

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """The 95% interval of the mean, over prompts where images share them, and how many prompts were cut."""
        scores, name = _scores(samples), samples.named("CLIP score")
        n, mean = len(scores), float(scores.mean())
        prompts = torch.arange(n) if samples.prompts is None else samples.prompts.cpu()
        different = int(prompts.max()) + 1
        notes = [f"{name}: {samples.cut:,} of {n:,} prompts were cut to what the network reads"] if samples.cut else []
        if different == 1:
            return [*notes, f"{name}: of one prompt, so that there is no interval over prompts"]
        apart = torch.zeros(different, dtype=torch.float64).index_add(0, prompts, scores.cpu() - mean)
        half = NORMAL * float(apart.square().sum() * different / (different - 1)) ** 0.5 / n
        over = f"{n:,} images" if different == n else f"{different:,} prompts of {n:,} images"
        return [*notes, f"{name}: 95% interval {mean - half:.3f} to {mean + half:.3f} over {over}"]


def _scores(samples: FeatureSet) -> Tensor:
    if samples.texts is None:
        raise UserError("clip_score: wanted features of the samples' prompts, found none")
    return clip_scores(samples.require_pooled("clip_score"), samples.texts)


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) of each image with its prompt [n], in float64.

    Args:
        images: Features [n,d].
        texts: Features of their prompts [n,d].
    """
    return 100 * F.cosine_similarity(images.double(), texts.double().to(images.device), dim=1).clamp(min=0)
