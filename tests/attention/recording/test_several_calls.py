"""Parts of a batch, single samples, windows, and heads in several calls: one layer, or refused."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import MochiTransformer3DModel
from small_attention import Attention, E, Net, inputs, recorded
from torch import nn

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


def images(b=4, n=6):
    return torch.randn(b, n, E, generator=torch.Generator().manual_seed(0))


class InParts(Attention):
    """Some samples at a time; projected together, or each part by itself as conditional and unconditional halves."""

    def __init__(self, parts=(2, 2), apart=False, heads=4):
        super().__init__(heads=heads)
        self.parts, self.apart = parts, apart

    def forward(self, x, mask=None):
        parts = zip(*(z.split(self.parts) for z in self.heads_of(x)))
        if self.apart:
            parts = (self.heads_of(part) for part in x.split(self.parts))
        return self.proj(torch.cat([F.scaled_dot_product_attention(*one) for one in parts]).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("parts", [(2, 2), (3, 1), (1, 1, 1, 1)])
def test_parts_of_a_batch_are_one_layer(parts, apart):
    """They had been taken for packed images, of one alpha, or uneven ones for as many layers, without a word."""
    found = []
    for make, options in ((Attention, {}), (InParts, {"parts": parts, "apart": apart})):
        torch.manual_seed(0)
        teacher, student = Net(make=make, **options), Net(make=make, heads=2, **options)
        for _ in range(2):
            with capture(teacher) as t, capture(student) as s:
                with torch.no_grad():
                    teacher(images())
                student(images())
        loss = SHD()(t, s)
        found.append((loss, torch.autograd.grad(loss, student.blocks[0].qkv.weight)[0]))
    torch.testing.assert_close(found[1], found[0])


class Frames(Attention):
    """Each frame of [b,t,n,e] by itself, with the frames in the batch; some at a time."""

    def __init__(self, some=8, copied=(), heads=4):
        super().__init__(heads=heads)
        self.some, self.copied = some, copied

    def forward(self, x, mask=None):
        of = [z.split(self.some) for z in self.heads_of(x.flatten(0, 1))]
        of = [[part.clone() for part in parts] if i in self.copied else parts for i, parts in enumerate(of)]
        made = torch.cat([F.scaled_dot_product_attention(*one) for one in zip(*of)])
        return self.proj(made.transpose(1, 2).flatten(2)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("copied", [(), (0, 1)])
@pytest.mark.parametrize("some", [1, 2, 4])
@pytest.mark.parametrize("heads", [4, 1])
def test_frames_in_parts_of_the_batch_are_samples(some, copied, heads):
    """Frames of several samples had been taken for documents of one sequence, of one alpha, without a word."""
    x = torch.randn(2, 4, 6, E)
    model, whole = Net(depth=1, make=Frames, some=some, copied=copied, heads=heads), Net(depth=1, make=Frames)
    whole.blocks[0].heads = heads
    whole.load_state_dict(model.state_dict())
    for _ in range(2):
        found, want = (recorded(each, x)["blocks.0"] for each in (model, whole))
        assert found.shape == want.shape == (8, heads, 6, 6)
        torch.testing.assert_close(found.map(), want.map())


class Documents(Attention):
    """Documents of one packed sequence, each by itself; or windows of each sample, projected one by one."""

    def __init__(self, windows=False, heads=4):
        super().__init__(heads=heads)
        self.windows = windows

    def forward(self, x, mask=None):
        if self.windows:
            made = [F.scaled_dot_product_attention(*self.heads_of(each)) for each in x.split(3, 1)]
        else:
            parts = zip(*(z.split(3) for z in self.heads_of(x.view(1, -1, E))[:, 0].transpose(1, 2)))  # [n,h,d]
            made = [F.scaled_dot_product_attention(*(z[None].transpose(1, 2) for z in some)) for some in parts]
        return self.proj(torch.cat(made, 2).transpose(1, 2).flatten(2)).view_as(x)


@pytest.mark.parametrize(("shape", "windows"), [((1, 6, E), False), ((6, E), False), ((2, 6, E), True)])
def test_documents_and_windows_of_one_length_are_one_sequence(shape, windows):
    x, seen = torch.randn(shape), torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).bool()
    model = Net(depth=1, make=Documents, windows=windows)
    found = recorded(model, x)["blocks.0"]
    q, k, _ = model.blocks[0].heads_of(x.view(-1, 6, E))
    scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(found.map(), scores.softmax(3))


class Differential(Attention):
    """Two maps of one layer, in one memory."""

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        q, k = (torch.stack([z, -z]) for z in (q, k))
        first, second = (F.scaled_dot_product_attention(q[i], k[i], v) for i in range(2))
        return self.proj((first - 0.5 * second).transpose(1, 2).flatten(2))


def test_two_maps_of_one_layer_are_no_samples():
    found = recorded(Net(depth=1, make=Differential), images())
    assert {name: each.shape for name, each in found.items()} == {"blocks.0": (4, 4, 6, 6), "blocks.0#2": (4, 4, 6, 6)}


class InWindows(Attention):
    """Windows of some tokens in a dimension of their own."""

    def __init__(self, heads=4, size=3):
        super().__init__(heads=heads)
        self.size = size

    def forward(self, x, mask=None):
        of = [z.unflatten(2, (-1, self.size)).transpose(1, 2) for z in self.heads_of(x)]  # [b,w,h,n,d]
        made = F.scaled_dot_product_attention(*of).transpose(1, 2)
        return self.proj(made.flatten(2, 3).transpose(1, 2).flatten(2))


class Mixed(InWindows):
    """Windows whose number tells nothing in the first block only."""

    first = True

    def __init__(self, **options):
        super().__init__(size=3 if Mixed.first else 2, **options)
        Mixed.first = False


def test_a_layer_that_cannot_be_recorded_is_not_passed_over_where_depths_pair():
    """The student's first layer had learned from the teacher's second, without a word."""
    student = Net(depth=3, heads=2)
    Mixed.first = True
    teacher = Net(depth=3, make=Mixed, heads=2)
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(images())
        student(images())
    assert len(t) == 2
    with pytest.raises(UserError, match=r"name the pairs.*blocks\.0 cannot be recorded: which dimension"):
        SHD()(t, s)


@pytest.mark.parametrize("at_once", [1, 2])
def test_heads_in_several_calls_are_refused(at_once):
    """Groups of heads were cut at the calls, or the advice was of layers that run several times."""

    class ByHead(Attention):
        def forward(self, x, mask=None):
            parts = zip(*(z.split(at_once, 1) for z in self.heads_of(x)))
            made = torch.cat([F.scaled_dot_product_attention(*one) for one in parts], 1)
            return self.proj(made.transpose(1, 2).flatten(2))

    with pytest.raises(UserError, match=rf"its heads come in {4 // at_once} calls .*first call has {at_once}\)"):
        recorded(Net(depth=1, make=ByHead), images())


@pytest.mark.parametrize("first", [[-1], [1], ["blocks.2"]])
def test_a_look_at_some_layers_does_not_change_the_order_of_later_captures(first):
    """Those that were looked at first came first from then on, and layers were paired wrongly."""
    model = Net(depth=4)
    with torch.no_grad(), capture(model, layers=first) as captures:
        model(images())
    assert len(captures) == 1
    assert list(recorded(model, images())) == [f"blocks.{i}" for i in range(4)]


def test_heads_that_come_one_at_a_time_are_no_rows():
    """The next head's tokens are the next in memory, as of packed images; they share keys and values."""

    class ByHead(Attention):
        def forward(self, x, mask=None):
            q, k, v = (z.contiguous() for z in self.heads_of(x))
            made = [F.scaled_dot_product_attention(q[:, i : i + 1], k[:, :1], v[:, :1]) for i in (0, 1)]
            return self.proj(torch.cat(made, 1).transpose(1, 2).flatten(2))

    shapes = {name: each.shape for name, each in recorded(Net(depth=1, make=ByHead, heads=2), inputs()).items()}
    assert shapes == {"blocks.0": (2, 1, 6, 6), "blocks.0#2": (2, 1, 6, 6)}


