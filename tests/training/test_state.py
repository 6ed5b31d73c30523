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
