"""What people give to the plug-in that is not what it takes: said in a line, or taken for what it must be."""

import diffusers
import oracle
import pytest
import torch

from dit_shd import SHD, Capture, attach_processors, attention_kl, capture, squeeze
from dit_shd.attention.bias import DenseBias
from dit_shd.attention.recording.discovery import names_attention
from dit_shd.core.errors import UserError


def dit(heads, seed=0):
    torch.manual_seed(seed)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=4, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


INPUTS = {"timestep": torch.tensor([1, 900]), "class_labels": torch.tensor([1, 2])}


def run(model, seed=0):
    images = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return model(images, **INPUTS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


B, H, N, M = 3, 2, 5, 4
SHAPES = [(N, M), (1, M), (M,), (H, N, M), (1, N, M), (B, 1, N, M), (B, H, N, M), (B, 1, 1, M), (1, H, N, M), (1,)]


def tensors():
    return draw(B, H, N, 6), draw(B, H, M, 6, seed=1), draw(B, H, M, 6, seed=2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("boolean", [False, True])
def test_a_tensor_is_a_dense_bias_by_torchs_own_broadcasting(shape, boolean):
    bias = draw(*shape, seed=3).requires_grad_(not boolean)
    bias = bias < 0.8 if boolean else bias
    added = torch.zeros(shape, dtype=torch.float64).masked_fill(~bias, -torch.inf) if boolean else bias
    q, k, v = tensors()
    teacher, student = (Capture(x, k, v, 0.5, bias, out=draw(H, 6, 9, seed=4)) for x in (q, q.flip(0)))
    a, b = (oracle.maps(x, k, 0.5, added.expand(B, H, N, M)) for x in (q, q.flip(0)))
    torch.testing.assert_close(student.map(), b)
    squeezed = squeeze(teacher, H)
    found, want = attention_kl(teacher, student, squeezed), oracle.divergence(a.detach(), b, squeezed.w[..., 0])
    torch.testing.assert_close(found, want)
    if not boolean:
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), bias)[0] for x in (found, want)))


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.zeros(B, N, M), r"broadcasts to \[b,h,n,m\] = \[3, 2, 5, 4\], found \[3, 5, 4\]; .*mask\[:, None\]"),
        (torch.zeros(B, M), "found .3, 4."),
        (torch.zeros(1, B, H, N, M), "broadcasts to"),
        (torch.zeros(N, N), "broadcasts to"),
        (torch.ones(N, M, dtype=torch.long), "mask.bool()"),
        (torch.full((N, M), torch.nan), "found NaN or plus infinity"),
        (torch.full((N, M), torch.inf), "found NaN or plus infinity"),
        ([[0.0] * M] * N, "wanted a tensor or a Bias, found list"),
    ],
)
def test_a_bias_that_cannot_be_is_refused(bias, message):
    with pytest.raises(UserError, match=message):
        Capture(*tensors(), 0.5, bias)


def test_tensors_of_other_shapes_are_refused():
    q, k, v = tensors()
    for wrong in ((q[0], k, v), (q, k[0], v), (q, k, None)):
        with pytest.raises(UserError, match="wanted a tensor"):
            Capture(*wrong, 0.5)


def test_models_in_place_of_captures():
    teacher, student = dit(4), dit(2)
    with capture(teacher) as t, capture(student) as s:
        run(teacher)
        run(student)
    assert SHD()(t, s) > 0
    for ours, theirs, message in (
        (
            teacher,
            student,
            "SHD: wanted the teacher's captures, found DiTTransformer2DModel; run it inside",
        ),
        (t, student, "SHD: wanted the student's captures, found DiTTransformer2DModel"),
        (capture(teacher), s, "holds no captures by itself: run the model inside `with capture"),
        (t, capture(student), "holds no captures by itself"),
        (None, s, "the teacher's captures, found NoneType"),
        ({"x": torch.zeros(2)}, s, "the teacher's captures: x: wanted a Capture, found Tensor"),
        ({}, s, "the teacher's captures are empty"),
        (t, t, "captures of one and the same forward"),
    ):
        with pytest.raises(UserError, match=message):
            SHD()(ours, theirs)
        if ours is not theirs:
            with pytest.raises(UserError, match=message):
                SHD(plan="matched").calibrate(ours, theirs)
    layer = next(iter(t))
    with pytest.raises(UserError, match=r"squeeze: wanted a Capture, found Recording; captures.*is one"):
        squeeze(t, 2)
    with pytest.raises(UserError, match="attention_kl: student: wanted a Capture, found DiTTransformer2DModel"):
        attention_kl(t[layer], student, squeeze(t[layer], 2))


@pytest.mark.parametrize("use", [lambda c: c["x"], list, len, bool, dict, lambda c: c.items(), lambda c: c.values()])
def test_capture_without_with(use):
    with pytest.raises(UserError, match="run the model inside `with capture"):
        use(capture(dit(2)))


def test_one_forward_captured_twice_is_no_teacher_and_student():
    """One after the other they are; in test_captures.py are the other ways."""
    model = dit(2)
    with capture(model) as t, capture(model) as s:
        run(model)
    with pytest.raises(UserError, match="captures of one and the same forward"):
        SHD()(t, s)
    compiled = []
    torch.compile(torch.sin, backend=lambda graph, _: compiled.append(graph) or graph.forward)(torch.ones(2))
    assert compiled  # the first forward runs eagerly, and what comes after it does not
    with torch.no_grad(), capture(model) as t:
        run(model)
    with capture(model) as s:
        run(model, seed=1)
    assert SHD()(t, s) > 0


class Pipe:
    def __init__(self):
        self.transformer = dit(2)


@pytest.mark.parametrize("record", [lambda x: capture(x).__enter__(), attach_processors])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (Pipe(), "found Pipe; of a pipeline take its model: .transformer"),
        ("model.pt", "found str$"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_model_is_said(record, what, message):
    with pytest.raises(UserError, match=message):
        record(what)


def test_a_network_without_attention_is_told_so():
    """Flatten is none, though its name has the letters; a setting of its backend had been asked for."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 2))
    with pytest.raises(UserError, match="no attention module ran that ends in PyTorch's"), capture(network):
        network(torch.randn(2, 3, 8, 8))
    names = (
        "att",
        "attn1",
        "SelfAtt",
        "Selfatt",
        "SelfAtten",
        "attblock",
        "MHAttBlock",
        "cross_att",
        "GlobalAttention",
    )
    assert all(map(names_attention, names))
    assert not any(map(names_attention, ("latent", "Scatter", "PatternEmbed", "flatten1", "Flatten", "attributes")))


def test_a_dense_bias_is_left_as_it_is():
    bias = DenseBias(torch.zeros(N, M))
    assert Capture(*tensors(), 0.5, bias).bias is bias
