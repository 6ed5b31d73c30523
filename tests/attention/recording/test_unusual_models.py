"""What models do to their memory, layers and modules while they run: recorded as it was, or refused in a line."""

import pickle
import threading

import oracle
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_shd import SHD, capture, squeeze
from dit_shd.core.errors import UserError

E, H = 32, 4


class Attention(nn.Module):
    """Self-attention whose result goes through `after` before W^O."""

    def __init__(self, after=lambda o: o, heads=H):
        super().__init__()
        self.heads, self.after = heads, after
        self.qkv, self.proj = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def heads_of(self, x):
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x, mask=None):
        made = self.after(F.scaled_dot_product_attention(*self.heads_of(x), attn_mask=mask))
        return self.proj(made.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, depth=2, make=Attention, **options):
        super().__init__()
        self.blocks = nn.ModuleList(make(**options) for _ in range(depth))
        self.skip = ()

    def forward(self, x, **given):
        for i, block in enumerate(self.blocks):
            if i not in self.skip:
                x = x + block(x, **given)
        return x


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs(seed=0):
    return torch.randn(2, 6, E, generator=torch.Generator().manual_seed(seed))


def recorded(model, x, **given):
    with torch.no_grad(), capture(model) as captures:
        model(x, **given)
    return captures


class InChunks(Attention):
    """The same, some queries at a time, as one saves memory."""

    def __init__(self, rows=4, copied=False, heads=H):
        super().__init__(heads=heads)
        self.rows, self.copied = rows, copied

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        parts = []
        for first in range(0, q.shape[2], self.rows):
            some = slice(first, first + self.rows)
            query = q[:, :, some].clone() if self.copied else q[:, :, some]
            parts.append(F.scaled_dot_product_attention(query, k, v, None if mask is None else mask[..., some, :]))
        return self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("rows", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_queries_in_chunks_are_one_layer(rows, copied, masked):
    """Each chunk had been a layer of its own, and the loss as many times too large as there were chunks."""
    losses, gradients = [], []
    given = {"mask": torch.ones(6, 6).tril().bool()} if masked else {}
    for make, options in ((Attention, {}), (InChunks, {"rows": rows, "copied": copied})):
        torch.manual_seed(0)
        teacher, student = Net(make=make, **options), Net(make=make, heads=2, **options)
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs(), **given)
            student(inputs(), **given)
        assert list(s) == ["blocks.0", "blocks.1"] and s["blocks.0"].shape == (2, 2, 6, 6)
        losses.append(SHD()(t, s))
        gradients.append(torch.autograd.grad(losses[-1], student.blocks[0].qkv.weight)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_chunks_that_arrive_at_two_projections_are_not_given_the_first_ones():
    """As text's and image's rows that ask the same keys one after the other: each has its W^O, or it is asked for."""

    class TwoOuts(InChunks):
        def __init__(self, **options):
            super().__init__(**options)
            self.other = nn.Linear(E, E)

        def forward(self, x, mask=None):
            q, k, v = self.heads_of(x)
            first, last = (
                F.scaled_dot_product_attention(part, k, v).transpose(1, 2).flatten(2) for part in q.split(3, 2)
            )
            return torch.cat([self.proj(first), self.other(last)], 1)

    with pytest.raises(UserError, match="where the image stands among its 6 tokens is not known"):
        recorded(Net(make=TwoOuts), inputs())
    model = Net(depth=1, make=TwoOuts)
    with torch.no_grad(), capture(model, image=slice(3, None)) as captures:
        model(inputs())
    for name, projection in (("blocks.0:text", model.blocks[0].proj), ("blocks.0", model.blocks[0].other)):
        torch.testing.assert_close(captures[name].out.flatten(0, 1), projection.weight.T)


def in_blocks(lengths):
    return torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()


class Packed(Attention):
    """One sequence of several images, each of which attends to itself, by a call each (as Qwen2-VL's vision model)."""

    def __init__(self, lengths=(3, 3), apart=True, **options):
        super().__init__(**options)
        self.lengths, self.apart = list(lengths), apart

    def forward(self, x, mask=None):
        heads = self.heads_of(x)
        if self.apart:
            images = zip(*(z.split(self.lengths, 2) for z in heads))
            made = torch.cat([F.scaled_dot_product_attention(*image) for image in images], 2)
        else:
            made = F.scaled_dot_product_attention(*heads, attn_mask=in_blocks(self.lengths))
        return self.proj(made.transpose(1, 2).flatten(2))


class Prefixed(Attention):
    """Some first tokens see each other alone, the others see all: a call over a part of the keys, one over all."""

    def __init__(self, apart=True, causal=False, **options):
        super().__init__(**options)
        self.apart, self.causal = apart, causal

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        seen = torch.ones(6, 6, dtype=torch.bool)
        seen[:2, 2:] = False
        seen[:2, :2] = seen[:2, :2].tril() if self.causal else True
        if self.apart:
            some = slice(0, 2)
            first = F.scaled_dot_product_attention(q[:, :, some], k[:, :, some], v[:, :, some], is_causal=self.causal)
            made = torch.cat([first, F.scaled_dot_product_attention(q[:, :, 2:], k, v)], 2)
        else:
            made = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(made.transpose(1, 2).flatten(2))


class InWindows(Attention):
    """Two tokens at a time, each over the tokens before and after them, too: a call for each window."""

    def __init__(self, apart=True, **options):
        super().__init__(**options)
        self.apart = apart

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        windows = [slice(0, 3), slice(1, 5), slice(3, 6)]
        if self.apart:
            parts = zip(q.split(2, 2), windows)
            made = [F.scaled_dot_product_attention(some, k[:, :, keys], v[:, :, keys]) for some, keys in parts]
            return self.proj(torch.cat(made, 2).transpose(1, 2).flatten(2))
        seen = torch.zeros(6, 6, dtype=torch.bool)
        for i, keys in enumerate(windows):
            seen[2 * i : 2 * i + 2, keys] = True
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("make", "options"),
    [(InWindows, {}), (Packed, {}), (Packed, {"lengths": (1, 3, 2)}), (Prefixed, {}), (Prefixed, {"causal": True})],
)
def test_calls_over_some_of_the_keys_each_are_one_layer(make, options):
    """Each call had been a layer of its own: the loss grew with the number of images in a batch."""
    losses, gradients = [], []
    for apart in (True, False):
        torch.manual_seed(0)
        teacher, student = (Net(make=make, heads=heads, apart=apart, **options) for heads in (H, 2))
        for _ in range(2):
            with capture(teacher) as t, capture(student) as s:
                with torch.no_grad():
                    teacher(inputs())
                student(inputs())
        assert list(s) == ["blocks.0", "blocks.1"] and s["blocks.0"].shape == (2, 2, 6, 6)
        losses.append(SHD()(t, s, row_weight=torch.arange(12.0).view(2, 6)))
        gradients.append(torch.autograd.grad(losses[-1], student.blocks[0].qkv.weight)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_masks_of_calls_over_some_of_the_keys_are_kept_with_their_gradients():
    class Biased(Packed):
        def __init__(self, **options):
            super().__init__(**options)
            self.added = nn.Parameter(torch.randn(self.heads, 3, 3))

        def forward(self, x, mask=None):
            images = list(zip(*(z.split(3, 2) for z in self.heads_of(x))))
            parts = [F.scaled_dot_product_attention(*images[0], attn_mask=self.added)]
            parts.append(F.scaled_dot_product_attention(*images[1], attn_mask=torch.ones(3, 3).tril().bool()))
            return self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))

    model = Net(depth=1, make=Biased)
    with capture(model) as captures:
        model(inputs())
    block, made = model.blocks[0], captures["blocks.0"].map()
    q, k, _ = (z.double() for z in block.heads_of(inputs()))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    seen = in_blocks([3, 3])
    seen[3:, 3:] = seen[3:, 3:].tril()
    scores = (scores + F.pad(block.added, (0, 3, 0, 3)).double()).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(made, scores.softmax(-1).float())
    made.square().sum().backward()
    assert block.added.grad.abs().max() > 0


