"""The first look at a teacher: it changes nothing, and models whose passes it does not show are refused."""

import pytest
import torch
from small_distillers import TASK, pixart

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES, Loss, Reads, Term
from dit_shd.models.offload import OFFLOADED
from dit_shd.tasks import Output as ModelOutput
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.tasks.text_to_image import TextToImage


@pytest.mark.parametrize("offloaded", [False, True])
def test_another_teacher_under_the_name_of_one_before(student, teachers, batch, offloaded):
    """Its own layers and weights are read: those of sharded and offloaded teachers are kept from step to step."""
    for teacher in teachers.values():
        setattr(teacher, OFFLOADED, offloaded)
    again = Distiller(TASK, student, [SHD()])
    for name in ("wide", "deep", "wide"):
        want = Distiller(TASK, student, [SHD()]).terms(batch, teachers[name])
        for _ in range(2):
            torch.testing.assert_close(again.terms(batch, teachers[name]), want)


def test_the_first_look_at_a_teacher_takes_no_random_numbers(student, teachers, batch):
    """A run that is resumed looks again, and has to go on as if it had not."""

    def draw(*_):
        torch.rand(3)

    teachers["wide"].register_forward_pre_hook(draw)
    distiller, after = Distiller(TASK, student, [SHD()]), []
    for _ in range(2):
        torch.manual_seed(7)
        distiller(batch, teachers)
        after.append(torch.rand(4))
    assert torch.equal(*after)


def test_what_losses_learn_begins_by_the_seed_and_takes_no_random_numbers(student, teachers, batch):
    def built(seed):
        distiller = Distiller(TASK, student, [LOSSES.build(Plugin("feature"))])
        torch.manual_seed(7)
        distiller.build([batch], teachers, seed)
        return torch.cat([p.flatten() for p in distiller.losses.parameters()]), torch.rand(4)

    (one, after), (again, _), (other, later) = built(1), built(1), built(2)
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(after, later)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(4))


@pytest.mark.parametrize("loss", ["shd", "feature"])
def test_a_teacher_in_inference_mode_is_refused(student, teachers, batch, loss):
    """It had ended in torch's traceback, or been told as a loss that depends on nothing."""
    teacher = teachers["wide"]
    distiller = Distiller(TASK, student, [LOSSES.build(Plugin(loss))])
    distiller.build([batch], teacher)
    teacher.forward = torch.inference_mode()(teacher.forward)
    with pytest.raises(UserError, match=r"forward runs in torch\.inference_mode, .* wanted torch\.no_grad"):
        distiller(batch, teacher)


def test_the_first_look_at_a_teacher_leaves_the_task_as_it_is():
    """An example is asked of it for the teacher, and it notes what that is."""
    student, teacher = pixart(2), pixart(4).eval()
    task = TextToImage(side=8, text_tokens=5)
    (batch,) = task.example(student, 2, torch.device("cpu"))
    before = dict(vars(task))
    Distiller(task, student, [SHD()])(batch, teacher)
    assert all(vars(task)[name] is value for name, value in before.items())


class Plain(torch.nn.Module):
    """Layers of attention of nobody's package, some of which may be left out."""

    def __init__(self, layers, heads, skipped=()):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(8, heads, batch_first=True) for _ in range(layers)
        )
        self.skipped, self.norm = set(skipped), torch.nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.norm(x.mT).mT
        for i, layer in enumerate(self.layers):
            x = x if i in self.skipped else x + layer(x, x, x, need_weights=False)[0]
        return x


class Guided(Diffusion):
    """A task of one's own: the model with its condition, and without in another call."""

    calls = 1

    def predict(self, model, batch):
        outputs = [model(batch.x_t.flatten(1).unflatten(1, (-1, 8))) for _ in range(self.calls)]
        return ModelOutput(sum(outputs))

    def example(self, model, batch_size, device):
        return None


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("early", [True, False])
def test_a_task_that_runs_a_model_twice_in_a_pass_is_refused(batch, role, early):
    """The layers of two forwards had been one model's of twice the depth: without a word, and of the first or last."""
    student, teacher = Plain(2, 2), Plain(4, 4).eval()

    class Task(Guided):
        def predict(self, model, batch):
            self.calls = 2 if model is (student if role == "student" else teacher) else 1
            return super().predict(model, batch)

    distiller = Distiller(Task(), student, [SHD()], stop_teacher_early=early)
    with pytest.raises(UserError, match=r"task\.predict ran the model twice in one pass"):
        distiller(batch, teacher)
    assert not any(module._forward_pre_hooks for model in (student, teacher) for module in model.modules())


def test_a_teacher_that_leaves_out_a_layer_at_first_is_refused(batch):
    """By their depth others would be paired, for good."""
    distiller = Distiller(Guided(), Plain(2, 2), [SHD()])
    teacher = Plain(4, 4, skipped=[1]).eval()
    with pytest.raises(UserError, match=r"layers\.1 of the teacher did not run in this forward"):
        distiller(batch, teacher)
    teacher.skipped.clear()
    assert distiller(batch, teacher)[0].isfinite()


def test_looking_at_a_teacher_leaves_its_statistics_alone(batch):
    """A first step moves the averages of a batch norm as the others do."""
    teacher = Plain(4, 4).train()
    distiller = Distiller(Guided(), Plain(2, 2), [SHD()])
    for steps in (1, 2):
        distiller(batch, teacher)
        assert teacher.norm.num_batches_tracked == steps


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_outputs_that_a_model_writes_to_later_are_refused(batch, role):
    """What a loss had read of them was the residual stream, with their values added."""

    class Writing(Plain):
        def forward(self, x):
            for layer in self.layers:
                y = layer(x, x, x, need_weights=False)[0]
                x = y.add_(x) if self.writes else y + x
            return x

    class Held(Loss):
        reads = frozenset({Reads.ATTENTION_OUTPUT})

        def term(self, student, teacher, batch):
            layers = (list(forward.attention_output.values())[-1].hidden for forward in (student, teacher))
            return Term((next(layers) - next(layers)).square().mean((1, 2)))

    models = {"student": Writing(2, 2), "teacher": Writing(4, 4).eval()}
    for name, made in models.items():
        made.writes = name == role
    distiller = Distiller(Guided(), models["student"], [Held()])
    with pytest.raises(UserError, match=r"layers\.0: its output is changed in place after it has run"):
        distiller(batch, models["teacher"])
    models[role].writes = False
    assert distiller(batch, models["teacher"])[0].isfinite()
