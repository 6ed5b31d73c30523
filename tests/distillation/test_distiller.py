"""Several teachers by name, losses over all layers, and models that a loss holds for itself."""

from dataclasses import replace

import pytest
import torch
from small_distillers import TASK, pixart

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.calibration import calibrate
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES, Frozen, LayerLoss, Loss, Reads, Term
from dit_shd.distillation.losses.output import Output
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.tasks.text_to_image import TextToImage


class Hints(LayerLoss):
    """The student's blocks give what the teacher's give, up to a linear map."""

    reads = frozenset({Reads.HIDDEN})

    def __init__(self, width=16):
        super().__init__()
        self.projector = torch.nn.Linear(8, width)

    def pair(self, student, teacher, batch):
        return Term((self.projector(student.hidden) - teacher.hidden).square().flatten(1).mean(1))


def of(loss, teacher):
    loss.teacher = teacher
    return loss


def gradients(distiller, batch, teachers):
    distiller.zero_grad()
    total, logs = distiller(batch, teachers)
    total.backward()
    return logs, {name: p.grad.clone() for name, p in distiller.student.named_parameters() if p.grad is not None}


def counting(teachers):
    """How often each teacher is asked, in a list that goes on."""
    asked = []
    for name, teacher in teachers.items():
        teacher.register_forward_pre_hook(lambda *_, name=name: asked.append(name))
    return asked


def test_each_loss_learns_from_its_teacher(student, teachers, batch):
    """Terms and gradients are those of a distiller for each teacher, in the first call and when layers stream."""
    losses = [SHD(weight=0.5), of(SHD(weight=0.5), "deep"), of(Output(), "deep"), of(Hints(), "wide")]
    both = Distiller(TASK, student, losses)
    wide, deep = Distiller(TASK, student, [losses[0], losses[3]]), Distiller(TASK, student, losses[1:3])
    base = gradients(Distiller(TASK, student), batch, None)[1]
    for _ in range(2):
        logs, found = gradients(both, batch, teachers)
        one, from_wide = gradients(wide, batch, {"wide": teachers["wide"]})
        other, from_deep = gradients(deep, batch, {"deep": teachers["deep"]})
        assert torch.equal(logs["shd"], one["shd"]) and torch.equal(logs["test_distiller"], one["test_distiller"])
        assert torch.equal(logs["shd#2"], other["shd"]) and torch.equal(logs["output"], other["output"])
        assert logs["shd"] != logs["shd#2"]
        assert list(logs)[:2] == ["noise", "variational"]
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, from_wide[name] + from_deep[name] - base[name], rtol=1e-3, atol=1e-6)


def test_a_teacher_runs_once_in_a_pass_that_reads_it(student, teachers, batch):
    asked = counting(teachers)
    losses = [SHD(), Output(passes=("plain",)), of(SHD(), "deep"), of(Output(passes=("masked",)), "deep")]
    distiller = Distiller(TASK, student, losses)
    distiller(batch, teachers)
    assert sorted(asked) == ["deep", "deep", "wide", "wide"], "first for the order of its layers"
    asked.clear()
    distiller(batch, teachers)
    assert sorted(asked) == ["deep", "wide"]
    asked.clear()
    (masked,) = [b for b in TASK.example(student, 2, torch.device("cpu")) if b.pass_name == "masked"]
    distiller(masked, teachers)
    assert asked == ["deep"]


def test_a_teacher_stops_by_itself(student, teachers, batch):
    """The one whose output nobody reads ends after its last layer that is needed, the other one runs to its end."""
    ended = []
    for name, teacher in teachers.items():
        teacher.final_layer.register_forward_hook(lambda *_, name=name: ended.append(name))
    layers = {"en_inblocks.0.attn": "en_inblocks.0.attn"}
    distiller = Distiller(TASK, student, [SHD(layers=layers), of(SHD(layers=layers), "deep"), of(Output(), "deep")])
    for expected in (["wide", "deep", "deep"], ["deep"]):  # first for the order of layers
        ended.clear()
        distiller(batch, teachers)
        assert ended == expected


def test_matched_plans_are_of_the_teacher_that_a_loss_reads(student, teachers, batch):
    distiller = Distiller(TASK, student, [SHD(plan="matched"), of(SHD(plan="matched"), "deep")])
    plans = calibrate(distiller, teachers, [[batch]])
    for name, teacher in (("shd", "wide"), ("shd#2", "deep")):
        alone = Distiller(TASK, student, [SHD(plan="matched")])
        assert calibrate(alone, teachers[teacher], [[batch]])["shd"] == plans[name]
        heads = sorted(h for plan in plans[name]["plans"].values() for part in plan for h in part)
        assert max(heads) == teachers[teacher].config.num_attention_heads - 1
    distiller(batch, teachers)


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "shd: needs a teacher, and none was given"), ({"wide": 1}, "shd: teacher: wanted one of wide, found 'deep'")],
)
def test_a_teacher_that_is_not_there(student, batch, given, message):
    with pytest.raises(UserError, match=message):
        Distiller(TASK, student, [of(SHD(), "deep")])(batch, given)


