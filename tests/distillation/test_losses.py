"""Distillation terms, layer maps, and the plug-in use of SHD."""

import dataclasses
import math

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from small_steps import SMALL, batch_of

from dit_shd import SHD, capture
from dit_shd.attention.capture import Capture
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation.initialise import Initialisation
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses import Layer, LayerLoss, Loss, Reads, Term
from dit_shd.distillation.losses.output import Output
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig


class Says(torch.nn.Module):
    """A model that always gives one output [b,2c,y,x]."""

    def __init__(self, output):
        super().__init__()
        self.output, self.config = output, FrozenDict({"num_classes": 3})
        self.parameter = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_t, t, class_labels, return_dict):
        return (self.output,)


def term_of(loss, student, teacher, t=(1, 500)):
    """The term of what two models give."""
    task, batch = Diffusion(), batch_of(torch.randn(len(student), 1, 4, 4), t)
    return loss.term(*(task.predict(Says(output), batch) for output in (student, teacher)), batch)


def test_output_distillation_is_the_noises_mean_squared_error():
    student, teacher = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 4, 4)
    term = term_of(Output(), student, teacher)
    want = [(student[i, 0] - teacher[i, 0]).square().mean() for i in range(2)]
    torch.testing.assert_close(term.value, torch.stack(want))
    assert term_of(Output(), teacher, teacher).value.abs().max() == 0


def test_variance_part_is_a_kl_that_trains_the_variance():
    teacher = torch.randn(2, 2, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = Output(variance=True)
    assert term_of(loss, student, teacher).value.abs().max() < 1e-6
    moved = teacher + torch.tensor([0.0, 0.5])[None, :, None, None]
    moved.requires_grad_()
    value = term_of(loss, moved, teacher).value.sum()
    assert value > 0
    (grad,) = torch.autograd.grad(value, moved)
    assert grad[:, 1].abs().min() > 0
    assert grad[:, 0].abs().max() < 1e-6  # equal noise: only the variance moves
    with pytest.raises(UserError, match="must predict a variance"):
        term_of(loss, student[:, :1], teacher[:, :1])


def test_variance_part_by_hand():
    """Equal means: KL is (r - 1 - log r) / 2 nats with r the ratio of variances, over ln 2."""
    schedule, t = Schedule.linear(), 1
    noise, v_t, v_s = torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 4, 4), -0.2)
    low, high = schedule.posterior_log_variance[t], math.log(schedule.betas[t])
    gap = (0.65 - 0.4) * (high - low)
    want = (math.exp(gap) - 1 - gap) / 2 / math.log(2)
    term = term_of(Output(variance=True), torch.cat([noise, v_s], 1), torch.cat([noise, v_t], 1), [t])
    assert term.logs["variance"].item() == pytest.approx(want, rel=1e-3)


def test_shd_as_a_plug_in_teaches_the_student():
    torch.manual_seed(0)
    teacher = MDTv2(**SMALL, num_attention_heads=4).eval().requires_grad_(False)
    student = MDTv2(**SMALL, num_attention_heads=2)
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    loss_function, optimizer = SHD(weight=1.0), torch.optim.AdamW(student.parameters(), lr=3e-3)
    history = []
    for _ in range(40):
        x, t, y = torch.randn(16, 1, 8, 8), torch.randint(0, 1000, (16,)), torch.randint(0, 3, (16,))
        with capture(teacher) as theirs, capture(student) as ours:
            teacher(x, t, y)
            student(x, t, y)
        loss = loss_function(theirs, ours)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert all(p.grad is None for p in teacher.parameters())
    assert sum(history[-5:]) / 5 < 0.2 * history[0]


def test_weight_scales_and_layers_add_up():
    torch.manual_seed(0)
    teacher, student = MDTv2(**SMALL, num_attention_heads=4), MDTv2(**SMALL, num_attention_heads=2)
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([3, 800]), torch.tensor([0, 1]))
    with capture(teacher) as t, capture(student) as s:
        teacher(*inputs)
        student(*inputs)
    whole = SHD(weight=2.0)(t, s)
    parts = [SHD(weight=2.0, layers={name: name})(t, s) for name in s]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_proportional_map_is_the_papers():
    teacher, student = [f"b.{i}" for i in range(48)], [f"b.{i}" for i in range(24)]
    mapped = layer_map(teacher, student, "proportional")
    assert mapped["b.3"] == "b.7"  # the 4th takes the 8th
    assert mapped["b.23"] == "b.47"


