"""The scheduler of a class-conditional pipeline, as sampling and training read it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import run

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampled_run import of_run
from dit_shd.diffusion.sampler import sample

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


@pytest.fixture
def pipeline(teacher, tmp_path) -> Path:
    """A class-conditional pipeline, as far as sampling reads it."""
    shutil.copytree(teacher, tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "scheduler").mkdir()
    return tmp_path / "pipeline"


def says(pipeline: Path, **scheduler) -> None:
    """Write the config of its scheduler."""
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def test_a_pipelines_scheduler_says_the_steps_of_the_schedule(pipeline):
    says(pipeline, _class_name="DDIMScheduler", num_train_timesteps=100, beta_start=0.001, beta_end=0.2)
    for place in (pipeline, pipeline / "transformer"):
        assert of_run(make(SampleConfig, {"run": str(place)})).diffusion_steps == 100
    folder = shutil.copytree(pipeline / "transformer", pipeline.parent / "run" / "student").parent
    (folder / "config.yaml").write_text("task: {name: diffusion, timesteps: 100}")
    images = [sample(str(place), count=2, **QUICK)[0] for place in (pipeline, folder)]
    assert np.array_equal(*images)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"prediction_type": "v_prediction"}, "says prediction_type: v_prediction; wanted epsilon"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "says beta_schedule: squaredcos_cap_v2; class-conditional models ha"),
        ({"beta_end": 0.012}, "says beta_end: 0.012; class-conditional models have 0.02 here"),
        ({"num_train_timesteps": 250}, "says beta_start: 0.0001; class-conditional models have 0.0004 here"),
        ({"num_train_timesteps": 250, "beta_start": 4e-4}, "says beta_end: 0.02; class-conditional models have 0.08 "),
        ({"num_train_timesteps": "many"}, "says num_train_timesteps: many; wanted a whole number of 1 or more"),
        ({"trained_betas": [0.1, 0.2]}, "says trained_betas: .*have betas by their schedule"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is a FlowMatchEulerDiscreteScheduler, .*predicts noise"),
    ],
)
def test_a_pipeline_of_another_noise_is_refused(pipeline, values, scheduler, message):
    says(pipeline, **{"_class_name": "DDPMScheduler", **scheduler})
    with pytest.raises(UserError, match=message):
        sample(str(pipeline), count=2, **QUICK)
    with pytest.raises(UserError, match=message):
        run({**values, "teacher": str(pipeline)}, steps=1)


def test_a_damaged_config_of_a_scheduler_is_no_missing_one(pipeline):
    (pipeline / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_pred')
    with pytest.raises(UserError, match=r"scheduler_config\.json: wanted the JSON object of a scheduler"):
        sample(str(pipeline), count=2, **QUICK)


def test_a_teacher_of_a_pipeline_is_taught_by_its_own_schedule(pipeline, values):
    says(pipeline, _class_name="DDPMScheduler", num_train_timesteps=500, beta_start=0.0002, beta_end=0.04)
    with pytest.raises(UserError, match=r"^task\.timesteps: wanted the 500 that the scheduler of .*, found 1000"):
        run({**values, "teacher": str(pipeline)}, steps=1)
    config, _ = run({**values, "teacher": str(pipeline), "task": {"name": "diffusion", "timesteps": 500}}, steps=1)
    assert (config.run / "student").is_dir()
