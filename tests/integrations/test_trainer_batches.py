"""Which rows of a trainer's batch take part, and what a teacher is given of it."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
import transformers

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError
from dit_shd.integrations.trainer_batches import (
    WeightedRows,
    check_apart,
    is_causal,
    query_rows,
    teacher_inputs,
    without_cache,
)

GENERATED = {
    "prompt_ids": torch.full((2, 3), 1),
    "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
    "completion_ids": torch.full((2, 4), 2),
    "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def test_rows_of_labels():
    """Not the prompt, not padding, not a sequence's last one, which predicts nothing."""
    labels = torch.tensor([[-100, 5, 6, 7], [-100, 4, 5, -100]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    inputs = {"labels": labels, "attention_mask": mask}
    assert query_rows(inputs).tolist() == [[False, True, True, False], [False, True, False, False]]
    assert query_rows(inputs, prompts=True).tolist() == [[True, True, True, False], [True, True, False, False]]
    whole = {"labels": labels, "attention_mask": torch.ones(2, 1, 4, 4, dtype=torch.bool)}
    assert query_rows({"labels": labels}).tolist() == [[False, True, True, False], [False, True, True, False]]
    assert torch.equal(query_rows(whole), query_rows({"labels": labels}))
    assert labels[0, 3] == 7


def test_which_rows_take_part_does_not_depend_on_padding():
    """Neither on its side nor on how long the batch's other sequences are."""
    learned = [5, 12, 3]
    wide = (
        [F.pad(torch.arange(1, n + 1), (0, 12 - n)) for n in learned],
        [F.pad(torch.arange(1, n + 1), (12 - n, 0)) for n in learned],
    )
    alone = [torch.arange(1, n + 1) for n in learned]

    def rows(tokens):
        """The numbers of the tokens that take part, of each sequence."""
        labels = torch.stack(tuple(tokens))
        real = labels > 0
        found = query_rows({"labels": labels.masked_fill(~real, -100), "attention_mask": real.long()})
        return [labels[i][found[i]].tolist() for i in range(len(labels))]

    want = [list(range(1, n)) for n in learned]
    assert rows(wide[0]) == rows(wide[1]) == [rows([tokens])[0] for tokens in alone] == want


def flattened(**options):
    return transformers.DataCollatorWithFlattening(**options)


def trls(**options):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, **options)


PACKINGS = {
    "positions": lambda: flattened(),
    "numbers": lambda: flattened(return_position_ids=False, return_seq_idx=True),
    "ends": lambda: flattened(return_position_ids=False, return_flash_attn_kwargs=True),
    "trl": lambda: trls(),
    "trl padded": lambda: trls(pad_to_multiple_of=64),
}


@pytest.mark.parametrize("prompts", [False, True])
@pytest.mark.parametrize("name", PACKINGS)
def test_packed_documents_have_the_rows_of_padded_ones(name, prompts):
    """Also documents of one and of two tokens, prompts of many lengths, and what fills up a packed row."""
    pytest.importorskip("trl")
    sizes, prompted = [5, 1, 9, 2, 4, 7], [0, 0, 3, 0, 2, 6]
    documents = [torch.arange(10 * i + 1, 10 * i + 1 + n).tolist() for i, n in enumerate(sizes)]
    features = [
        {"input_ids": tokens, "labels": [-100] * k + tokens[k:], "attention_mask": [1] * len(tokens)}
        for tokens, k in zip(documents, prompted)
    ]

    def counted(inputs):
        return inputs["input_ids"][query_rows(inputs, prompts)].tolist()

    width = max(sizes)
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    padded = {
        key: torch.tensor([f[key] + [fill] * (width - len(f[key])) for f in features]) for key, fill in padding.items()
    }
    given = [{key: f[key] for key in ("input_ids", "labels")} for f in features]
    packed = PACKINGS[name]()(given)
    assert packed["input_ids"].shape == (1, 64 if name == "trl padded" else sum(sizes))
    assert counted(packed) == counted(padded)
    want = [tokens[0 if prompts else k :][:-1] for tokens, k in zip(documents, prompted)]
    assert counted(packed) == [*chain.from_iterable(want)]
    parts = [counted(PACKINGS[name]()([one])) for one in given]
    assert [*chain.from_iterable(parts)] == counted(packed)


def test_packed_rows_of_several_documents():
    """A batch of rows, each of which has its own."""
    labels = torch.tensor([[-100, 2, -100, 4, 5], [-100, 2, 3, -100, -100]])
    places = torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    want = [[True, False, True, True, False], [True, True, False, False, False]]
    assert query_rows({"labels": labels, "position_ids": places}).tolist() == want
    one = query_rows({"labels": labels, "position_ids": torch.arange(5)[None]})
    assert one.tolist() == [[True, True, False, True, False], [True, True, True, False, False]]


def layer(mask=None):
    x = torch.randn(1, 2, 6, 4)
    return {"layer": Capture(x, x, x, 0.5, None if mask is None else DenseBias(mask[None, None]), causal=mask is None)}


def test_only_a_mask_that_hides_the_document_before_is_one_of_documents():
    """Windows and chunks of the tokens hide others, and may be in one model alone; so may padding."""
    at = torch.arange(6)
    causal = at[:, None] >= at
    window, chunks = causal & (at[:, None] - at < 3), causal & (at[:, None] // 3 == at // 3)
    documents = torch.tensor([0, 0, 1, 1, 1, 2])
    apart = causal & (documents[:, None] == documents)
    inputs = {"labels": at[None], "position_ids": torch.tensor([[0, 1, 0, 1, 2, 0]])}
    for mask in (None, causal, window, chunks):
        assert check_apart(layer(mask), layer(), inputs) and check_apart(layer(), layer(mask), inputs)
    assert check_apart(layer(apart), layer(apart & window), inputs)
    for models, names in (((apart, None), ("student", "teacher")), ((window, apart), ("teacher", "student"))):
        with pytest.raises(UserError, match=rf"in layer of the {names[0]} packed documents .*, in the {names[1]} they"):
            check_apart(*map(layer, models), inputs)
    padded = {**inputs, "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]]), "attention_mask": (at > 1).long()[None]}
    one = {**inputs, "position_ids": at[None]}
    for batch in (padded, one, {"labels": at[None]}, GENERATED):
        assert not check_apart(layer(apart), layer(), batch)


def test_the_last_token_of_a_masked_language_model_is_learned_like_any_other():
    labels = torch.tensor([[-100, 5, -100, 7]])
    masked = transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=4, num_attention_heads=1, vocab_size=8))
    causal = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=4, n_head=1, n_layer=1, vocab_size=8))
    assert is_causal(causal) and not is_causal(masked)
    assert query_rows({"labels": labels}, causal=is_causal(masked)).tolist() == [[False, True, False, True]]
    assert query_rows({"labels": labels}, causal=is_causal(causal)).tolist() == [[False, True, False, False]]


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


