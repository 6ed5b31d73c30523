"""repa against its definition: tokens of the data, tokens of an encoder on another grid; refusals."""

import dataclasses

import loss_checks as checks
import pytest
import torch
import torch.nn.functional as F

from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Frozen, LayerLoss

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def with_data(field, values, weights=None):
    made = dataclasses.replace(checks.batch(), data={field: values})
    object.__setattr__(made, "weights", weights)
    return made


def built(s, given, **options):
    return checks.build("repa", s, s, given, inside=5, **options)


def oracle(loss, x, target, weights=1.0):
    p = dict(loss.named_parameters())
    for i in (0, 2, 4):
        x = x @ p[f"project.{i}.weight"].T + p[f"project.{i}.bias"]
        x = x if i == 4 else x * torch.sigmoid(x)
    cosine = (x * target).sum(2) / (x.square().sum(2) * target.square().sum(2)).sqrt()
    return ((1 - cosine) * weights).mean(1)


@pytest.mark.parametrize("weights", [None, torch.tensor([[0, 2.0, 0.5] * 3, [1, 0, 0] * 3]).double()])
def test_value_and_gradients_are_the_definition(weights):
    s = checks.tokens(4, depth=3, n=9, grad=True)
    target = torch.randn(2, 9, 6, dtype=torch.float64)
    given = with_data("dino", target, weights)
    loss = built(s, given, field="dino", depth=2)
    assert loss.fields == {"dino"} and not loss.reads_teacher and not isinstance(loss, LayerLoss)
    checks.same(loss, s, s, lambda: oracle(loss, s["b.1"], target, 1 if weights is None else weights), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_of_bfloat16_are_compared_in_float32(dtype):
    """Whether the projector was moved with the model or not."""
    s = checks.tokens(4, depth=1, n=9, grad=False)
    given = with_data("dino", torch.randn(2, 9, 600).bfloat16())
    loss = built(s, given, field="dino", depth=1).to(dtype)
    s = {name: x.bfloat16() for name, x in s.items()}
    value = loss.term(checks.forward(*_hidden(s)), None, given).value
    with torch.no_grad():
        ours, theirs = loss.project(s["b.0"].to(dtype)).double(), given.data["dino"].double()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), (1 - F.cosine_similarity(ours, theirs, dim=2)).mean(1))


class Patches(torch.nn.Module):
    """An encoder of 4 x 4 tokens: means of patches."""

    def forward(self, images):
        assert images.shape[1:] == (3, 224, 224)
        return F.avg_pool2d(images, 56).flatten(2).transpose(1, 2)


def test_an_encoder_sees_the_clean_image_and_its_tokens_come_to_the_students_grid():
    s = checks.tokens(4, depth=1, n=4, grad=True)
    images = torch.rand(2, 1, 28, 28, dtype=torch.float64) * 2 - 1
    given = with_data("latents", images)
    loss = checks.build("repa", depth=1, inside=5)
    loss.encoder = Frozen(Patches())
    loss.build(checks.forward(*_hidden(s)), None, given)
    loss = loss.double()
    resized = F.interpolate(images.expand(-1, 3, -1, -1), (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
    grid = F.avg_pool2d(((resized + 1) / 2 - MEAN) / STD, 56)
    target = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)  # bilinear from 4 x 4 to 2 x 2 is the mean of 2 x 2
    torch.testing.assert_close(
        loss.term(checks.forward(*_hidden(s)), None, given).value, oracle(loss, s["b.0"], target), rtol=1e-6, atol=1e-8
    )


def _hidden(s):
    return next(kind for kind, name in checks.KINDS.items() if name == "hidden"), s


def test_what_does_not_fit_is_refused():
    s = checks.tokens(4, n=9)
    tokens = torch.randn(2, 9, 6, dtype=torch.float64)
    with pytest.raises(UserError, match=r"depth: wanted tokens .* of block 8, found 2 blocks"):
        built(s, with_data("latents", tokens))
    with pytest.raises(UserError, match=r"without weights, wanted tokens \[b,9,e\] in latents, found \[2, 4, 6\]"):
        built(s, with_data("latents", tokens[:, :4]), depth=1)
    with pytest.raises(UserError, match="the batch has no latents; it has dino"):
        built(s, with_data("dino", tokens), depth=1)
    with pytest.raises(UserError, match="depth and inside of 1 or more"):
        checks.build("repa", depth=0)