def test_any_loss_has_a_key_for_its_teacher():
    loss = LOSSES.build(Plugin("output", {"teacher": "deep", "weight": 3}))
    assert (loss.teacher, loss.weight_at(0)) == ("deep", 3.0)
    assert LOSSES.build(Plugin("shd")).teacher is None
    assert LOSSES.filled(Plugin("output", {"teacher": "deep"})).options["teacher"] == "deep"
    assert "teacher" not in LOSSES.filled(Plugin("output")).options
    with pytest.raises(UserError, match=r"teacher: wanted text or list"):
        LOSSES.build(Plugin("output", {"teacher": {"deep": 1}}))


class AllLayers(Loss):
    """Of every layer of both models at once."""

    reads = frozenset({Reads.ATTENTION, Reads.HIDDEN})

    def term(self, student, teacher, batch):
        self.seen = student, teacher
        queries = torch.stack([layer.attention.query.square().mean() for layer in teacher.attention.values()]).mean()
        pairs = self.layer_map(student.hidden, teacher.hidden)
        widths = [
            student.hidden[a].hidden.square().mean() - teacher.hidden[b].hidden.square().mean()
            for a, b in pairs.items()
        ]
        return Term((queries * torch.stack(widths).sum()).expand(len(batch.indices)))


@pytest.mark.parametrize("beside", [[], ["shd"]])
def test_a_loss_over_all_layers_is_given_all_of_them(student, teachers, batch, beside):
    """What it sees is what the models do, whether other losses stream the same layers or not."""
    teacher, loss = teachers["deep"], AllLayers()
    distiller = Distiller(TASK, student, [loss, *(SHD() for _ in beside)])
    with torch.no_grad(), capture(teacher) as captures, capture(student) as own:
        want = TASK.predict(teacher, batch)
        TASK.predict(student, batch)
    terms = []
    for _ in range(3):
        total, logs = distiller(batch, teacher)
        assert total.requires_grad
        terms.append(logs["test_distiller"])
        by_student, by_teacher = loss.seen
        assert list(by_teacher.attention) == list(captures) and list(by_student.attention) == list(own)
        for name, layer in by_teacher.attention.items():
            assert torch.equal(layer.attention.key, captures[name].key) and not layer.attention.key.requires_grad
        assert torch.equal(by_teacher.prediction, want.prediction)
        assert len(by_teacher.hidden) == 8 and len(by_student.hidden) == 4
        assert by_student.hidden["de_blocks.1"].hidden.requires_grad
        assert loss.layer_map(by_student.hidden, by_teacher.hidden)["de_blocks.0"] == "de_blocks.1"
    assert torch.equal(terms[0], terms[1]) and torch.equal(terms[1], terms[2])


class Aligned(Loss):
    """Of the student's blocks and a frozen encoder (REPA, arXiv 2410.06940, in small)."""

    reads = frozenset({Reads.HIDDEN})
    needs_teacher = False

    def __init__(self):
        super().__init__()
        self.encoder, self.projector = Frozen(torch.nn.Linear(64, 8)), torch.nn.Linear(8, 8)

    def term(self, student, teacher, batch):
        assert teacher is None
        target = self.encoder(batch.x_0.flatten(1))
        return Term((self.projector(student.hidden["en_outblocks.0"].hidden).mean(1) - target).square().mean(1))


def test_a_model_that_a_loss_holds_is_no_part_of_the_run(student, teachers, batch):
    """Neither trained nor saved nor sharded, and where its loss is; the loss needs no teacher and none is asked."""
    asked, loss = counting(teachers), Aligned()
    distiller = Distiller(TASK, student, [loss])
    for given in (None, teachers):
        distiller(batch, given)[0].backward()
    assert asked == []
    assert loss.projector.weight.grad is not None
    assert loss.encoder.model.weight.grad is None and not loss.encoder.model.training
    assert not [name for name in distiller.state_dict() if "encoder" in name]
    assert loss.encoder.model not in set(distiller.modules())
    assert not {id(p) for p in loss.encoder.model.parameters()} & {id(p) for p in distiller.parameters()}
    distiller.to(torch.float64)
    assert loss.encoder.model.weight.dtype == torch.float64


def test_a_loss_of_pairs_of_layers_needs_a_teacher():
    class Alone(Hints):
        needs_teacher = False

    with pytest.raises(UserError, match="Alone: pairs layers with a teacher's"):
        Alone()


class Named(Output):
    """As if its file were noise.py, which is the name of the task's own term."""


def test_a_loss_does_not_take_the_place_of_a_term_of_the_task(student, teachers, batch, monkeypatch):
    monkeypatch.setattr(Named, "__module__", "my_losses.noise")
    with pytest.raises(UserError, match=r"losses\.noise: a term of the task Diffusion has that name; rename"):
        Distiller(TASK, student, [Named()])(batch, teachers["wide"])