class Teacher(torch.nn.Module):
    def forward(self, input_ids, attention_mask=None, token_type_ids=None, labels=None, **rest):
        raise NotImplementedError


def test_a_teacher_is_given_what_the_student_is():
    """Segments, which change its attention, included; not labels, nor what is no tensor or not named."""
    keywords = teacher_inputs(GENERATED, Teacher())
    assert keywords["input_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 2]] * 2
    assert keywords["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]
    names = ("input_ids", "labels", "position_ids", "token_type_ids", "special_tokens_mask", "num_items_in_batch")
    inputs = {**{name: torch.ones(1, 2) for name in names}, "attention_mask": None, "texts": ["a"]}
    assert teacher_inputs(inputs, Teacher()).keys() == {"input_ids", "position_ids", "token_type_ids"}


def test_only_a_model_that_keeps_keys_and_values_is_told_not_to():
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
    }
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    assert without_cache(llama) == {"use_cache": False}
    assert without_cache(Teacher()) == {}


def test_batches_of_other_models_are_refused():
    with pytest.raises(UserError, match=r"for language models: wanted labels \[b,n\], found \[4\]"):
        query_rows({"input_ids": torch.ones(4, 2), "labels": torch.ones(4)})
    with pytest.raises(UserError, match="the trainer's batch has pixel_values"):
        teacher_inputs({"input_ids": torch.ones(1, 2), "pixel_values": torch.ones(1, 3, 4, 4)}, Teacher())


def test_a_layer_of_other_tokens_is_refused():
    batch = WeightedRows("plain", 0, torch.arange(1), torch.ones(1, 4))
    assert batch.row_weight(4) is batch.weight
    with pytest.raises(UserError, match="a layer has 2 query rows, the trainer's batch 4 tokens"):
        batch.row_weight(2)