def test_sections_keep_to_themselves_and_round_up():
    def names(a, b, c):
        return [
            f"{s}.{i}.attn" for s, n in (("en_inblocks", a), ("en_outblocks", b), ("de_blocks", c)) for i in range(n)
        ]

    mapped = layer_map(names(12, 12, 4), names(3, 3, 6), "sections")
    assert [mapped[f"en_inblocks.{i}.attn"] for i in range(3)] == [f"en_inblocks.{i}.attn" for i in (3, 7, 11)]
    assert [mapped[f"de_blocks.{i}.attn"] for i in range(6)] == [f"de_blocks.{i}.attn" for i in (0, 1, 1, 2, 3, 3)]


def test_text_queries_learn_from_their_layers_text_queries_where_it_has_any():
    teacher = ["b.0", "b.0:text", "b.1", "b.1:text", "b.2", "b.2:text", "b.3"]
    student = ["b.0", "b.0:text", "b.1", "b.1:text"]
    assert layer_map(teacher, student, "proportional") == {"b.0": "b.1", "b.0:text": "b.1:text", "b.1": "b.3"}


def test_layers_that_run_several_times_run_as_often_on_both_sides():
    three, two = (["a", *(f"a#{i}" for i in range(2, n + 1))] for n in (3, 2))
    assert layer_map(three, three) == {name: name for name in three}
    assert layer_map(["b.0", "b.1", "b.2"], three) == dict(zip(three, ["b.0", "b.1", "b.2"]))
    with pytest.raises(UserError, match="of the teacher runs 3 times in one forward, one of the student 2 times"):
        layer_map(three, two)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"x": "a.0"}, "student has no layer 'x'"),
        ({"b.0": "y"}, "teacher has no layer 'y'"),
        ("sections", r"no section 'b\.\*'"),
        ("nearest", "wanted sections, proportional"),
    ],
)
def test_layer_maps_that_make_no_sense(how, message):
    with pytest.raises(UserError, match=message):
        layer_map(["a.0"], ["a.0", "b.0"], how)


def test_models_of_two_families_are_taken_whole():
    """MDT's sections and DiT's one have nothing in common: depth decides."""
    mdt, dit = ["in.0", "in.1", "out.0", "out.1"], ["blocks.0", "blocks.1"]
    assert layer_map(mdt, dit) == {"blocks.0": "in.1", "blocks.1": "out.1"}
    assert layer_map(dit, mdt) == {"in.0": "blocks.0", "in.1": "blocks.0", "out.0": "blocks.1", "out.1": "blocks.1"}


def test_an_explicit_plan_is_used():
    r = torch.Generator().manual_seed(0)
    t = Capture(*(torch.randn(1, 4, 5, 3, generator=r) for _ in range(3)), 1.0, out=torch.randn(4, 3, 6, generator=r))
    s = Capture(*(torch.randn(1, 2, 5, 3, generator=r) for _ in range(3)), 1.0)
    usual = SHD()({"a.0": t}, {"a.0": s})
    other = SHD(plan=[[0, 3], [1, 2]])({"a.0": t}, {"a.0": s})
    assert usual != other
    with pytest.raises(UserError, match="contiguous, matched or a list"):
        SHD(plan="neighbours")


def captures_of_both(seed=0, n=12, h=4, g=2, layers=2):
    r = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=r, dtype=torch.float64)

    teacher = {
        f"b.{i}": Capture(draw(2, h, n, 3), draw(2, h, n, 3), draw(2, h, n, 3), 1.0, out=draw(h, 3, 6))
        for i in range(layers)
    }
    student = {
        f"b.{i}": Capture(draw(2, g, n, 3).requires_grad_(), draw(2, g, n, 3).requires_grad_(), draw(2, g, n, 3), 1.0)
        for i in range(layers)
    }
    return teacher, student


def test_some_rows_estimate_the_loss_and_its_gradient_without_bias():
    teacher, student = captures_of_both()
    whole, some = SHD(method="constant"), SHD(method="constant", rows=0.25)
    torch.manual_seed(0)
    leaf = student["b.0"].query
    losses = [some(teacher, student) for _ in range(400)]
    grads = [torch.autograd.grad(loss, leaf)[0] for loss in losses]
    exact = whole(teacher, student)
    draws = torch.stack(losses).detach()
    assert draws.std() > 0
    assert (draws.mean() - exact).abs() < 4 * draws.std() / 20
    mean, want = torch.stack(grads).mean(0), torch.autograd.grad(exact, leaf)[0]
    assert (mean - want).norm() / want.norm() < 0.15


