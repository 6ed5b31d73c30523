"""Which rows of a layer are a sample's own, with prompts of unlike lengths in one batch."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import KINDS, OTHERS

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.diffusion.adapters import adapter_of_model
from dit_shd.diffusion.text_rows import PaddedImageRows, TextRows
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.tasks.text_to_image import TextBatch, TextToImage

LENGTHS = (3, 40, 11)
"""Tokens of each prompt: in Z-Image's multiples of 32 the second is longer, too."""
OF_LAYERS = [
    "shd", "feature", "masked_feature", "attention_output", "self_correlation", "head_mean", "minilm", "minilmv2", "vkd"
]  # fmt: skip
"""TinyBERT's mean is over masked keys, too; Align-to-Distill wants as many tokens in all layers."""


def model(kind, seed):
    torch.manual_seed(seed)
    built = {**KINDS, **OTHERS}[kind]().transformer.eval()
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return built


def batch_of(built, prompts, tokens=48):
    """Samples of a batch of three, each with its own prompt, padded to a number of tokens."""
    draw = torch.Generator().manual_seed(1)
    x, text = torch.randn(3, 4, 8, 8, generator=draw), torch.randn(3, tokens, 32, generator=draw)
    mask = torch.arange(tokens) < torch.tensor(LENGTHS)[:, None]
    t = torch.tensor([0.2, 0.5, 0.8])
    rows = adapter_of_model(built).text_rows(built.config)
    of = list(prompts)
    return TextBatch("plain", 0, torch.tensor(of), x[of], x[of], x[of], t[of], text[of], mask[of], text_rows=rows)


