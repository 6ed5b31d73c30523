"""What a model predicts goes with its config."""

import json

import pytest
from small_families import FAMILIES

from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.prediction import CONVENTIONS, NOISE, convention_of, prediction_of


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prediction", [NOISE, *CONVENTIONS])
def test_it_is_saved_and_read(name, prediction, tmp_path):
    cls, options = FAMILIES[name]
    cls(**options, prediction=prediction).save_pretrained(tmp_path / "model")
    model = loading.load(tmp_path / "model")
    assert prediction_of(model) == prediction
    assert convention_of(model) == CONVENTIONS.get(prediction)


def test_a_config_of_an_older_version_is_of_noise(tmp_path):
    cls, options = FAMILIES["dit"]
    cls(**options).save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    del values["prediction"]
    file.write_text(json.dumps(values))
    assert prediction_of(loading.load(tmp_path / "model")) == NOISE


def test_what_is_not_known_is_refused(tmp_path):
    cls, options = FAMILIES["mdt"]
    with pytest.raises(UserError, match=r"^MDTv2: prediction: wanted noise or velocity_sit, .*, found 'velocity'$"):
        cls(**options, prediction="velocity")


def test_an_untrained_variance_half_is_of_a_model_of_velocities(tmp_path):
    """SiT has DiT's variance half and leaves it zero; with `prediction` in the config that is no sign of anything."""
    cls, options = FAMILIES["dit"]
    model = cls(**options, prediction="velocity_sit")
    model.final_layer.linear.weight.data.unflatten(0, (4, 2, 1))[:, 0] = 1.0
    model.save_pretrained(tmp_path / "model")
    assert loading.load(tmp_path / "model").config.learn_sigma
    model.register_to_config(prediction=NOISE)
    model.save_pretrained(tmp_path / "noise")
    with pytest.raises(UserError, match="variance half of its last layer is zero"):
        loading.load(tmp_path / "noise")
