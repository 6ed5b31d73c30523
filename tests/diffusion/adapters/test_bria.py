"""Bria 3.2: its steps under a static scheduler, what stands in for its parts, and the schedulers that it is not of."""

import json

import pytest
import torch
from pipeline_oracle import PROMPTS, asked_by_the_pipeline
from tiny_pipelines import flow, write_pipeline

from dit_shd.core.errors import UserError
from dit_shd.diffusion.adapters import ADAPTERS
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.text_process import process_of


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_pipeline("bria", tmp_path_factory.mktemp("p") / "pipeline")


@torch.no_grad()
def test_prompts_are_those_of_the_whole_pipeline_and_none_is_zeros(place):
    """Its pipeline reads the precision of its transformer and the config of its autoencoder."""
    for precision in ("no", "bf16"):
        pipeline, _ = assemble(str(place), None, precision)
        prompts = Prompts.load(str(place), torch.device("cpu"), precision, text_tokens=16)
        text, empty = prompts(PROMPTS), prompts.empty()
        wanted, no_prompt, _ = pipeline.encode_prompt(PROMPTS, max_sequence_length=16)
        torch.testing.assert_close(text.embeddings, wanted.float())
        assert torch.equal(empty.embeddings, no_prompt[:1].float())
        assert text.mask.all() and empty.mask.all() and not empty.embeddings.any()


@torch.no_grad()
def test_steps_of_a_static_scheduler(place):
    """The pipeline divides the schedule from its first step of training to its last, and the scheduler shifts them."""
    pipeline, _ = assemble(str(place), None)
    pipeline.scheduler = flow(shift=3.0)
    record = asked_by_the_pipeline(pipeline, ADAPTERS.find("bria")(), 1.0)
    steps = torch.stack([t / 1000 for _, t, _ in record])
    scheduler = dict(pipeline.scheduler.config)
    process = process_of("flow", scheduler, TimestepDensity(), "none", None, 2)
    even = torch.linspace(1, 0.001, 3, dtype=torch.float64)
    torch.testing.assert_close(steps, process.times(even, (1, 4, 12, 8)), rtol=2e-3, atol=2e-3)


def test_a_scheduler_of_ddpm_is_refused(tmp_path):
    """Under one the model would predict the noise."""
    folder = write_pipeline("bria", tmp_path / "pipeline")
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    values = TimestepDensity(), "none", None, 2
    with pytest.raises(UserError, match=r"^the pipeline's scheduler: wanted one of rectified flow, found DDIMSch"):
        process_of("flow", Prompts.load(str(folder), torch.device("cpu")).record.scheduler, *values)
    for fitting in ({"prediction_type": "flow_prediction"}, {"use_flow_sigmas": True}):
        process_of("flow", scheduler | fitting, *values)