class Endless(Loss):
    """Infinite, with an infinite gradient, and a parameter of its own."""

    reads, reads_teacher = frozenset({Reads.OUTPUT}), False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def term(self, student, teacher, batch):
        return Term(self.scale / (0 * student.prediction).flatten(1).sum(1).square())


def test_a_loss_of_weight_zero_adds_nothing_even_if_it_is_infinite(student, batch):
    """Its parameters have gradients all the same, of zero: DDP waits for them."""
    endless = Endless()
    endless.weight = {0: 0.0}
    (distiller, alone) = (Distiller(TASK, student, losses) for losses in ([endless], []))
    loss, terms = distiller(batch)
    assert torch.isinf(terms["test_distiller"]) and torch.equal(loss, alone(batch)[0])
    loss.backward()
    assert endless.scale.grad == 0
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


class Steep(Loss):
    """Finite, with a gradient that is NaN: the root of what is 0 in all places."""

    reads, reads_teacher = frozenset({Reads.OUTPUT}), False

    def term(self, student, teacher, batch):
        return Term((0 * student.prediction).flatten(1).square().sum(1).sqrt())


def test_a_loss_of_weight_zero_adds_no_gradient_that_is_nan(student, batch):
    steep = Steep()
    steep.weight = {0: 0.0}
    loss, terms = Distiller(TASK, student, [steep])(batch)
    assert terms["test_distiller"] == 0
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_a_loss_that_has_ended_is_not_computed_and_its_teacher_does_not_run(student, teachers, batch):
    """The total and gradients are those without it; its projectors' gradients are 0, since DDP waits for them."""
    hints, (_, alone) = Hints(), (Distiller(TASK, student, losses) for losses in ([], []))
    hints.weight = {0: 1.0, 2: 0.0}
    distiller, runs = Distiller(TASK, student, [hints]), []
    teachers["wide"].register_forward_pre_hook(lambda *_: runs.append(1))
    for step, computed in ((1, True), (2, False), (9, False)):
        runs.clear()
        hints.zero_grad()
        now = replace(batch, step=step)
        (loss, terms), (base, _) = distiller(now, teachers["wide"]), alone(now)
        loss.backward()
        assert (bool(runs), "test_distiller" in terms, torch.equal(loss, base)) == (computed, computed, not computed)
        assert bool(hints.projector.weight.grad.any()) == computed


def test_a_loss_waits_and_pauses_without_having_ended():
    """What has not begun, and a constant 0 whose value is watched, are computed."""
    loss = Hints()
    for weight, ends in (({0: 0.0}, None), ({0: 0.0, 5: 1.0}, None), ({0: 1.0, 2: 0.0, 4: 0.0, 6: 1.0, 8: 0.0}, 8)):
        loss.weight = weight
        assert next((step for step in range(20) if loss.ended(step)), None) == ends


def test_a_base_weight_of_zero_shields_from_terms_of_the_task(student, batch, monkeypatch):
    """As the weight of a loss does; the student's parameters have gradients all the same, of zero."""
    finite = Distiller(TASK, student, [], True, 0.0)(batch)[0]
    task = type(TASK).losses
    monkeypatch.setattr(Diffusion, "losses", lambda *_: {k: v * torch.inf for k, v in task(*_).items()})
    loss, terms = Distiller(TASK, student, [], True, 0.0)(batch)
    assert not torch.isfinite(terms["noise"]) and torch.equal(loss, finite) and finite == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters() if p.requires_grad)
    assert not torch.isfinite(Distiller(TASK, student, [], True, 1.0)(batch)[0])


def test_a_loss_on_cross_attention_wants_the_layers_of_those_beside_it():
    """It was said that the student has no such layer."""
    student, teacher = pixart(2), pixart(4).eval()
    task = TextToImage(side=8, text_tokens=5)
    (batch,) = task.example(student, 2, torch.device("cpu"))
    names = [[f"transformer_blocks.{i}.{name}" for i in (0, 1)] for name in ("attn1", "attn2")]
    maps = [dict(zip(each, each)) for each in names]
    with pytest.raises(UserError, match=r"blocks\.0\.attn2 of the student is no self-attention .* those of shd, too"):
        Distiller(task, student, [SHD(), SHD(layers=maps[1])])(batch, teacher)
    crossed = SHD(layers=dict(zip(maps[0], maps[1])))
    with pytest.raises(UserError, match=r"blocks\.0\.attn2 of the teacher is no self-attention"):
        Distiller(task, student, [SHD(), crossed])(batch, teacher)
    matched = SHD(layers=maps[1], plan="matched", calibration=1)
    with pytest.raises(UserError, match=r"blocks\.0\.attn2 of the student is no self-attention"):
        calibrate(Distiller(task, student, [SHD(plan="matched", calibration=1), matched]), teacher, [[batch]])
    distiller = Distiller(task, student, [SHD(layers=maps[0]), SHD(layers=maps[1])])
    for _ in range(2):  # streamed, too
        assert {"shd", "shd#2"} <= distiller(batch, teacher)[1].keys()