def test_rows_in_training_are_a_function_of_the_batch():
    teacher, student = captures_of_both()
    loss = SHD(rows=0.5)

    def value(index, step):
        batch = batch_of(torch.zeros(1, 1, 2, 2), [5], [0], step, index)
        pairs = loss.begin(list(teacher), {name: Layer(name, found) for name, found in student.items()}, batch)
        for name, found in teacher.items():
            pairs(Layer(name, found))
        return pairs.term().value

    assert torch.equal(value(3, 5), value(3, 5))
    assert not torch.equal(value(3, 5), value(4, 5))
    assert not torch.equal(value(3, 5), value(3, 6))


def test_a_matched_plan_is_found_saved_and_read_back():
    teacher, student = captures_of_both(h=4)
    for capture_ in teacher.values():  # heads 0 and 2, 1 and 3 look alike
        capture_.query[:, 2:] = capture_.query[:, :2]
        capture_.key[:, 2:] = capture_.key[:, :2] * 1.05
    loss = SHD(plan="matched")
    assert loss.calibration == 4
    with pytest.raises(UserError, match=r"matched plan of b\.0 is not known"):
        loss(teacher, student)
    loss.calibrate(teacher, student)
    found = loss.calibrated()
    assert found == {"plans": {"b.0": [[0, 2], [1, 3]], "b.1": [[0, 2], [1, 3]]}}
    again = SHD(plan="matched")
    again.restore(found)
    explicit = SHD(plan={"b.0": [[0, 2], [1, 3]], "b.1": [[0, 2], [1, 3]]})
    torch.testing.assert_close(again(teacher, student), explicit(teacher, student))
    assert loss(teacher, student) != SHD()(teacher, student)
    with pytest.raises(UserError, match="holds no plans"):
        again.restore({})
    with pytest.raises(UserError, match=r"names no groups for b\.1"):
        SHD(plan={"b.0": [[0, 1], [2, 3]]})(teacher, student)


def test_the_teacher_is_consumed_layer_by_layer():
    """From the second call on nothing of the teacher is held, and the loss is the same."""
    import weakref

    from dit_shd.attention.recording.attach import capture as record

    torch.manual_seed(0)
    teacher, student = (
        MDTv2(**SMALL, num_attention_heads=4).eval().requires_grad_(False),
        MDTv2(**SMALL, num_attention_heads=2),
    )
    for p in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    distiller = Distiller(Diffusion(), student, [SHD(), Output()])
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    seen, alive = [], []

    def watch(name, found):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(found.query))

    results = []
    for _ in range(2):
        seen.clear(), alive.clear(), student.zero_grad()
        with record(teacher, sink=watch):
            total, logs = distiller(batch, teacher)
        total.backward()
        results.append((total.detach(), logs["shd"], student.de_blocks[0].attn.qkv.weight.grad.clone()))
        held = max(alive)
        assert held == (3 if len(results) == 1 else 0), held
    for first, second in zip(*results):
        assert torch.equal(first, second)


def test_a_teacher_that_goes_bad_is_named():
    teacher, student = captures_of_both()
    teacher["b.1"].value[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"b\.1 of the student, b\.1 of the teacher: .*finite"):
        SHD()(teacher, student)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rows=0.0), "share above 0"),
        (dict(rows=1.5), "at most 1"),
        (dict(calibration=0), "1 batch or more"),
        (dict(method="alpha"), "method: wanted one of pairwise"),
        (dict(backend="cuda"), "backend: wanted one of auto"),
    ],
)
def test_options_of_shd_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        SHD(**options)


def test_without_gradients_none_are_computed():
    teacher, student = captures_of_both()
    with torch.no_grad():
        value = SHD()(teacher, student)
    assert not value.requires_grad
    torch.testing.assert_close(value, SHD()(teacher, student).detach())
    with torch.inference_mode():
        torch.testing.assert_close(SHD()(*captures_of_both()), value)


class Smooth(Loss):
    """Of the student alone."""

    reads = frozenset()

    def term(self, student, teacher, batch):
        return Term(student.prediction.square().flatten(1).mean(1))


