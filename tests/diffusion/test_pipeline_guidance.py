"""Guidance of pipelines: lengths of the conditional prediction, arguments of a call, negative prompts, what 1 means."""

import numpy as np
import pytest
import torch
from prompt_students import PROMPTS
from tiny_pipelines import write_pipeline

from dit_shd.core.errors import UserError
from dit_shd.diffusion import packing, prompt_generation
from dit_shd.diffusion.adapters import adapter_of
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.pipeline_guidance import rescaled, true_guidance
from dit_shd.diffusion.pipelines import open_pipeline


@pytest.mark.parametrize("most", [None, 1.0])
def test_each_vector_of_the_last_axis_keeps_its_direction_and_has_the_length_of_the_other(most):
    combined, conditional = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    found = rescaled(combined, conditional) if most is None else rescaled(combined, conditional, most)
    torch.testing.assert_close(torch.cosine_similarity(found, combined, dim=-1), torch.ones(3, 5))
    longest = combined.norm(dim=-1) * (torch.inf if most is None else most)
    torch.testing.assert_close(found.norm(dim=-1), conditional.norm(dim=-1).minimum(longest))
    assert (conditional.norm(dim=-1) > combined.norm(dim=-1)).any(), "of which some would grow"


def test_a_second_forward_is_asked_for_where_there_is_guidance():
    assert true_guidance({"guidance_embeds": True}, 3.0) == {"guidance_scale": 3.0}
    assert true_guidance({}, 3.0) == {"true_cfg_scale": 3.0, "negative_prompt": ""}
    assert true_guidance({}, 1.0) == {"true_cfg_scale": 1.0}


@pytest.mark.parametrize("kind", ["z_image", "hunyuan_dit", "qwen_image", "wan"])
def test_one_negative_prompt_is_of_every_prompt(kind, tmp_path):
    whole = open_pipeline(write_pipeline(kind, tmp_path / "pipeline"))
    call = {"height": 32, "width": 32, "num_inference_steps": 2, "negative_prompt": "zero", "guidance_scale": 4.0}
    call |= {"use_resolution_binning": False} if kind == "hunyuan_dit" else {}
    call |= {"num_frames": 1} if kind == "wan" else {}
    call |= {"true_cfg_scale": 4.0} if kind == "qwen_image" else {}
    both = prompt_generation.draw(whole, PROMPTS[:2], 0, range(2), call)
    for number, prompt in enumerate(PROMPTS[:2]):
        alone = prompt_generation.draw(whole, [prompt], 0, range(number, number + 1), call)
        assert np.abs(both[number].astype(int) - alone[0]).max() <= 1


def test_a_flux_that_is_not_distilled_for_guidance_is_guided_by_a_second_run(tmp_path):
    whole, record = assemble(str(write_pipeline("flux", tmp_path / "pipeline")), None)
    assert prompt_generation.call_arguments(whole, record, {"guidance": 0.5})["guidance_scale"] == 0.5
    whole.transformer.register_to_config(guidance_embeds=False)
    call = prompt_generation.call_arguments(whole, record, {"guidance": 4})
    assert (call["true_cfg_scale"], call["negative_prompt"]) == (4, "")
    with pytest.raises(UserError, match=r"guidance: wanted 1, for none, or more .*, found 0.5"):
        prompt_generation.call_arguments(whole, record, {"guidance": 0.5})


@pytest.mark.parametrize("kind", ["z_image", "qwen_image"])
def test_a_guidance_of_1_is_none_and_of_w_is_the_common_convention(kind, tmp_path, monkeypatch):
    """Z-Image guides by c + g (c - u), Qwen-Image by another argument and only with a negative prompt."""
    whole, record = assemble(str(write_pipeline(kind, tmp_path / "pipeline")), None)
    adapter, runs, outputs = adapter_of(record.transformer_class), [], []
    forward, step = whole.transformer.forward, whole.scheduler.step

    def counted(*args, **kwargs):
        runs.append(len(kwargs.get("hidden_states", args[0] if args else ())))
        return forward(*args, **kwargs)

    def recorded(output, t, sample, *args, **kwargs):
        outputs.append((sample.clone(), t.clone(), output.clone()))
        return step(output, t, sample, *args, **kwargs)

    monkeypatch.setattr(whole.transformer, "forward", counted)
    monkeypatch.setattr(whole.scheduler, "step", recorded)
    for scale, of_prompts in ((1, 1), (4, 2)):
        runs.clear()
        given = {"guidance": scale, "num_inference_steps": 2, "height": 16, "width": 16}
        call = prompt_generation.call_arguments(whole, record, given)
        prompt_generation.draw(whole, PROMPTS[:2], 0, range(2), call)
        assert sum(runs) == 2 * 2 * of_prompts, "samples in 2 steps of 2 prompts"
    sample, t, output = outputs[2]  # the first step that is guided
    x, guided = (value.flatten(2, 3) if kind == "z_image" and value.ndim == 5 else value for value in (sample, output))
    side = 16 // whole.vae_scale_factor
    x, guided = (
        packing.unpack(value, torch.empty(2, 4, side, side)) if kind == "qwen_image" else value for value in (x, guided)
    )
    text, empty = adapter.encode(whole, PROMPTS[:2]), adapter.encode_empty(whole)
    nothing = text.replaced(torch.tensor([True, True]), empty)
    with torch.no_grad():
        c, u = (adapter.predict(whole.transformer, x, (t / 1000).expand(2), text) for text in (text, nothing))
    relative = (u + 4 * (c - u) - guided).norm() / guided.norm()
    assert relative < (1e-4 if kind == "z_image" else 0.02)  # Qwen-Image rescales to the conditional norm
    with pytest.raises(UserError, match="guidance: wanted 0 or more, found -1"):
        prompt_generation.call_arguments(whole, record, {"guidance": -1})