@pytest.mark.parametrize("kind", ["lumina2", "z_image", "qwen_image", pytest.param("chroma", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OF_LAYERS)
def test_a_sample_s_term_is_its_own_whatever_prompts_are_beside_it(kind, name):
    """A batch is the mean of its samples."""
    student, teacher = model(kind, 0), model(kind, 1)
    loss = LOSSES.build(Plugin(name, {}))
    task = TextToImage()
    task.example(student, 1, torch.device("cpu"))  # it learns the way to noise
    distiller = Distiller(task, student, [loss], base_weight=0.0)
    distiller.build([batch_of(teacher, [0])], teacher)

    def of(*prompts):
        distiller.zero_grad()
        value, _ = distiller(batch_of(student, prompts), teacher)
        value.backward()
        return value.detach(), [p.grad.clone() for p in student.parameters() if p.grad is not None]

    alone, (value, gradients) = [of(i) for i in range(3)], of(0, 1, 2)
    assert value > 0
    torch.testing.assert_close(value, sum(part for part, _ in alone) / 3, rtol=1e-4, atol=1e-6)
    scale = max(float(x.abs().max()) for x in gradients)
    for found, *parts in zip(gradients, *(g for _, g in alone)):
        torch.testing.assert_close(found, sum(parts) / 3, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_padding_says_nothing_however_long_it_is_and_whatever_it_holds(name):
    student, teacher = model("qwen_image", 0), model("qwen_image", 1)
    distiller = Distiller(TextToImage(), student, [LOSSES.build(Plugin(name, {}))], base_weight=0.0)
    distiller.task.example(student, 1, torch.device("cpu"))
    batch = batch_of(student, range(3))
    distiller.build([batch], teacher)
    noise = torch.randn(batch.text.shape, generator=torch.Generator().manual_seed(3))
    other = replace(batch, text=torch.where(batch.text_mask[..., None], batch.text, 3 * noise))
    shorter = replace(batch, text=batch.text[:, :40], text_mask=batch.text_mask[:, :40])
    value = distiller(batch, teacher)[0]
    assert value > 0
    torch.testing.assert_close(distiller(other, teacher)[0], value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(distiller(shorter, teacher)[0], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("of", ["layers.0", "context_refiner.0", "noise_refiner.0"])
@pytest.mark.parametrize("kind", ["lumina2", "z_image"])
def test_padding_of_a_layer_is_what_the_model_hides(kind, of):
    """The rows that weigh nothing are the keys that the layer's mask hides; a sample's weights are n in all."""
    built = model(kind, 0)
    batch, task = batch_of(built, range(3)), TextToImage()
    task.example(built, 1, torch.device("cpu"))
    (name,) = [n for n, m in built.named_modules() if n.startswith(of) and n.endswith((".attn", ".attention"))]
    with capture(built, [name]) as captures, torch.no_grad():
        task.predict(built, batch)
        (layer,) = captures.values()
        n = layer.shape[2]
        hidden = (layer.map()[:, 0] == 0).all(1)
        weight = batch.row_weight(n)
    if weight is None:
        assert of.startswith("noise")
        weight = torch.ones(3, n)
    assert torch.equal(weight == 0, hidden)
    torch.testing.assert_close(weight.sum(1), torch.full((3,), float(n)) * (weight > 0).any(1))


def test_rows_that_could_be_text_or_image_all_weigh_one():
    mask = torch.arange(20) < torch.tensor([[4], [16]])
    assert TextRows().weight(mask, (4, 5), 20) is None
    torch.testing.assert_close(
        TextRows().weight(mask, (4, 4), 20), torch.tensor([[5.0] * 4 + [0.0] * 16, [1.25] * 16 + [0.0] * 4])
    )
    one = TextRows(stream_multiple=1)
    assert one.weight(mask, (2, 2), 20) is None  # as wide as the mask, and the longest prompt beside the image
    assert one.weight(mask, (4, 4), 16) is None  # the image's
    assert one.weight(mask, (4, 4), 7) is None
    torch.testing.assert_close(one.weight(mask, (4, 4), 32), torch.tensor([[1.6] * 20 + [0.0] * 12, [1.0] * 32]))
    assert one.weight(mask.to("meta"), (4, 4), 32) is None


def test_padding_of_an_image_that_is_not_square_counts_nothing():
    weight = PaddedImageRows(side=1, padded=8).weight(torch.ones(1, 3), (2, 3), 11)[0]
    assert weight[6:8].tolist() == [0, 0] and len({*weight[:6].tolist(), *weight[8:].tolist()}) == 1


@pytest.mark.parametrize("kind", ["z_image", "lumina2", "hunyuan_image", "prx", "qwen_image"])
def test_layers_of_text_alone_have_the_same_rows_whatever_the_image_s_size(kind):
    """They are in no sum over image queries."""
    built, rows = model(kind, 0), []
    for side in (8, 12):
        task = TextToImage(side=side)
        (batch,) = task.example(built, 2, torch.device("cpu"))
        with capture(built) as captures, torch.no_grad():
            task.predict(built, batch)
            rows.append({name: layer.shape[2] for name, layer in captures.items() if ":" not in name})
    text = [name for name, count in rows[0].items() if count == rows[1][name]]
    assert [name for name in rows[0] if not batch.is_of_image(name)] == text
    assert bool(text) == (kind in ("z_image", "lumina2", "hunyuan_image"))


def learned(kind, block):
    """The loss of a pass by layer."""
    student, teacher = model(kind, 0), model(kind, 1)
    task = TextToImage()
    task.example(student, 1, torch.device("cpu"))
    distiller = Distiller(task, student, [SHD(block=block)])
    batch = batch_of(student, range(3))
    both = []
    for each in (teacher, student):
        with capture(each) as captures, torch.no_grad():
            task.predict(each, batch)
            both.append(dict(captures))
    _, logs = distiller.terms(batch, teacher)
    return {name.removeprefix("shd/kl/"): x for name, x in logs.items() if name.startswith("shd/kl/")}, both


def test_the_image_s_block_is_cut_where_its_keys_are_behind_those_of_text():
    found, (teacher, student) = learned("prx", "image")
    assert {layer.shape[2:] for layer in student.values()} == {(16, 48 + 16)}
    cut = [
        {
            name: replace(c, key=c.key[:, :, 48:], value=c.value[:, :, 48:], bias=None, mixed=None, out=c.out)
            for name, c in layers.items()
        }
        for layers in (teacher, student)
    ]
    assert found.keys() == student.keys()
    for name in student:
        alone = SHD(weight=1.0, layers={name: name})(*cut)
        torch.testing.assert_close(found[name], alone, rtol=1e-4, atol=1e-7)


def test_the_image_s_block_has_no_layers_of_text_alone_and_is_refused_where_it_cannot_be_cut():
    assert [name.partition(".")[0] for name in learned("z_image", "image")[0]] == ["noise_refiner", "layers", "layers"]
    assert any(name.startswith("context_refiner") for name in learned("z_image", "joint")[0])
    with pytest.raises(
        UserError, match=r"^SHD: layers\.0\.attn: the 16 tokens of the image are not at one place .*joint"
    ):
        learned("lumina2", "image")
