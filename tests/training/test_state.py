"""The state of a run: models, averages, optimizer."""

from types import SimpleNamespace

import torch
from torch import nn

from dit_shd.training.ema import EMA
from dit_shd.training.state import TrainState


def test_a_student_has_the_weights_of_the_average_that_is_asked_for():
    model = nn.Linear(3, 2)
    state = TrainState(SimpleNamespace(student=model), None, EMA(model, [0.9, 0.5]), None)
    nn.init.zeros_(model.weight)
    state.averages.step(model, 0)
    one, other = state.student(0.9)["weight"], state.student(0.5)["weight"]
    torch.testing.assert_close(one / 0.9, other / 0.5)
    assert not torch.equal(one, other)


def test_a_student_has_the_averaged_statistics_of_batch_norms():
    model = nn.Sequential(nn.BatchNorm1d(2))
    state = TrainState(SimpleNamespace(student=model), None, EMA(model, [0.9]), None)
    model(torch.randn(5, 2))
    state.averages.step(model, 0)
    found = state.student(0.9)
    torch.testing.assert_close(found["0.running_mean"], 0.1 * model[0].running_mean)
    torch.testing.assert_close(found["0.running_var"], 0.9 + 0.1 * model[0].running_var)
    assert found["0.num_batches_tracked"] == 1


def test_a_checkpoint_without_the_averages_of_batch_norms_goes_on_with_the_newest():
    """As of a version that did not average them."""

    def state():
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        distiller = nn.ModuleDict({"student": model})
        distiller.student = model
        return TrainState(distiller, torch.optim.SGD(model.parameters()), EMA(model, [0.9]), None)

    saved, later = state(), state()
    saved.distiller.student(torch.randn(5, 3))
    tensors = saved.tensors()
    assert tensors["ema_0.9"].pop("1.running_mean").shape == tensors["ema_0.9"].pop("1.running_var").shape
    later.restore({**tensors, "optimizer": saved.optimizer_state()})
    assert torch.equal(later.averages.tensors()["1.running_mean"], saved.distiller.student[1].running_mean)
    assert torch.equal(later.averages.tensors()["0.weight"], saved.averages.tensors()["0.weight"])


def test_the_scale_of_fp16_goes_on_where_it_was():
    """A new scale of 65,536 would leave out the first steps after a stop as overflows."""

    def state(scale):
        model = nn.Linear(3, 2)
        distiller = nn.ModuleDict({"student": model})
        distiller.student = model
        optimizer = torch.optim.SGD(model.parameters())
        return TrainState(distiller, optimizer, EMA(model, []), torch.amp.GradScaler("cpu", init_scale=scale))

    saved, later = state(8.0), state(65536.0)
    later.restore({**saved.tensors(), "optimizer": saved.optimizer_state(), **saved.numbers()})
    assert later.scaler.get_scale() == 8.0