@pytest.mark.parametrize(
    ("weight", "steps", "heaviest"),
    [
        (0.0, 9, 0.0),
        (2.0, 1, 2.0),
        ({0: 0.0, 10: 2.0}, 6, 1.0),
        ({5: 0.0, 6: 3.0, 7: 0.0}, 9, 3.0),
        ({5: 0.0, 9: 1}, 6, 0.0),
    ],
)
def test_the_heaviest_weight_of_a_run(weight, steps, heaviest):
    loss = Smooth(weight)
    assert loss.heaviest(steps) == max(loss.weight_at(step) for step in range(steps)) == heaviest


def test_a_teacher_must_be_of_use(values, caplog):
    """With all weights 0 it is run for the logs, which is said."""
    config = make(TrainConfig, values)
    checks.teaching(config, [Smooth(), Output()])
    checks.teaching(dataclasses.replace(config, losses=[], initialisation=Initialisation(weights="teacher")), [])
    checks.teaching(dataclasses.replace(config, losses=[], teacher=None), [])
    assert not caplog.records
    with pytest.raises(UserError, match="no loss reads it"):
        checks.teaching(config, [Smooth()])
    checks.teaching(config, [Output(0.0), SHD(weight={10**6: 0.0, 2 * 10**6: 1.0})])
    assert "the weights are 0 in all 4 steps (output, shd), so nothing is learned from the teacher" in caplog.text


# Losses of hidden states


class Hints(LayerLoss):
    """The student's blocks give what the teacher's give, up to a linear map (FitNets, arXiv 1412.6550)."""

    reads = frozenset({Reads.HIDDEN})

    def __init__(self, layers="sections", passes=("plain",)):
        super().__init__(1.0, passes, layers)
        torch.manual_seed(2)
        self.projector = torch.nn.Linear(8, 16)

    def pair(self, student, teacher, batch):
        return Term((self.projector(student.hidden) - teacher.hidden).square().flatten(1).mean(1))


DEEP = {**SMALL, "num_layers": 8, "decode_layer": 4, "num_attention_heads": 4}
LEARNS_FROM = {
    "en_inblocks.0": "en_inblocks.1",
    "en_outblocks.0": "en_outblocks.1",
    "de_blocks.0": "de_blocks.1",
    "de_blocks.1": "de_blocks.3",
}
"""Sections, by hand."""
RUNS = [
    f"{section}.{i}"
    for section, count in (("en_inblocks", 2), ("en_outblocks", 2), ("de_blocks", 4))
    for i in range(count)
]
"""The teacher's blocks as a plain pass runs them."""


@pytest.fixture
def pair():
    """A teacher of twice the depth and width, whose gradient nobody has switched off, and a student."""
    torch.manual_seed(0)
    teacher, student = MDTv2(**DEEP).eval(), MDTv2(**SMALL, num_attention_heads=2)
    for p in [*teacher.parameters(), *student.parameters()]:
        torch.nn.init.normal_(p, std=0.2)
    return teacher, student


def hidden_batch():
    torch.manual_seed(1)
    return batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])


def hidden_by_hand(model, batch):
    """What each block gives, by hooks of our own."""
    found = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, name=name: found.setdefault(name, output))
        for name, module in model.named_modules()
        if name.rpartition(".")[0] in ("en_inblocks", "en_outblocks", "de_blocks")
    ]
    model(batch.x_t, batch.t, batch.labels, return_dict=False)
    for handle in handles:
        handle.remove()
    return found


def test_hidden_states_are_taught_pair_by_pair(pair):
    """Value and gradients are those of an independent computation, in the first call and in later ones."""
    teacher, student = pair
    loss, batch = Hints(), hidden_batch()
    distiller = Distiller(Diffusion(), student, [loss])
    ours, theirs = hidden_by_hand(student, batch), hidden_by_hand(teacher, batch)
    errors = [
        (ours[one] @ loss.projector.weight.T + loss.projector.bias - theirs[other]).square().mean()
        for one, other in LEARNS_FROM.items()
    ]
    want = torch.stack(errors).sum()
    learning = {name: p for name, p in distiller.named_parameters() if "side" not in name}
    gradients = torch.autograd.grad(want, list(learning.values()), allow_unused=True)
    reached = {name: grad for name, grad in zip(learning, gradients) if grad is not None}
    assert {"losses.0.projector.weight", "student.en_inblocks.0.mlp.fc1.weight", "student.pos_embed"} < reached.keys()
    for _ in range(3):
        terms, logs = distiller.terms(batch, teacher)
        torch.testing.assert_close(logs["test_losses"], want.detach())
        found = torch.autograd.grad(terms["test_losses"], list(learning.values()), allow_unused=True)
        for name, gradient in zip(learning, found):
            assert (gradient is None) == (name not in reached), name
            if gradient is not None:
                torch.testing.assert_close(gradient, reached[name], rtol=1e-4, atol=1e-6)
    assert not any(module._forward_hooks for model in pair for module in model.modules())


