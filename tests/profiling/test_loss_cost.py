"""What losses take beside both models: by hand for a loss whose products are few."""

import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.feature import Feature
from dit_shd.distillation.losses.shd import SHD
from dit_shd.distillation.losses.tinybert import TinyBERT
from dit_shd.models.families.dit import DiT
from dit_shd.profiling import loss_cost
from dit_shd.profiling.loss_cost import build_losses, kept_numbers, loss_costs
from dit_shd.tasks.diffusion import Diffusion

TASK = Diffusion(mask_ratio=None)
SIZES = dict(sample_size=8, patch_size=2, in_channels=1, num_classes=3, attention_head_dim=4)
TOKENS, WIDTH, WIDER = 16, 8, 16


def models(blocks):
    with torch.device("meta"):
        return [DiT(**SIZES, num_layers=blocks, num_attention_heads=heads) for heads in (2, 4)]


def cost(images, blocks, loss=Feature):
    student, teacher = models(blocks)
    distiller = Distiller(TASK, student, [loss()])
    build_losses(distiller, {"teacher": teacher})
    (found,) = loss_costs(distiller.losses_of("plain"), TASK, "plain", student, {"teacher": teacher}, images).values()
    return found


def test_a_learned_map_of_each_block_is_three_products():
    """Forward, and backward to its weights and to the student. Kept is what is squared, what a map reads, a value."""
    two, four, many = cost(1, 2), cost(1, 4), cost(6, 2)
    assert (two.operations, four.operations) == tuple(3 * 2 * TOKENS * WIDTH * WIDER * blocks for blocks in (2, 4))
    assert four.held - two.held == 2 * 4 * (TOKENS * (WIDER + WIDTH) + 1)
    assert 0 <= four.scratch - two.scratch < 4 * TOKENS * WIDTH, "the gradients of one block at a time"
    assert (many.operations, many.held, many.scratch) == (6 * two.operations, 6 * two.held, 6 * two.scratch)


def test_a_loss_of_blocks_needs_no_attention_that_can_be_captured(monkeypatch):
    """The dry run of Sana, whose attention is linear, had refused `feature`, which trains."""

    def refuse(*_):
        raise UserError("capture: ran without calling scaled_dot_product_attention")

    counted = cost(1, 2)
    monkeypatch.setattr(loss_cost, "captures_of", refuse)
    assert cost(1, 2) == counted
    with pytest.raises(UserError, match="ran without calling"):
        cost(1, 2, SHD)


def test_scores_are_computed_twice_and_teach_queries_and_keys():
    """The student's forward, again in the backward, and the gradients of both; the teacher's twice."""
    found = cost(1, 2, lambda: TinyBERT(heads="mean")).operations
    assert found == 2 * TOKENS**2 * 2 * (4 * WIDTH + 2 * WIDER)


def test_queries_keys_and_values_are_kept_where_blocks_run_again():
    student, teacher = models(2)
    losses = {"shd": SHD(), "again": SHD(), "feature": Feature()}
    kept = kept_numbers(losses, TASK, "plain", student, {"teacher": teacher})
    assert kept == 3 * TOKENS * WIDTH * 2, "those that two losses read once"
