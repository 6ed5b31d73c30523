"""The forwards of one image are those of the pipeline's own call."""

import inspect

import pytest
import torch
from tiny_pipelines import KINDS, OTHERS

from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.diffusion.prompt_generation import REWRITE
from dit_shd.profiling.sampling import Sampling, sampling_of
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.tasks.text_to_image import TextToImage


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_model_runs_as_often_as_in_its_pipeline_s_call(kind):
    """Whatever it does at once: two samples in one forward are two."""
    pipeline, samples = {**KINDS, **OTHERS}[kind](), []

    def count(_, args, kwargs):
        given = [*args, *(kwargs[name] for name in ("hidden_states", "x") if name in kwargs)]
        samples.append(len(given[0]))

    pipeline.transformer.eval().register_forward_pre_hook(count, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    known = inspect.signature(type(pipeline).__call__).parameters
    options = {key: False for key in ("use_resolution_binning", REWRITE) if key in known}
    size = (32, 32) if kind in ("lumina2", "sana", "hunyuan_dit") else (16, 16)
    options |= adapter_of_model(pipeline.transformer).size_arguments(pipeline, size)
    with torch.no_grad():
        pipeline(prompt="a nine", num_inference_steps=2, output_type="latent", **options)
    found = sampling_of(TextToImage(), pipeline.transformer, None)
    assert found.forwards == sum(samples) / 2
    assert found.steps == known["num_inference_steps"].default
    assert sampling_of(TextToImage(), pipeline.transformer, 7) == Sampling(7, found.forwards)


def test_models_of_classes_are_sampled_by_our_own_defaults():
    assert sampling_of(Diffusion(), torch.nn.Linear(1, 1), None) == Sampling(250, 2)
    assert sampling_of(Diffusion(), torch.nn.Linear(1, 1), None, guided=False) == Sampling(250, 1)
    assert Sampling(250, 2).words == "250 guided steps, two forwards each"
    assert Sampling(28, 1).words == "28 steps, one forward each"
