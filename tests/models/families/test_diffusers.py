"""The family of diffusers' transformers: what `like` refuses of other families."""

import pytest
from diffusers import DiTTransformer2DModel
from small_families import build

from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import parse_yaml
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.diffusers import Diffusers


@pytest.mark.parametrize("family", ["dit", "mdt"])
def test_a_student_like_a_model_of_our_own_is_given_its_config(family, tmp_path):
    """It had been said that the installed diffusers lacks the class, as if another one had it."""
    model = build(family)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"holds a {type(model).__name__}; give its config") as refused:
        Diffusers.from_options(like=tmp_path)
    student = parse_yaml(str(refused.value).partition(": student=")[2])
    assert student["name"] == family
    again = FAMILIES.find(family)(**{key: value for key, value in student.items() if key != "name"})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_student_like_a_quantised_folder_is_whole(tmp_path):
    """What says how its weights are quantised is no size of its class."""
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8)
    model.register_to_config(quantization_config={"quant_method": "torchao"}, _pre_quantization_dtype="bfloat16")
    model.save_config(tmp_path)
    student = Diffusers.from_options(like=tmp_path, config={"num_layers": 1})
    assert student.config.num_layers == 1 and student.config.num_attention_heads == 2
    assert "quantization_config" not in student.config
