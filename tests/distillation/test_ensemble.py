"""A loss that reads several teachers learns from the mean of their outputs."""

import dataclasses

import pytest
import torch
from small_steps import SMALL, batch_of

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion


def model(seed, heads, **changes):
    torch.manual_seed(seed)
    built = MDTv2(**{**SMALL, "num_attention_heads": heads, **changes})
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return built.eval()


@pytest.fixture
def teachers():
    return {"wide": model(1, 4), "deep": model(2, 3)}


def build(name, **options):
    return LOSSES.build(Plugin(name, options), "losses.0")


def test_it_learns_from_the_mean_and_every_teacher_runs_once(teachers):
    student, task = model(0, 2), Diffusion()
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    runs = []
    for name, teacher in teachers.items():
        teacher.register_forward_pre_hook(lambda *_, name=name: runs.append(name))
    both = Distiller(task, student, [build("output", teacher=["wide", "deep"]), build("shd", teacher="deep")])
    predictions = [task.predict(teacher, batch).prediction.detach() for teacher in teachers.values()]
    prediction = task.predict(student, batch).prediction
    want = (prediction - sum(predictions) / 2).square().flatten(1).mean(1).mean()
    runs.clear()
    for asked in (["deep", "deep", "wide"], ["deep", "wide"]):  # first for the order of layers
        terms, logs = both.terms(batch, teachers)
        torch.testing.assert_close(terms["output"], want)
        assert sorted(runs) == asked and set(logs) >= {"output", "shd"}
        assert not any(" of " in name for name in logs)
        runs.clear()
    parameters = list(student.parameters())
    gradients = [torch.autograd.grad(x, parameters, allow_unused=True) for x in (terms["output"], want)]
    for found, expected in zip(*gradients):
        assert found is None or torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_the_mean_is_of_guided_outputs_where_the_loss_has_guidance(teachers):
    student, wide = model(0, 2), teachers["wide"]
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    values = []
    for options in ({"guidance": 3.0}, {"guidance": 3.0, "teacher": ["one", "other"]}, {"teacher": ["one", "other"]}):
        distiller = Distiller(Diffusion(), student, [build("output", **options)])
        values.append(distiller.terms(batch, {"one": wide, "other": wide})[1]["output"])
    torch.testing.assert_close(values[1], values[0])
    assert abs(values[2] - values[0]) > 1e-3


def test_teachers_of_other_shapes_have_no_mean(teachers):
    distiller = Distiller(Diffusion(), model(0, 2), [build("output", teacher=["wide", "deep"])])
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    shape = distiller.task.predict

    def other(teacher, batch):
        output = shape(teacher, batch)
        return (
            dataclasses.replace(output, prediction=output.prediction[:, :, :4])
            if teacher is teachers["deep"]
            else output
        )

    distiller.task.predict = other
    with pytest.raises(UserError, match=r"the mean of several needs outputs of one shape, found .* and .*"):
        distiller.terms(batch, teachers)


@pytest.mark.parametrize(
    ("name", "teacher", "message"),
    [
        ("shd", ["wide", "deep"], r"SHD: teacher: wanted one name, since it reads layers, found \['wide', 'deep'\]"),
        ("output", [], r"Output: teacher: wanted one or more names, found \[\]"),
    ],
)
def test_layers_have_no_mean(name, teacher, message):
    with pytest.raises(UserError, match=message):
        build(name, teacher=teacher)


def test_a_name_that_is_given_twice_does_not_count_once(teachers):
    """[a, a, b] had been the mean of a and b, without a word."""
    distiller = Distiller(Diffusion(), model(0, 2), [build("output", teacher=["wide", "wide", "deep"])])
    with pytest.raises(UserError, match=r"output: teacher: .* 'wide' is named twice"):
        distiller.terms(batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1]), teachers)


def test_a_name_among_several_that_there_is_not(teachers):
    distiller = Distiller(Diffusion(), model(0, 2), [build("output", teacher=["wide", "high"])])
    batch = batch_of(torch.randn(2, 1, 8, 8), [3, 800], [0, 1])
    with pytest.raises(UserError, match=r"output: teacher: wanted one of wide, deep, found 'high'"):
        distiller.terms(batch, teachers)
