"""The family of diffusers' transformers, and of models like another of any family."""

import pytest
from diffusers import DiTTransformer2DModel
from small_families import build

from dit_shd.core.errors import UserError
from dit_shd.models.families.diffusers import Diffusers, described


@pytest.mark.parametrize("family", ["dit", "mdt"])
def test_a_student_like_a_model_of_our_own_is_of_its_class(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)
    again = Diffusers.from_options(like=tmp_path)
    assert type(again) is type(model)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    student = Diffusers.from_options(like=tmp_path, config={"num_layers": 2, "num_attention_heads": 1})
    assert (student.config.num_layers, student.config.num_attention_heads) == (2, 1)
    assert student.config.attention_head_dim == model.config.attention_head_dim
    with pytest.raises(UserError, match="unknown key 'num_heads', did you mean 'num_attention_heads'"):
        Diffusers.from_options(like=tmp_path, config={"num_heads": 1})


def test_sizes_that_do_not_fit_together_are_refused(tmp_path):
    build("mdt").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no MDTv2 has these sizes"):
        Diffusers.from_options(like=tmp_path, config={"num_layers": 3})


def test_a_model_of_transformers_is_told_what_is_like_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match=r"^student\.like: .* is one of transformers; wanted student="):
        Diffusers.from_options(like=str(tmp_path))


def test_a_student_like_a_quantised_folder_is_whole(tmp_path):
    """What says how its weights are quantised is no size of its class."""
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8)
    model.register_to_config(quantization_config={"quant_method": "torchao"}, _pre_quantization_dtype="bfloat16")
    model.save_config(tmp_path)
    student = Diffusers.from_options(like=tmp_path, config={"num_layers": 1})
    assert student.config.num_layers == 1 and student.config.num_attention_heads == 2
    assert "quantization_config" not in student.config


def test_a_student_like_a_described_teacher_is_as_one_like_the_teacher(tmp_path):
    sizes = dict(num_attention_heads=4, attention_head_dim=8, in_channels=3, num_layers=3, sample_size=8)
    DiTTransformer2DModel(**sizes).save_config(tmp_path)
    changes = {"num_layers": 2, "num_attention_heads": 2}
    options = described({"transformer": "DiTTransformer2DModel", "config": sizes}, changes)
    students = [Diffusers.from_options(**options), Diffusers.from_options(like=tmp_path, config=changes)]
    one, other = ({k: v.shape for k, v in student.state_dict().items()} for student in students)
    assert one == other and students[0].config.sample_size == 8
