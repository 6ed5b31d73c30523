"""What one forward has shown, where later ones make other calls."""

import pytest
import torch
from clients.layers import E, Layer, merged, split
from torch import nn
from torch.nn import functional as F

from dit_shd import capture
from dit_shd.attention.recording.kinds import MODES
from dit_shd.attention.recording.survey import Survey
from dit_shd.core.errors import UserError


def inputs(n: int = 5):
    return torch.randn(2, n, E, generator=torch.Generator().manual_seed(n))


class Loops(nn.Module):
    """A core between two blocks, which runs as often as it is said."""

    def __init__(self):
        super().__init__()
        self.first, self.core, self.last = Layer(), nn.ModuleList([Layer(), Layer()]), Layer()

    def forward(self, x, loops=1):
        x = self.first(x)
        for _ in range(loops):
            for block in self.core:
                x = block(x)
        return self.last(x)


LOOPS = ["first", "core.0", "core.1", "core.0#2", "core.1#2", "core.0#3", "core.1#3", "last"]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_loops_that_are_drawn_stay_in_the_order_in_which_they_ran(first):
    """Those that the first forward had not made came last, and layers were paired wrongly without a word."""
    model, x = Loops(), inputs()
    with capture(model) as captures:
        for loops in (first, 3, 1):
            model(x, loops)
            assert list(captures) == [*LOOPS[: 1 + 2 * loops], "last"]


def test_compiled_loops_that_are_drawn_are_refused_until_the_most_were_seen():
    """The order among the layers of what a compiled program hands over is that of a forward that was seen."""
    model, x = Loops(), inputs()
    compiled = torch.compile(model, backend="eager")
    with capture(compiled) as captures:
        compiled(x, 2)
        compiled(x, 1)
        assert list(captures) == ["first", "core.0", "core.1", "last"]
        with pytest.raises(UserError, match=r"core\.0#3: this call is none .* kind, so when it ran .* is not known"):
            compiled(x, 3)
        for loops in (3, 1, 2, 3):
            compiled(x, loops)
            assert list(captures) == [*LOOPS[: 1 + 2 * loops], "last"]


class Dual(nn.Module):
    """Self-attention; of a context, cross-attention."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def forward(self, x, context=None):
        q, k, v = split(self.qkv(x))
        if context is not None:
            _, k, v = split(self.qkv(context))
        return self.proj(merged(F.scaled_dot_product_attention(q, k, v)))


class Sometimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Dual(), Dual()])

    def forward(self, x, context, crosses: tuple[str, ...]):
        (cross,) = crosses  # not by name, which would tell such forwards apart
        for layer in self.layers:
            x = x + layer(x, context) if cross == "first" else x
            x = x + layer(x)
            x = x + layer(x, context) if cross == "last" else x
        return x


@pytest.mark.parametrize("cross", ["first", "last"])
def test_cross_attention_that_some_forwards_lack_is_never_taken_for_self_attention(cross):
    model, x, context = Sometimes(), inputs(), inputs() + 1
    names = {"first": ["layers.0#2", "layers.1#2"], "last": ["layers.0", "layers.1"]}
    with capture(model) as captures:
        for each in (cross, "no", cross, "no"):
            model(x, context, (each,))
            assert list(captures) == names.get(each, ["layers.0", "layers.1"])


@pytest.mark.parametrize("cross", ["first", "last"])
def test_a_call_of_a_kind_that_was_not_seen_is_refused_and_seen_the_next_time(cross):
    """It was taken for what the first forward's call of its number was."""
    model, x, context = Sometimes(), inputs(), inputs() + 1
    with capture(model) as captures:
        model(x, context, ("no",))
        with pytest.raises(
            UserError, match=r"layers\.0(#2)?: this call is none of those .* so what it is .* not known"
        ):
            model(x, context, (cross,))
        for each in (cross, "no", cross):
            model(x, context, (each,))
            assert len(captures) == 2