@pytest.mark.parametrize("shared", [False, True])
def test_heads_that_come_one_at_a_time_are_no_rows(shared):
    """The next head's tokens are the next in memory, as of packed images; and heads may share their keys."""

    class ByHead(Attention):
        def forward(self, x, mask=None):
            q, k, v = (z.contiguous() for z in self.heads_of(x))
            of = {0: 0, 1: 0 if shared else 1}
            made = [
                F.scaled_dot_product_attention(q[:, i : i + 1], k[:, j : j + 1], v[:, j : j + 1]) for i, j in of.items()
            ]
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


def test_weights_of_rows_that_are_none_never_count_as_zero():
    """Rows are taken where their weight is above 0: NaN (0 / 0 of an empty sample) had dropped them without a word."""
    teacher, student = Net(), Net(heads=2)
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(inputs())
        student(inputs())
    shd = SHD()
    shd(t, s, row_weight=torch.ones(2, 6))
    for value in (float("nan"), float("inf"), -1.0):
        weight = torch.ones(2, 6)
        weight[0, 3] = value
        with pytest.raises(UserError, match="row_weight: wanted finite numbers of 0 or more"):
            shd(t, s, row_weight=weight)
    assert shd(t, s, row_weight=torch.zeros(2, 6)) == 0


@pytest.mark.parametrize("how", ["mul_", "*=", "masked_fill_"])
@pytest.mark.parametrize("inference", [False, True])
def test_what_is_changed_in_place_before_w_o_has_none(how, inference):
    """As out of place: W^O belongs to other rows then, and the layer's result is no A V."""
    factor = torch.rand(1, H, 1, 8)

    def after(o):
        if how == "masked_fill_":
            return o.masked_fill_(factor < 0.5, 0.0)
        if how == "*=":
            o *= factor
            return o
        return o.mul_(factor)

    model, x = Net(depth=1, after=after).eval(), inputs()
    for _ in range(2):  # the first forward, and one of what is known
        with torch.inference_mode(inference), capture(model) as captures:
            model(x)
        layer = captures["blocks.0"]
        assert layer.out is None
        assert "in place" in layer.why_no_out or "comes first" in layer.why_no_out
        if not inference:  # where it is not known whether memory was written to
            assert layer.mixed is None
        with pytest.raises(ValueError, match=r"no W\^O|W\^O is not known"):
            squeeze(layer, 2)