def test_hidden_states_are_settled_as_the_teacher_runs(pair):
    """Once its order is known: each pair right after its teacher's block, and no output of a block is held."""
    import weakref

    teacher, student = pair
    events, alive, outputs = [], [], []

    class Told(Hints):
        def pair(self, student, teacher, batch):
            assert (student.attention, teacher.attention) == (None, None)
            assert not teacher.hidden.requires_grad
            events.append((student.name, teacher.name))
            return super().pair(student, teacher, batch)

    def ran(name, output):
        events.append(name)
        if name.startswith("de_blocks"):  # the others are the model's own skips
            alive.append(sum(ref() is not None for ref in outputs))
            outputs.append(weakref.ref(output))

    for name in RUNS:
        teacher.get_submodule(name).register_forward_hook(lambda *given, name=name: ran(name, given[-1]))
    distiller = Distiller(Diffusion(), student, [Told(), Output()])
    pairs = list(LEARNS_FROM.items())
    for want, held in (
        ([*RUNS, *pairs], 3),
        ([x for name in RUNS for x in (name, *[p for p in pairs if p[1] == name])], 1),
    ):
        events.clear(), alive.clear(), outputs.clear()
        distiller(hidden_batch(), teacher)[0].backward()
        assert events == want
        assert max(alive) == held  # the one before is the block's input
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_stops_after_the_last_hidden_state_that_is_needed(pair):
    teacher, student = pair
    batch, ran = hidden_batch(), []
    for name in RUNS:
        teacher.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    before = Diffusion().predict(teacher, batch).prediction
    distiller = Distiller(Diffusion(), student, [Hints({"en_inblocks.0": "en_outblocks.1"})])
    found = []
    for want in (RUNS, RUNS[:4]):
        ran.clear()
        found.append(distiller(batch, teacher)[1]["test_losses"])
        assert ran == want
    assert torch.equal(*found)
    assert torch.equal(Diffusion().predict(teacher, batch).prediction, before)


def test_losses_of_attention_of_hidden_states_and_of_outputs_together(pair):
    """Each term is what it is alone, streamed or not, and the total is their sum."""
    teacher, student = pair
    batch, task = hidden_batch(), Diffusion()
    alone = [Distiller(task, student, [loss])(batch, teacher)[1] for loss in (Hints(), SHD(), Output())]
    together = Distiller(task, student, [Hints(), SHD(weight=0.5), Output()])
    for _ in range(2):
        total, logs = together(batch, teacher)
        for name, single in zip(("test_losses", "shd", "output"), alone):
            assert torch.equal(logs[name], single[name])
        parts = (logs["noise"], logs["variational"], logs["test_losses"], 0.5 * logs["shd"], logs["output"])
        torch.testing.assert_close(total.detach(), sum(parts))


def test_recomputed_blocks_give_the_same_hidden_states(pair):
    teacher, student = pair
    found = []
    for recompute in (False, True):
        if recompute:
            student.enable_gradient_checkpointing()
        distiller = Distiller(Diffusion(), student.train(), [Hints()])
        for _ in range(2):
            student.zero_grad()
            total, _ = distiller(hidden_batch(), teacher)
            total.backward()
        found.append((total.detach(), student.en_inblocks[0].mlp.fc1.weight.grad.clone()))
    for plain, again in zip(*found):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-7)


def test_a_model_without_blocks_has_no_hidden_states():
    distiller = Distiller(Diffusion(), Says(torch.zeros(2, 2, 8, 8)), [Hints()])
    with pytest.raises(UserError, match="Says: has no list of blocks whose outputs could be read"):
        distiller(hidden_batch(), Says(torch.zeros(2, 2, 8, 8)))


@pytest.mark.parametrize(
    ("reads", "found"),
    [((Reads.ATTENTION, Reads.HIDDEN), "attention, hidden"), ((Reads.OUTPUT,), "output"), ((), "nothing")],
)
def test_a_loss_of_layers_reads_one_kind_of_them(reads, found):
    """Blocks and attention layers have other names, so no map pairs both at once."""

    class Both(Hints):
        pass

    Both.reads = frozenset(reads)
    with pytest.raises(
        UserError, match=f"Both: reads: wanted one of attention, attention output and hidden, found {found}$"
    ):
        Both()
