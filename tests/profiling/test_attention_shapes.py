import pytest
import torch
from tiny_pipelines import KINDS

from dit_shd.core.plugins import Plugin
from dit_shd.profiling import captures
from dit_shd.profiling.attention_shapes import recorded_calls
from dit_shd.profiling.captures import captures_of
from dit_shd.profiling.meta import ModelSpec
from dit_shd.tasks import TASKS


@pytest.mark.parametrize("kind", ["sd3", "flux", "aura_flow"])
def test_calls_have_the_rows_and_heads_that_capture_finds(kind, monkeypatch):
    """Joint attention is one call where capture tells image rows from text rows."""
    task = TASKS.build(Plugin("text_to_image", {"side": 8, "text_tokens": 6}), "task")
    spec = ModelSpec.of(KINDS[kind]().transformer)
    skeleton = spec.skeleton()
    by_capture = captures_of(skeleton, task)
    monkeypatch.setattr(captures, "MOST_BUILT", 0)
    by_call = captures_of(skeleton, task)
    rows = {}
    for name, capture in by_capture.items():
        layer = name.partition(":")[0]
        rows[layer] = rows.get(layer, 0) + capture.query.shape[2]
        assert capture.heads == by_call[layer].heads
        assert capture.key.shape == by_call[layer].key.shape
    assert all(by_call[layer].query.shape[2] >= count for layer, count in rows.items())
    assert sum(capture.query.shape[2] for capture in by_call.values()) >= sum(rows.values())
    assert set(by_call) == set(rows)


def test_the_model_is_left_as_it_was():
    block = torch.nn.MultiheadAttention(8, 2, device="meta")
    with recorded_calls(block):
        pass
    assert not block._forward_hooks
    assert not block._forward_pre_hooks
