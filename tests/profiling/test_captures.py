"""Captures for counting, of models that are too large to be built."""

import pytest
from tiny_pipelines import KINDS

from dit_shd import SHD
from dit_shd.core.plugins import Plugin
from dit_shd.profiling import captures
from dit_shd.profiling.captures import captures_of
from dit_shd.profiling.meta import ModelSpec
from dit_shd.tasks import TASKS


def empty(kind):
    return ModelSpec.of(KINDS[kind]().transformer).skeleton()


@pytest.fixture
def task():
    return TASKS.build(Plugin("text_to_image", {"side": 8, "text_tokens": 6}), "task")


@pytest.mark.parametrize("kind", ["sd3", "flux", "aura_flow", "pixart", "wan"])
def test_a_large_model_has_the_layers_rows_and_heads_of_one_that_is_built(kind, task, monkeypatch):
    """Its self-attention alone; joint attention is one capture where that of a built one tells image rows from text."""
    model = empty(kind)
    built = captures_of(model, task)
    monkeypatch.setattr(captures, "MOST_BUILT", 0)
    large = captures_of(model, task)
    rows = {}
    for name, capture in built.items():
        layer = name.partition(":")[0]
        rows[layer] = rows.get(layer, 0) + capture.query.shape[2]
        assert capture.heads == large[layer].heads
        assert capture.key.shape == large[layer].key.shape
    assert set(large) == set(rows)
    assert all(large[layer].query.shape[2] >= count for layer, count in rows.items())


@pytest.mark.parametrize("kind", ["sd3", "pixart"])
def test_a_small_student_of_a_large_teacher_is_counted(kind, task, monkeypatch):
    student, teacher = empty(kind), empty(kind)
    monkeypatch.setattr(captures, "_is_large", lambda model: model is teacher)
    both = captures_of(teacher, task, beside=student), captures_of(student, task, beside=teacher)
    assert SHD().cost(*both, 1).operations > 0
    assert SHD(block="image").cost(*both, 1).operations > 0
