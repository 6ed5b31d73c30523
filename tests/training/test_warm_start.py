"""A new run from another's weights: what may be taken."""

import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.models.families.dit import DiT
from dit_shd.training.warm_start import take_weights

SIZES = {"sample_size": 8, "patch_size": 2, "in_channels": 1, "num_layers": 2, "num_classes": 3}


def test_weights_of_other_heads_are_refused_though_their_shapes_are_the_same(tmp_path):
    torch.manual_seed(0)
    DiT(**SIZES, num_attention_heads=4, attention_head_dim=4).save_pretrained(tmp_path)
    same = DiT(**SIZES, num_attention_heads=4, attention_head_dim=4)
    start = take_weights(same, str(tmp_path))
    assert start.taken == start.total
    other = DiT(**SIZES, num_attention_heads=2, attention_head_dim=8)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(UserError, match=r"heads of blocks\.0\.attn is 4 in .* and 2 in the student"):
        take_weights(other, str(tmp_path))
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


@pytest.mark.parametrize("prediction", ["noise", "velocity_sit"])
def test_weights_of_a_model_that_predicts_something_else_are_told(prediction, tmp_path, caplog):
    """Not refused: a model of noise may be taught velocity on purpose."""
    DiT(**SIZES, num_attention_heads=2, learn_sigma=False, prediction="velocity_repa").save_pretrained(tmp_path)
    assert take_weights(DiT(**SIZES, num_attention_heads=2, learn_sigma=False, prediction=prediction), str(tmp_path))
    assert f"the student predicts {prediction}, and {tmp_path} velocity_repa: it begins with weights" in caplog.text
    assert "student.prediction=velocity_repa goes on" in caplog.text
