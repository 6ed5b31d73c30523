"""Captures are those of the model's last forward, and never silently those of an earlier one."""

import pytest
import torch
from clients.patterns import Doors, X
from torch._dynamo.testing import CompileCounterWithBackend

from dit_shd import capture
from dit_shd.core.errors import UserError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Doors().eval()


@pytest.mark.parametrize("before", [False, True])
def test_a_model_that_ran_inside_of_a_compiled_function_has_no_captures_of_an_earlier_batch(model, before):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    x, step = X()["args"][0], torch.compile(lambda z: model(z) * 2, backend=counter, fullgraph=True)
    for _ in range(3):
        with torch.no_grad(), capture(model) as captures:
            if before:
                model(x)
                assert list(captures)
            step(x)
            for read in (len, list, dict, lambda c: c["blocks.0"], lambda c: c.report()):
                with pytest.raises(UserError, match="Doors ran inside of a function or model that"):
                    read(captures)
            model(2 * x)
            assert list(captures)
    assert counter.frame_count == (1 if before else 2)  # before anything is known its layers are of other classes
    torch._dynamo.reset()
