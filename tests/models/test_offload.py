import pytest
import torch
from runs import run
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.offload import OFFLOADED, device_of, is_offloaded, moved, offload_blocks
from dit_shd.profiling import captures
from dit_shd.tasks.diffusion import Diffusion


@pytest.fixture
def offloads(teacher):
    """Skips where this diffusers offloads to GPUs alone."""
    try:
        offload_blocks(loading.load(teacher), torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("offloads")
def test_an_offloaded_teacher_teaches_the_same(values, tmp_path):
    _, whole = run(values)
    _, offloaded = run(values, teacher_offload="blocks", run=str(tmp_path / "blocks"))
    assert whole == offloaded


@pytest.mark.usefixtures("offloads")
def test_it_stays_where_it_is(teacher):
    model = loading.load(teacher)
    assert not is_offloaded(model)
    offload_blocks(model, torch.device("cpu"))
    assert is_offloaded(model)
    assert moved(model, torch.device("meta")) is model
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("other", [{"compile": True}, {"teacher_precision": "int8"}])
def test_what_does_not_go_with_it(values, other):
    with pytest.raises(UserError, match="teacher_offload: blocks does not go with"):
        run(values, teacher_offload="blocks", **other)


def test_a_batch_for_it_is_where_it_computes(teacher):
    """While its weights lie in main memory."""
    model = loading.load(teacher)
    assert device_of(model).type == "cpu"
    setattr(model, OFFLOADED, torch.device("meta"))
    assert device_of(model).type == "meta"
    batch = captures.example(Diffusion(), "plain", model, device_of(model))
    assert batch.x_t.device.type == "meta"


def test_only_models_of_diffusers():
    with pytest.raises(UserError, match="wanted a model of diffusers, found a Linear"):
        offload_blocks(nn.Linear(2, 2), torch.device("cpu"))