class Reusing(Net):
    """One mask, or one workspace, that each layer fills anew."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.memory = torch.zeros(1, 1, 6, 6, dtype=torch.bool if what == "bool" else torch.float32)

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            keep = torch.arange(6)[None] <= torch.arange(6)[:, None] + i
            self.memory.copy_(keep if self.what == "bool" else torch.where(keep, 0.0, -5.0))
            x = x + block(x, mask=self.memory)
        return x


@pytest.mark.parametrize("what", ["bool", "float"])
def test_memory_that_layers_share_is_not_taken_for_each_others(what):
    model, x = Reusing(what).eval(), inputs()
    with pytest.raises(UserError, match=r"blocks\.0: its queries, keys, values or mask were changed in place"):
        recorded(model, x)
    maps = {}

    def sink(name, layer):  # is handed each before it is changed, once it is known which layers there are
        maps[name] = layer.map()

    with torch.no_grad(), capture(model, sink=sink):
        model(x)
    for i, block in enumerate(model.blocks):
        keep = torch.arange(6)[None] <= torch.arange(6)[:, None] + i
        bias = torch.zeros(6, 6).masked_fill_(~keep, -torch.inf if what == "bool" else -5.0)
        q, k, _ = block.heads_of(x)
        torch.testing.assert_close(maps[f"blocks.{i}"], oracle.maps(q, k, 8**-0.5, bias))
        x = x + block(x, mask=bias)


@pytest.mark.parametrize("heads", [1, H])
def test_heads_that_lie_in_the_batch_are_refused(heads):
    """They were taken for samples of one head: the loss was 1/h of what it should be, by a W^O of one head."""

    class Folded(Attention):
        def forward(self, x):
            q, k, v = (part.flatten(0, 1) for part in self.heads_of(x))
            made = F.scaled_dot_product_attention(q, k, v).unflatten(0, (len(x), -1))
            return self.proj(made.transpose(1, 2).flatten(2))

    model = Net(make=Folded, heads=heads)
    if heads == 1:
        assert recorded(model, inputs())["blocks.0"].shape == (2, 1, 6, 6)
        return
    with pytest.raises(
        UserError, match=r"blocks\.0: heads lie in the batch: wanted .* found \[8, 6, 8\], .* given 2 samples"
    ):
        recorded(model, inputs())


@pytest.mark.parametrize("shape", [(6, 3, E), (3, 3, 2, E)])
def test_heads_that_lie_in_the_batch_are_seen_whatever_the_layout(shape):
    """Tokens before samples, as fairseq's, and images [b,H,W,e], as SAM's."""

    class Folded(Attention):
        def forward(self, x):
            n = len(x) if x.ndim == 3 else x[0, ..., 0].numel()
            heads = self.qkv(x).chunk(3, -1)
            if x.ndim == 3:
                q, k, v = (z.reshape(n, -1, E // self.heads).transpose(0, 1) for z in heads)
            else:
                q, k, v = (z.reshape(len(x), n, self.heads, -1).transpose(1, 2).flatten(0, 1) for z in heads)
            made = F.scaled_dot_product_attention(q, k, v)
            made = made.transpose(0, 1) if x.ndim == 3 else made.view(len(x), self.heads, n, -1).transpose(1, 2)
            return self.proj(made.reshape(x.shape))

    with pytest.raises(UserError, match=r"found \[12, 6, 8\], where its module was given 3 samples"):
        recorded(Net(make=Folded), torch.randn(shape))
    one = recorded(Net(make=Folded, heads=1), torch.randn(shape))
    assert one["blocks.0"].shape == (3, 1, 6, 6)


def test_layers_may_share_their_output_projection():
    model = Net()
    model.blocks[1].proj = model.blocks[0].proj
    captures = recorded(model, inputs())
    for name in ("blocks.0", "blocks.1"):
        torch.testing.assert_close(captures[name].out.flatten(0, 1), model.blocks[0].proj.weight.T)


def test_layers_that_are_skipped_are_not_paired_by_their_depth():
    teacher, student = Net(depth=4).eval(), Net(depth=4, heads=2)
    for skip in ((1,), (), (0, 1)):  # the first forward lacks a layer, too
        student.skip = skip
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            student(inputs())
        missing = f"blocks.{skip[0]}" if skip else "blocks.1"  # it was not there when the model was looked at
        with pytest.raises(UserError, match=f"{missing} of the student did not run in its last forward"):
            SHD()(t, s)
    with capture(teacher) as t, capture(student, layers=["blocks.2", "blocks.3"]) as s:
        with torch.no_grad():
            teacher(inputs())
        student(inputs())
    assert SHD()(t, s) > 0


class AttentionByHand(Attention):
    """Attention that no tap sees."""

    def forward(self, x):
        q, k, v = self.heads_of(x)
        made = torch.einsum("bhnm,bhmd->bnhd", (torch.einsum("bhnd,bhmd->bhnm", q, k) / E).softmax(-1), v)
        return self.proj(made.flatten(2))


def test_a_layer_computed_by_hand_does_not_shift_the_others():
    """It was in no report, and the student's first layer learned from the teacher's second."""
    teacher, student, hybrid = Net(depth=4).eval(), Net(depth=4, heads=2), Net(depth=4).eval()
    student.blocks[1], hybrid.blocks[2] = AttentionByHand(heads=2), AttentionByHand()
    for _ in range(2):
        with capture(teacher) as t, capture(student) as s, capture(hybrid) as mixed:
            with torch.no_grad():
                teacher(inputs()), hybrid(inputs())
            student(inputs())
    assert "blocks.1 ran without calling scaled_dot_product_attention" in str(s.report())
    with pytest.raises(UserError, match=r"paired by their depth, since one of the student .*: blocks\.1 ran without"):
        SHD()(t, s)
    assert SHD(layers={"blocks.2": "blocks.2"})(t, s) > 0
    assert SHD()(mixed, s) > 0  # of two hybrid models, those layers that can be recorded


@pytest.mark.parametrize("layers", [slice(0, 2), True, [True], 1.5, [None]])
def test_layers_that_are_no_names_are_refused_in_a_line(layers):
    with pytest.raises(UserError, match="layers: wanted names, patterns or numbers of layers, found"):
        capture(Net(), layers=layers)


def test_layers_are_chosen_by_any_collection_of_numbers():
    with torch.no_grad(), capture(model := Net(depth=4), layers=range(1, 3)) as captures:
        model(inputs())
    assert list(captures) == ["blocks.1", "blocks.2"]


def test_dropout_before_the_output_projection_is_named_as_the_reason():
    model = Net(depth=1)
    model.blocks[0].proj = nn.Sequential(nn.Dropout(0.5), nn.Linear(E, E))
    assert recorded(model.eval(), inputs())["blocks.0"].out is not None
    assert "dropout in blocks.0.proj.0 (call .eval()" in recorded(model.train(), inputs())["blocks.0"].why_no_out


def test_captures_are_pickled_with_their_output_projection():
    model = Net(depth=1)
    capture_ = recorded(model, inputs())["blocks.0"]
    copy = pickle.loads(pickle.dumps(capture_))
    torch.testing.assert_close(copy.out.flatten(0, 1), model.blocks[0].proj.weight.T)
    torch.testing.assert_close(copy.map(), capture_.map())


def test_transforms_of_torch_func_are_refused_in_a_line():
    teacher, student = Net(), Net(heads=2)

    def loss(parameters):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            torch.func.functional_call(student, parameters, inputs())
        return SHD()(t, s)

    parameters = dict(student.named_parameters())
    assert loss(parameters) > 0
    with pytest.raises(UserError, match=r"transforms of torch\.func"):
        torch.func.grad(loss)(parameters)


class WithHead(Net):
    def score(self, x):
        return x.mean(1)


def test_a_method_without_attention_that_is_called_after_the_forward_skips_no_layers():
    """As TRL's SFTTrainer calls one of the backbone before its loss is taken."""
    teacher, student = WithHead(depth=2).eval(), WithHead(depth=2, heads=2)
    for _ in range(3):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            student.score(student(inputs()))
        assert not s.skipped and SHD()(t, s) > 0