def test_hooks_that_give_a_layer_more_are_no_other_kind_of_call():
    model, x = Sometimes(), inputs()
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: (args, {"context": x + 1}), with_kwargs=True)
    with capture(model, layers=["*"]) as captures:
        for _ in range(2):
            model(x, x + 1, ("no",))
            assert len(captures) == 2


class OneByOne(Layer):
    """Takes its samples one at a time, each of its own length."""

    def forward(self, x, lengths):
        q, k, v = split(self.qkv(x))
        rows = [
            F.scaled_dot_product_attention(*(y[i : i + 1, :, :n] for y in (q, k, v))) for i, n in enumerate(lengths)
        ]
        return self.proj(merged(torch.cat([F.pad(y, (0, 0, 0, x.shape[1] - y.shape[2])) for y in rows])))


@pytest.mark.parametrize(("first", "then"), [((5, 3), (5, 3, 4)), ((5, 5), (5, 3)), ((5, 3, 4), (5, 3))])
def test_samples_that_come_one_at_a_time_may_be_more_or_of_other_lengths(first, then):
    model = OneByOne()
    with capture(model) as captures:
        for lengths in (first, then, first):
            model(torch.randn(len(lengths), 5, E), lengths)
            assert [each.shape[2] for each in captures.values()] == ([5] if set(lengths) == {5} else [*lengths])


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x, keep):
        for i in keep:
            x = x + self.layers[i](x)
        return x


def test_layers_dropped_from_a_compiled_model_are_ordered_as_a_whole_forward_showed():
    torch._dynamo.reset()
    model = Dropped()
    compiled, x = torch.compile(model, backend="eager"), inputs()
    with capture(compiled) as captures:
        model.eval()
        compiled(x, [0, 1, 2, 3])
        model.train()
        for keep in ([0, 1], [0, 2], [1], [3], [0, 1, 3], [2, 3], [0, 1, 2, 3]):
            compiled(x, keep)
            assert list(captures) == [f"layers.{i}" for i in keep]


class Attend(nn.Module):
    """Calls attention for the layer that holds it."""

    def forward(self, q, k, v):
        return merged(F.scaled_dot_product_attention(q, k, v))


class OuterAttention(Dual):
    def __init__(self, by_child: bool = True):
        super().__init__()
        self.attend = Attend() if by_child else None

    def forward(self, x, context):
        (q, _, _), (_, k, v) = split(self.qkv(x)), split(self.qkv(context))
        return self.proj(self.attend(q, k, v) if self.attend else merged(F.scaled_dot_product_attention(q, k, v)))


def of_context(*layers):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x, context):
            for layer in self.layers:
                x = x + layer(x, context)
            return x

    return Model()


def test_a_layer_whose_child_called_attention_has_not_run_without():
    """It was said to have, and a search for another backend was advised."""
    message, model = r"Model: No self-attention .* has to be named: layers=layers\.0\.attend", OuterAttention
    with pytest.raises(UserError, match=message), capture(of_context(model(), model())) as captures:
        captures.model(inputs(), inputs() + 1)
    with capture(of_context(OuterAttention(False), OuterAttention()), layers=["*"]) as captures:
        captures.model(inputs(), inputs() + 1)
        assert list(captures) == ["layers.0", "layers.1.attend"] and "ran without" not in str(captures.report())


