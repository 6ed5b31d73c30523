"""The CLIP score's interval; its figures are those of the public code in ../features/test_clip.py."""

import dataclasses
import re

import pytest
import torch
from evaluating import rows

from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics.clip_score import CLIPScore


def test_the_interval_of_a_clip_score_is_that_of_its_mean():
    x, texts = rows(50, 4, seed=0).float(), rows(50, 4, seed=1).float()
    samples = dataclasses.replace(FeatureSet.of(x), texts=texts)
    scores = 100 * torch.nn.functional.cosine_similarity(x.double(), texts.double()).clamp(min=0)
    (note,) = CLIPScore().notes(samples, samples)
    low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", note)[-2:])
    assert high - low == pytest.approx(2 * 1.96 * float(scores.std()) / 50**0.5, abs=2e-3)
    assert (high + low) / 2 == pytest.approx(float(scores.mean()), abs=2e-3)
