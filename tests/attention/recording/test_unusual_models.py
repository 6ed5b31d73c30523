"""What models do to their memory, layers and modules while they run: recorded as it was, or refused in a line."""

import pickle
import threading

import oracle
import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, H, Net, inputs, recorded
from torch import nn

from dit_shd import SHD, capture, squeeze
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


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


@pytest.mark.parametrize("share", ["module", "weight", "numbers", "all"])
def test_layers_may_share_their_output_projection(share):
    """Of a shared weight, the last layer alone had it, and the others a reason that was false."""
    model = Net()
    first, second = model.blocks
    if share == "module":
        second.proj = first.proj
    elif share == "numbers":
        second.proj.weight = nn.Parameter(first.proj.weight.data)
    else:
        second.proj.weight = first.proj.weight
    if share == "all":
        second.qkv.weight, second.qkv.bias, second.proj.bias = first.qkv.weight, first.qkv.bias, first.proj.bias
    captures = recorded(model, inputs())
    for name in ("blocks.0", "blocks.1"):
        torch.testing.assert_close(captures[name].out.flatten(0, 1), model.blocks[0].proj.weight.T)


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


@pytest.mark.parametrize(("dropout", "training", "known"), [(0.1, True, False), (0.1, False, True), (0.0, True, True)])
def test_adapters_that_drop_out_have_no_w_o(dropout, training, known):
    """In training the base layer's product alone has the rows: its weight had been taken for the whole W^O."""
    peft = pytest.importorskip("peft")
    net = Net()
    how = peft.LoraConfig(r=2, target_modules=["proj"], lora_dropout=dropout, init_lora_weights=False)
    peft.inject_adapter_in_model(how, net)
    captures = recorded(net.train(training), inputs())
    for layer in captures.values():
        assert (layer.out is not None) == known
        assert known or "drops out, so W^O is not known; call .eval() of a teacher" in layer.why_no_out