@pytest.mark.parametrize("heads", [1, 2])
def test_samples_that_come_one_at_a_time_are_samples(heads):
    """Of a single head, the next sample's tokens are the next in memory, as of packed images."""

    class OneByOne(Attention):
        def forward(self, x, mask=None):
            parts = zip(*(z.contiguous().split(1) for z in self.heads_of(x)))
            made = torch.cat([F.scaled_dot_product_attention(*sample) for sample in parts])
            return self.proj(made.transpose(1, 2).flatten(2))

    assert recorded(Net(make=OneByOne, heads=heads), inputs())["blocks.0"].shape == (2, heads, 6, 6)


@pytest.mark.parametrize("longest", [6, 5])
def test_samples_that_come_one_at_a_time_are_one_layer_whatever_their_lengths(longest):
    """As Mochi's do, which leaves out each prompt's padding: the loss is a mean over samples, no sum."""

    class OneByOne(Attention):
        def forward(self, x, mask=None):
            made = torch.zeros(2, self.heads, 6, E // self.heads)
            for i, n in enumerate((longest, 5)):
                made[i : i + 1, :, :n] = F.scaled_dot_product_attention(*self.heads_of(x[i : i + 1, :n]))
            return self.proj(made.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    teacher, student = Net(depth=1, make=OneByOne), Net(depth=1, heads=2, make=OneByOne)
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(inputs())
        student(inputs())
    assert len(s) == (2 if longest == 6 else 1)
    alone = Net(depth=1), Net(depth=1, heads=2)
    for model, whole in zip(alone, (teacher, student)):
        model.load_state_dict(whole.state_dict())
    expected = []
    for i, n in enumerate((longest, 5)):
        with capture(alone[0]) as one, capture(alone[1]) as other:
            for model in alone:
                model(inputs()[i : i + 1, :n])
        expected.append(SHD(method="constant")(one, other))
    torch.testing.assert_close(SHD(method="constant")(t, s), torch.stack(expected).mean())


def test_the_loss_of_mochi_is_a_mean_over_samples():
    """Its layers leave out each prompt's padding, so that samples of unlike prompts are calls of their own."""

    def model(heads, seed):
        torch.manual_seed(seed)
        built = MochiTransformer3DModel(
            patch_size=2, num_attention_heads=heads, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
            in_channels=4, text_embed_dim=16, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=8,
        ).eval()  # fmt: skip
        for p in built.parameters():
            nn.init.normal_(p, std=0.2)
        return built

    teacher, student = model(4, 0), model(2, 1)
    x, text, t = torch.randn(2, 4, 2, 4, 4), torch.randn(2, 8, 16), torch.tensor([3, 500])
    mask = torch.arange(8) < torch.tensor([[3], [6]])

    def loss(*samples):
        chosen = list(samples)
        given = {"encoder_hidden_states": text[chosen], "timestep": t[chosen], "encoder_attention_mask": mask[chosen]}
        with capture(teacher) as taught, capture(student) as learned:
            with torch.no_grad():
                teacher(x[chosen], **given)
            student(x[chosen], **given)
        return SHD()(taught, learned)

    torch.testing.assert_close(loss(0, 1), (loss(0) + loss(1)) / 2)
