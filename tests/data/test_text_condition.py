"""What a model is given of a prompt."""

import torch

from dit_shd.data.text_condition import TextCondition


def test_a_replaced_prompt_brings_its_own_mask_and_vector():
    text = TextCondition(torch.ones(2, 3, 2), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4))
    empty = TextCondition(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 4))
    found = text.replaced(torch.tensor([False, True]), empty)
    assert found.mask.tolist() == [[True] * 3, [True, False, False]]
    assert found.embeddings.flatten(1).any(1).tolist() == found.pooled.any(1).tolist() == [True, False]
