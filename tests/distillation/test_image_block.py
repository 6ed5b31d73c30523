"""Image queries over image keys, of maps over text and image."""

import pytest
import torch
from tiny_pipelines import write_pipeline

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.models.families import FAMILIES
from dit_shd.models.loading import load


@pytest.fixture(scope="module", params=["sd3", "flux"])
def joint_models(request, tmp_path_factory):
    """A teacher and a student of half the heads, and what both are given."""
    folder = write_pipeline(request.param, tmp_path_factory.mktemp("p") / "pipeline")
    teacher = load(folder).eval()
    heads = teacher.config.num_attention_heads
    torch.manual_seed(1)
    options = {"like": str(folder), "config": {"num_attention_heads": heads // 2}}
    student = FAMILIES.build(Plugin("diffusers", options)).eval()
    adapter = adapter_of_model(teacher, None)
    width, pooled = adapter.text_widths(teacher.config)
    vector = None if pooled is None else torch.randn(2, pooled)
    text = TextCondition.of(torch.randn(2, 7, width), pooled=vector)
    x, t = torch.randn(2, adapter.channels(teacher.config), 8, 4), torch.tensor([0.3, 0.8])
    return lambda model: adapter.predict(model, x, t, text, None), teacher, student


def captured(joint_models, block):
    run, teacher, student = joint_models
    with torch.no_grad(), capture(teacher, block=block) as t:
        run(teacher)
    with capture(student, block=block) as s:
        run(student)
    return dict(t), dict(s)


def test_the_image_block_is_the_one_that_capture_cuts(joint_models):
    """Beside it, layers of the image alone (SD3.5 has some) are compared whole."""
    teacher, student = captured(joint_models, "joint")
    names = [name for name, layer in teacher.items() if layer.image is None and ":" not in name]
    alone = [{name: layer for name, layer in side.items() if name in names} for side in (teacher, student)]
    expected = SHD()(*captured(joint_models, "image")) + (SHD()(*alone) if names else 0)
    found = SHD(block="image")(teacher, student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert abs(found.item() - SHD()(teacher, student).item()) > 1e-4


def test_gradients_of_the_block_reach_the_student_alone(joint_models):
    _, teacher, student = joint_models
    student.zero_grad()
    SHD(block="image")(*captured(joint_models, "joint")).backward()
    gradients = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("to_q" in name or "to_k" in name for name in gradients)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_block_by_another_name_is_refused():
    with pytest.raises(UserError, match="block: wanted one of joint, image, found 'text'"):
        SHD(block="text")


def test_the_images_block_pairs_layers_of_the_images_queries():
    """What a run's header says, too, which had listed each block twice."""
    names = ["a.0", "a.0:text", "a.1", "a.1:text"]
    assert SHD(block="image").layer_map(names, names) == {"a.0": "a.0", "a.1": "a.1"}
    assert SHD().layer_map(names, names) == {name: name for name in names}
