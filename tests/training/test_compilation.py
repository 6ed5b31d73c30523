"""A compiled step: a graph for each kind of block, however deep the models are, with the numbers of the eager one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from dit_shd.attention.kernels import captures
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.output import Output
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2
from dit_shd.models.transformer import Block
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.training.compilation import ONCE, compile_blocks

pytestmark = pytest.mark.skipif(not hasattr(torch._dynamo.config, ONCE), reason="refused: this torch is too old")
TASK = Diffusion()


@pytest.fixture(autouse=True)
def in_graph(monkeypatch):
    """As on a GPU, where attention with MDT's table is one operator: here, a few that torch can compile."""

    def attention(query, key, value, scale, bias, *_):
        w = bias.window
        code = RelativeBias.codes(w)[None] if bias.code is None else bias.code
        index = (code[:, :, None] - code[:, None, :] + 2 * w * (w - 1)).long()
        added = bias.leaves[0][index].permute(0, 3, 1, 2).to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, added, scale=scale)

    monkeypatch.setattr(captures, "serves", lambda *given: True)
    monkeypatch.setattr(captures, "attention", attention)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(cls, heads, layers, **options):
    torch.manual_seed(heads)
    model = cls(8, 2, 4, layers, heads, 4, num_classes=3, **options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def batches(cls, kept):
    """A plain pass, and for MDTv2 a masked one."""
    x, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([1, 900])
    y, x_t = torch.tensor([0, 1]), TASK.process.add_noise(x, noise, t)
    keep = torch.stack([torch.randperm(16)[:kept].sort().values for _ in range(2)])
    passes = {"plain": None, "masked": keep} if cls is MDTv2 else {"plain": None}
    return [NoisyBatch(name, 0, y, x, noise, x_t, t, y, kept) for name, kept in passes.items()]


@pytest.mark.parametrize(
    ("cls", "layers", "losses", "recompute", "graphs"),
    [
        (MDTv2, 8, lambda: [Output(), SHD()], False, 4),
        pytest.param(MDTv2, 4, lambda: [Output()], False, 4, marks=pytest.mark.slow),
        (DiT, 4, lambda: [Output(), SHD()], True, 2),
        pytest.param(MDTv2, 4, lambda: [Output(), SHD()], True, 4, marks=pytest.mark.slow),
        pytest.param(DiT, 8, lambda: [Output()], False, 2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("autocast", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_step_compiles_a_block_of_each_model_once_a_pass(cls, layers, losses, recompute, graphs, autocast):
    """Recorded or not, with a long skip or without, in the encoder or the decoder: the graphs are the same."""
    options = {"decode_layer": layers // 2} if cls is MDTv2 else {}
    teacher, student = build(cls, 4, layers, **options).requires_grad_(False), build(cls, 2, layers, **options)
    if recompute:
        student.enable_gradient_checkpointing()
    sides = [(student, teacher), (copy.deepcopy(student), copy.deepcopy(teacher))]
    compile_blocks(*sides[0], backend="aot_eager")
    distillers = [Distiller(TASK, side[0], losses()) for side in sides]
    counters.clear()
    compiled = []
    for kept in (9, 7, 10):
        for batch in batches(cls, kept):
            values = []
            for distiller, (_, its_teacher) in zip(distillers, sides):
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    values.append(distiller(batch, its_teacher)[0])
                values[-1].backward()
            torch.testing.assert_close(*values, rtol=2e-3 if autocast else 1e-5, atol=1e-6)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled == [graphs] * 3
    assert not counters["graph_break"]
    for p, q in zip(*(side[0].parameters() for side in sides)):
        assert p.grad is q.grad or (p.grad - q.grad).norm() <= (0.05 if autocast else 1e-4) * q.grad.norm() + 1e-6


def test_a_compiled_teacher_runs_no_further_than_losses_read_it():
    teacher, student = build(DiT, 4, 4).requires_grad_(False), build(DiT, 2, 4)
    compile_blocks(student, teacher, backend="eager")
    distiller = Distiller(TASK, student, [SHD(layers={"blocks.0.attn": "blocks.1.attn"})])
    ran = []
    for i, block in enumerate(teacher.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    for batch in batches(DiT, 0) * 2:
        ran.clear()
        distiller(batch, teacher)[0].backward()
    assert ran == [0]  # it leaves the second block in its middle
    assert all(isinstance(block, Block) for block in teacher.blocks)