FULL = [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("forwards", "from_"),
    [
        ([[0, 2, 3]] * 2 + [FULL] * 3, 3),
        ([[0, 2, 3]] * 4 + [FULL, [0, 2, 3], [0, 2, 3], FULL, FULL], 7),  # it is waited for
        ([[0]] * 2 + [[0, 1]] * 2 + [[0, 1, 2]] * 2 + [FULL] * 2, 7),  # depth that grows
        ([[0, 2, 3]] * 2 + [FULL, [0, 1], [0, 2, 3], FULL, FULL], 3),  # each has shown what the other had not
    ],
)
def test_a_layer_that_was_skipped_in_the_first_forwards_is_recorded_once_it_runs(forwards, from_, caplog):
    """It never was again, and was said not to have run."""
    model, x = Dropped(), inputs()
    for i, keep in enumerate(forwards):
        with capture(model) as captures:
            model(x, keep)
            late = i >= from_ or keep in forwards[:2]
            assert list(captures) == [f"layers.{j}" for j in keep] or not late
            assert not late or set(captures.skipped) == {f"layers.{j}" for j in FULL if j not in keep}
    assert [each for each in caplog.messages if "Dropped: layers." in each and "looked at anew" in each]
    assert type(model.layers[1]) is Layer


def test_what_each_of_the_first_forwards_has_shown_is_kept(caplog):
    """Layers dropped at random: one of the forwards counted alone."""
    model, x = Dropped(), inputs()
    for i, keep in enumerate(([0, 1], [0, 3], [0, 2], [2, 3], [1, 2], FULL)):
        with capture(model) as captures:
            model(x, keep)
        assert list(captures) == [f"layers.{j}" for j in keep], i
        assert set(captures.skipped) >= {f"layers.{j}" for j in FULL if j not in keep}
    assert [line.layer for line in captures.report().lines] == [f"layers.{j}" for j in FULL]
    assert not [each for each in caplog.messages if "looked at anew" in each]


def test_a_layer_that_another_kind_of_forward_had_shown_was_not_skipped():
    model, x = Dropped(), inputs()
    with capture(model) as captures:
        model.eval()(x, FULL)
        for keep in ([0, 2, 3], [0, 2, 3], FULL):
            model.train()(x, keep)
            assert list(captures) == [f"layers.{j}" for j in keep]
            assert captures.skipped == [f"layers.{j}" for j in FULL if j not in keep]


def test_a_layer_of_a_compiled_model_that_was_skipped_at_first_is_recorded_once_it_runs():
    torch._dynamo.reset()
    model, x = Dropped(), inputs()
    compiled = torch.compile(model, backend="eager")
    with capture(compiled) as captures:
        for keep in ([0, 2, 3], [0, 2, 3], [0, 2, 3], FULL, FULL, FULL, [0, 2, 3], FULL):
            compiled(x, keep)
        assert list(captures) == [f"layers.{j}" for j in FULL] and not captures.skipped


def test_blocks_that_are_added_while_a_model_is_recorded_are_layers():
    """Of a student that grew, the last one had been none, and the second of three had been taken for the last."""
    model = nn.Sequential(*(Dual() for _ in range(2)))
    with torch.no_grad(), capture(model) as captures:
        for layers in (2, 2, 3):
            if layers == 3:
                model.append(Dual())
            model(inputs())
            assert list(captures) == [str(i) for i in range(layers)]


def test_a_context_that_is_the_tokens_themselves_at_first_is_another_s_later():
    """A reference that was the image itself had made self-attention of it for good."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Dual()

        def forward(self, x, context):
            return self.layer(x, context) + self.layer(x)

    model, x = Net(), inputs()
    with torch.no_grad(), capture(model) as captures:
        for context, names in ((x, ["layer", "layer#2"]), (x + 1, ["layer#2"]), (x, ["layer", "layer#2"])):
            model(x, context)
            assert list(captures) == names


def test_names_that_are_ever_others_choose_nothing(monkeypatch):
    """As those of samples: each forward had been looked at, and what it showed kept."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Dual()

        def forward(self, x, name):
            return self.layer(x)

    begun, start = [], Survey.start
    monkeypatch.setattr(Survey, "start", lambda *given: (begun.append(1), start(*given)))
    model = Named()
    with torch.no_grad(), capture(model) as captures:
        for number in range(40):
            model(inputs(), f"sample_{number}")
            assert list(captures) == ["layer"]
    assert len(begun) == MODES + 1