class OnlyInTraining(Net):
    def forward(self, x):
        x = super().forward(x)
        return self.more(x) if self.training else x

    def __init__(self):
        super().__init__()
        self.more = Attention()


def test_a_layer_that_runs_in_training_alone_is_recorded_there():
    model = OnlyInTraining().eval()
    with capture(model) as captures:
        for train, count in ((False, 2), (True, 3), (False, 2)):
            model.train(train)
            model(inputs())
            assert len(captures) == count


class Twice(Net):
    def forward(self, x):
        return super().forward(super().forward(x))


def test_compiled_layers_that_run_twice_stay_in_the_order_in_which_they_run():
    model = Twice()
    compiled = torch.compile(model, backend="eager")
    with capture(compiled) as captures:
        for _ in range(3):
            compiled(inputs())
            assert list(captures) == ["blocks.0", "blocks.1", "blocks.0#2", "blocks.1#2"]


def test_a_projection_of_several_modules_keeps_its_buffers():
    """It is asked for its weights with rows that are no data."""

    class Normed(Attention):
        def __init__(self):
            super().__init__()
            self.proj = nn.Sequential(nn.Linear(E, E), Statistics())

    class Statistics(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += x.shape[0]
            return 1.5 * x

    model, plain = Net(make=Normed), Net(make=Normed)
    with capture(model) as captures:
        for _ in range(2):
            model(inputs())
            assert all(layer.out is not None for layer in captures.values())
            plain(inputs())
    for (name, buffer), (_, want) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(buffer, want), name


def test_first_forwards_of_several_threads_leave_compilation_on():
    first, second = Net(depth=1), Net(depth=1)
    begun, joined, ended = (threading.Event() for _ in range(3))
    first.blocks[0].after = lambda o: (begun.set(), joined.wait(10), o)[2]
    second.blocks[0].after = lambda o: (joined.set(), ended.wait(10), o)[2]
    threads = [threading.Thread(target=recorded, args=(model, inputs())) for model in (first, second)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    threads[0].join()
    ended.set()
    threads[1].join()
    ran = []

    def backend(graph, _):
        ran.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert ran


def test_copies_in_threads_are_refused():
    model = nn.DataParallel(Net(), device_ids=[])
    model.device_ids = [0, 1]  # as on two GPUs
    with pytest.raises(UserError, match="start one process for each GPU"):
        capture(model)
