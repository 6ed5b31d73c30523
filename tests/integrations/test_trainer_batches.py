"""Which rows of a trainer's batch take part, and what a teacher is given of it."""

import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.integrations.trainer_batches import WeightedRows, query_rows, teacher_inputs

GENERATED = {
    "prompt_ids": torch.full((2, 3), 1),
    "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
    "completion_ids": torch.full((2, 4), 2),
    "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def test_rows_of_labels():
    """Not the prompt, not padding, not the last one, which predicts nothing."""
    labels = torch.tensor([[-100, 5, 6, 7], [-100, -100, 5, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    inputs = {"labels": labels, "attention_mask": mask}
    assert query_rows(inputs).tolist() == [[False, True, True, False], [False, False, True, False]]
    assert query_rows(inputs, prompts=True).tolist() == [[True, True, True, False], [True, True, True, False]]
    assert torch.equal(query_rows({"labels": labels}), query_rows(inputs))
    whole = {"labels": labels, "attention_mask": torch.ones(2, 1, 4, 4, dtype=torch.bool)}
    assert torch.equal(query_rows(whole), query_rows(inputs))
    assert labels[0, 3] == 7


def test_rows_of_generated_texts():
    """All tokens of completions, whose number is what TRL divides by; without the answers of tools."""
    want = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0]]).bool()
    assert torch.equal(query_rows(GENERATED), want)
    with_tool = {**GENERATED, "tool_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])}
    want[0, 4] = False
    assert torch.equal(query_rows(with_tool), want)
    prompts = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]).bool()
    assert torch.equal(query_rows(with_tool, prompts=True), prompts)


def test_a_batch_without_either_is_refused():
    with pytest.raises(UserError, match=r"wanted labels in the trainer's batch, found input_ids"):
        query_rows({"input_ids": torch.ones(1, 2)})


def test_a_teacher_is_given_what_the_student_is():
    keywords = teacher_inputs(GENERATED)
    assert keywords["input_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2]] * 2
    assert keywords["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]
    inputs = {"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2), "position_ids": torch.zeros(1, 2)}
    assert teacher_inputs(inputs).keys() == {"input_ids", "position_ids"}


def test_a_layer_of_other_tokens_is_refused():
    batch = WeightedRows("plain", 0, torch.arange(1), torch.ones(1, 4))
    assert batch.row_weight(4) is batch.weight
    with pytest.raises(UserError, match="a layer has 2 query rows, the trainer's batch 4 tokens"):
        batch.row_weight(2)
