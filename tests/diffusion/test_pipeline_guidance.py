"""Guidance of pipelines: lengths that are those of the conditional prediction, arguments of a call."""

import pytest
import torch

from dit_shd.diffusion.pipeline_guidance import rescaled, true_guidance


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
