"""A first forward that is eager, and its backward; two captures of one."""

import gc

import pytest
import torch
from clients.layers import E, Layer
from torch import nn
from torch.utils.checkpoint import checkpoint

from dit_shd import SHD, capture


class Recomputed(nn.Module):
    """Blocks that are compiled, and computed again in the backward."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(E), Layer(), nn.GELU()) for _ in range(2))

    def compiled(self):
        for block in self.blocks:
            block.compile(backend="aot_eager")
        return self

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def is_compiled_now() -> bool:
    """Whether anything is compiled in this process."""
    ran = []
    torch._dynamo.reset()
    torch.compile(torch.sin, backend=lambda graph, _: ran.append(graph) or graph.forward)(torch.ones(2))
    return bool(ran)


@pytest.fixture
def _once():
    if not hasattr(torch._dynamo.config, "skip_fwd_side_effects_in_bwd_under_checkpoint"):
        pytest.skip("this torch has no such setting")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        yield


@pytest.mark.usefixtures("_once")
@pytest.mark.parametrize("of", ["output", "maps", "both", "features"])
def test_compiled_blocks_that_are_computed_again_train_from_the_first_step_on(of):
    """The first forward was eager and what its backward computed again was compiled, which saves other tensors."""
    torch.manual_seed(0)
    teacher, student, plain, x = Recomputed(), Recomputed().compiled(), Recomputed(), torch.randn(2, 5, E)
    plain.load_state_dict(student.state_dict())
    features = list[torch.Tensor]()
    for model in (student, plain) if of == "features" else ():
        model.blocks[0].register_forward_hook(lambda *given: features.append(given[-1]))
    for _ in range(3):
        for model in (student, plain):
            with capture(teacher) as t, capture(model) as s:
                with torch.no_grad():
                    teacher(x)
                features.clear()
                output = model(x).square().mean()
            losses = {"output": output, "maps": SHD()(t, s), "both": output + SHD()(t, s)}
            loss = features[0].square().mean() if of == "features" else losses[of]
            model.zero_grad()
            loss.backward()
        for a, b in zip(student.parameters(), plain.parameters(), strict=True):
            got, want = (torch.zeros_like(p) if p.grad is None else p.grad for p in (a, b))
            torch.testing.assert_close(got, want)
    assert is_compiled_now()


@torch.compile(backend="aot_eager")
def modulate(x, scale):
    return x * (1 + scale).tanh()


class Modulated(Recomputed):
    """Blocks that call a compiled function, as those of OpenSora and SiT may."""

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(
                lambda given, block=block: block(modulate(given, given.mean(1, keepdim=True))), x, use_reentrant=False
            )
        return x


@pytest.mark.usefixtures("_once")
def test_blocks_that_call_compiled_functions_and_are_computed_again_train_from_the_first_step_on():
    """No module is compiled: the first forward was eager, and its backward ended in a CheckpointError."""
    torch.manual_seed(0)
    teacher, student, x = Modulated(), Modulated(), torch.randn(2, 5, E)
    for _ in range(2):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(x)
            output = student(x).square().mean()
        (output + SHD()(t, s)).backward()
    assert is_compiled_now()


@pytest.mark.usefixtures("_once")
def test_a_backward_that_fails_leaves_compilation_on():
    model, x = Recomputed().compiled(), torch.randn(2, 5, E, requires_grad=True)
    with capture(model):
        output = model(x)
    x.register_hook(lambda _: 1 / 0)  # the last to run, after what is computed again
    with pytest.raises(ZeroDivisionError):
        output.sum().backward()
    del output
    gc.collect()
    assert is_compiled_now()


class Weighted(nn.Module):
    """Attention of PyTorch, which multiplies by itself if its maps are asked for."""

    def __init__(self, maps):
        super().__init__()
        self.attn, self.maps = nn.MultiheadAttention(8, 2, batch_first=True), maps

    def forward(self, x):
        return x + self.attn(x, x, x, need_weights=self.maps)[0]


@pytest.mark.parametrize("maps", [True, False])
def test_two_captures_of_a_new_model_see_attention_of_pytorch_once(maps):
    """Of maps that it makes by itself the outer one had seen products alone, and refused them."""
    model, x = nn.Sequential(Weighted(maps), Weighted(maps)).eval(), torch.randn(2, 5, 8)
    for _ in range(2):  # the first forward, and where attention is known
        with capture(model) as t, capture(model) as s:
            with torch.no_grad():
                model(x + 1)
            model(x)
        for captures, given in ((t, x + 1), (s, x)):
            _, want = model[0].attn(given, given, given, average_attn_weights=False)
            assert list(captures) == ["0.attn", "1.attn"]
            torch.testing.assert_close(captures["0.attn"].map(), want)
