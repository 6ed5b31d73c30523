"""Sequences out of documents: nothing is lost, nothing is seen twice, documents keep apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_shd.data.packing import PADDING, Sequences, positions

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def made(sizes, length, pack, prompts=None):
    numbers = iter(range(1000))
    documents = [np.array([next(numbers) for _ in range(size)]) for size in sizes]
    return documents, Sequences.of(documents, prompts or [0] * len(sizes), length, pack)


@given(sizes=sizes, length=st.integers(2, 9))
def test_packed_every_token_of_a_document_but_its_first_is_a_target_once(sizes, length):
    documents, sequences = made(sizes, length, pack=True)
    tokens, numbers, _ = sequences.take(np.arange(len(sequences)), padding=-7)
    targets = (numbers[:, 1:] == numbers[:, :-1]) & (numbers[:, 1:] != PADDING)
    assert sorted(tokens[:, 1:][targets]) == sorted(x for document in documents for x in document[1:])
    assert np.array_equal(tokens[:, :-1][targets] + 1, tokens[:, 1:][targets])
    assert ((tokens == -7) == (numbers == PADDING)).all()


@given(sizes=sizes, length=st.integers(2, 9))
def test_unpacked_a_sequence_is_the_beginning_of_its_document(sizes, length):
    documents, sequences = made(sizes, length, pack=False)
    assert len(sequences) == len(documents)
    tokens, numbers, _ = sequences.take(np.arange(len(sequences)), padding=-7)
    for row, number, document in zip(tokens, numbers, documents):
        kept = document[: length + 1]
        assert list(row[: len(kept)]) == list(kept)
        assert (row[len(kept) :] == -7).all()
        assert list(number) == [0] * len(kept) + [PADDING] * (length + 1 - len(kept))
    assert sequences.cut == sum(max(0, len(document) - length - 1) for document in documents)


@pytest.mark.parametrize("pack", [True, False])
def test_prompts_are_marked_wherever_they_stand(pack):
    _, sequences = made([5, 4, 6], 6, pack, prompts=[2, 0, 3])
    tokens, _, prompt = sequences.take(np.arange(len(sequences)), padding=-7)
    assert set(tokens[prompt]) == {0, 1, 9, 10, 11}


@given(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_positions_count_from_a_documents_first_token(numbers):
    row = np.sort(np.array(numbers))[None]
    expected, count = [], {}
    for number in row[0]:
        expected.append(count.setdefault(number, 0))
        count[number] += 1
    assert list(positions(row)[0]) == expected


def test_a_sequence_is_a_function_of_its_index():
    _, sequences = made([7, 9, 3], 4, pack=True)
    whole = sequences.take(np.arange(4), padding=0)
    for i in (3, 0, 2):
        for all_rows, one in zip(whole, sequences.take(np.array([i]), padding=0)):
            assert np.array_equal(all_rows[i], one[0])
