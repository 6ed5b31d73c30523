"""SHD as a plug-in: plans, weights, rows, and the teacher consumed layer by layer."""

import oracle
import pytest
import torch
from random_captures import random_capture
from small_steps import SMALL, batch_of

from dit_shd import SHD, capture
from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Layer
from dit_shd.distillation.losses.output import Output
from dit_shd.models.families.mdt import MDTv2
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.tasks.diffusion import Diffusion


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


def by_the_oracle(teacher, student, temperature=1.0, measure="kl", weights=None):
    """Sum over layers, mean over samples, naively; weights [b,g,h] of each layer, the paper's alpha if not given."""
    total = 0.0
    for name, t in teacher.items():
        s, at = student[name], {"temperature": temperature}
        w = None if weights is None else weights[name]
        if w is None:
            values = oracle.head_outputs(t.value, t.out)
            w, _ = oracle.merge_progressively(oracle.maps(t.query, t.key, t.scale), values, ((0, 1), (2, 3)))
        maps = [oracle.maps(side.query.detach(), side.key.detach(), side.scale, **at) for side in (t, s)]
        total = total + oracle.divergence(*maps, w, measure).mean()
    return total


@pytest.mark.parametrize(("weight", "beta"), [(2.0, 2.0), (0.5, 0.5), ({0: 1.0, 10: 3.5}, 2.0)])
@pytest.mark.parametrize("measure", ["kl", "mse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_beta_times_the_divergence_of_tempered_maps(temperature, measure, weight, beta):
    teacher, student = captures_of_both()
    loss = SHD(weight=weight, temperature=temperature, measure=measure)(teacher, student, 4)
    torch.testing.assert_close(loss, beta * by_the_oracle(teacher, student, temperature, measure))


def test_the_method_hard_draws_by_its_seed():
    teacher, student = captures_of_both()
    losses = []
    for seed in (0, 3):
        weights = {name: squeeze(t, 2, method="hard", seed=seed).w[..., 0].double() for name, t in teacher.items()}
        for w in weights.values():
            assert w.sum(2).unique().tolist() == [1.0] and sorted(w.unique().tolist()) == [0.0, 1.0]
        wanted = by_the_oracle(teacher, student, weights={k: w.expand(2, -1, -1) for k, w in weights.items()})
        losses.append(SHD(weight=1.0, method="hard", seed=seed)(teacher, student))
        torch.testing.assert_close(losses[-1], wanted)
    assert abs(losses[0] - losses[1]) > 1e-3


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

    def value(index, step, seed=0):
        return run(index, step, seed).value

    def layers(index, step):
        return {name: log for name, log in run(index, step, 0).logs.items() if name.startswith("kl/")}

    def run(index, step, seed):
        loss = SHD(rows=0.5, seed=seed)
        batch = batch_of(torch.zeros(1, 1, 2, 2), [5], [0], step, index)
        pairs = loss.begin(list(teacher), {name: Layer(name, found) for name, found in student.items()}, batch)
        for name, found in teacher.items():
            pairs(Layer(name, found))
        return pairs.term()

    assert torch.equal(value(3, 5), value(3, 5))
    assert not torch.equal(value(3, 5), value(4, 5))
    assert not torch.equal(value(3, 5), value(3, 6))
    assert not torch.equal(value(3, 5), value(3, 5, seed=1))
    for of in (teacher, student):
        of["b.1"] = of["b.0"]
    one, other = layers(3, 5).values()
    assert one != other, "each layer has rows of its own"


def test_a_matched_plan_is_found_saved_and_read_back():
    assert SHD().calibration == 0 and SHD(plan="matched", calibration=3).calibration == 3
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
    """Nothing of the teacher is held, also in the first call, before which another forward shows their order."""
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
        assert max(alive) == 0
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


def test_padding_does_not_count_in_a_matched_plan():
    """Of the real rows heads 0 and 2 are alike, of the padding 0 and 1."""
    teacher, student = captures_of_both(h=4)
    b, _, n, _ = next(iter(teacher.values())).shape
    real = n // 4
    weight = (torch.arange(n) < real).double().expand(b, n)
    for layer in teacher.values():
        layer.key[:] = layer.key[:, :1]
        layer.query[:, 2:, :real] = layer.query[:, :2, :real]
        layer.query[:, [1, 3], real:] = layer.query[:, [0, 2], real:]
    loss, by_all_rows = SHD(plan="matched"), SHD(plan="matched")
    loss.calibrate(teacher, student, row_weight=weight)
    by_all_rows.calibrate(teacher, student)
    assert loss.calibrated()["plans"] == {layer: [[0, 2], [1, 3]] for layer in teacher}
    assert by_all_rows.calibrated()["plans"] == {layer: [[0, 1], [2, 3]] for layer in teacher}
    with pytest.raises(UserError, match="row_weight: wanted"):
        loss.calibrate(teacher, student, row_weight=weight[:, 1:])


@pytest.mark.parametrize("layers", [["b.0"], None, 0])
def test_layers_that_are_no_map_are_refused(layers):
    with pytest.raises(UserError, match=r"SHD: layers: wanted sections, proportional, last or \{student layer"):
        SHD(layers=layers)


def test_a_change_of_any_row_or_column_of_w_o_is_noticed():
    """Heads together wider than the model: the numbers compared had been of the first columns of rows alone."""
    projections = SHD().squeezer.projections
    out = torch.randn(4, 8, 16)
    groups = ((0, 1), (2, 3))
    before = projections.grams(out, groups).clone()
    out.data[3, :, 8:] = 0
    assert not torch.equal(projections.grams(out, groups), before)


@pytest.mark.parametrize("method", ["pairwise", "per_query"])
@pytest.mark.parametrize(("one", "other"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_models_of_two_precisions(method, one, other):
    """A gradient check with one of the models in double was a traceback."""

    def loss(of_teacher, of_student):
        teacher, student = random_capture(h=4, bias=False), random_capture(h=2, bias=False, seed=1)
        teacher, student = (
            Capture(*(x.to(dtype) for x in (c.query, c.key, c.value)), c.scale, out=c.out.to(dtype))
            for c, dtype in ((teacher, of_teacher), (student, of_student))
        )
        query = student.query.requires_grad_()
        value = SHD(method=method)({"a": teacher}, {"a": student})
        return value.double(), torch.autograd.grad(value, query)[0].double()

    torch.testing.assert_close(loss(one, other), loss(torch.float64, torch.float64), rtol=1e-4, atol=1e-6)
