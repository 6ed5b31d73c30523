"""The CLIP score's interval; its figures are those of the public code in ../features/test_clip.py."""

import dataclasses
import re

import pytest
import torch
from evaluating import rows

from dit_shd.evaluation.bootstrap import intervals
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics.clip_score import CLIPScore, clip_scores


def test_the_interval_of_a_clip_score_is_that_of_its_mean():
    x, texts = rows(50, 4, seed=0).float(), rows(50, 4, seed=1).float()
    samples = dataclasses.replace(FeatureSet.of(x), texts=texts)
    scores = 100 * torch.nn.functional.cosine_similarity(x.double(), texts.double()).clamp(min=0)
    (note,) = CLIPScore().notes(samples, samples)
    low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", note)[-2:])
    assert high - low == pytest.approx(2 * 1.96 * float(scores.std()) / 50**0.5, abs=2e-3)
    assert (high + low) / 2 == pytest.approx(float(scores.mean()), abs=2e-3)


def test_the_interval_is_over_prompts_where_images_share_them():
    """As many images of each prompt: the mean of independent means of prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(20).repeat(5)
    texts = rows(20, 4, seed=1).float()[prompts]
    x = (texts + 0.5 * torch.randn(20, 4, generator=generator)[prompts]).float() + 0.01 * rows(100, 4, seed=2).float()
    samples = dataclasses.replace(FeatureSet.of(x), texts=texts, prompts=prompts, cut=3)
    cut, note = CLIPScore().notes(samples, samples)
    means = clip_scores(x, texts).view(5, 20).mean(0)
    low, high = (float(number) for number in re.findall(r"-?\d+\.\d+", note)[-2:])
    assert high - low == pytest.approx(2 * 1.96 * float(means.std()) / 20**0.5, abs=2e-3)
    assert note.endswith("over 20 prompts of 100 images") and "3 of 100 prompts were cut" in cut
    (again,) = intervals([CLIPScore()], samples, samples, CLIPScore().compute(samples, samples), 400).values()
    assert again["high"] - again["low"] == pytest.approx(high - low, rel=0.15)
    one = dataclasses.replace(samples, prompts=torch.zeros(100, dtype=torch.long), cut=0)
    assert intervals([CLIPScore()], one, samples, CLIPScore().compute(one, samples), 10) == {}
    assert CLIPScore().notes(one, one)[0].endswith("of one prompt, so that there is no interval over prompts")
