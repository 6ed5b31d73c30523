"""The family of diffusers' transformers: what `like` refuses of other families."""

import pytest
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
