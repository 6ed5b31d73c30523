"""What is refused of the layers that a forward gives: left out, without a graph, tokens before samples."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.feature import Feature
from dit_shd.distillation.losses.self_correlation import SelfCorrelation
from dit_shd.tasks import Batch, Output, Task

E = 16


@dataclass(frozen=True)
class Rows(Batch):
    x: Tensor


class Squares(Task[Rows]):
    """The mean square of what a model gives."""

    def example(self, model, batch, device):
        raise NotImplementedError

    def draw(self, *given):
        raise NotImplementedError

    def check(self, *given):
        raise NotImplementedError

    def predict(self, model, batch):
        return Output(model(batch.x))

    def losses(self, output, batch):
        return {"square": output.prediction.square().mean((1, 2))}


class Model(nn.Module):
    """Blocks of which some are left out at times, or computed again."""

    def __init__(self, depth=2, batch_first=True, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        options = dict(dropout=0.0, batch_first=batch_first)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(E, 2, 32, **options) for _ in range(depth))
        self.left_out, self.again, self.first = set[int](), False, batch_first

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        kept = nn.Sequential(*(block for i, block in enumerate(self.blocks) if i not in self.left_out))
        x = checkpoint(kept, x, use_reentrant=True) if self.again else kept(x)
        return x if self.first else x.transpose(0, 1)


def batch(b=4, n=8):
    return Rows("plain", 0, torch.arange(b), x=torch.randn(b, n, E, requires_grad=True))


def distiller(student, teacher, loss):
    made = Distiller(Squares(), student, [loss])
    made.build([batch()], teacher)
    return made


@pytest.mark.parametrize("layers", ["sections", {"blocks.0": "blocks.1"}])
def test_a_block_that_is_left_out_is_refused_where_blocks_are_paired_by_depth(layers):
    """The block before it had learned from what was its own teacher's, without a word."""
    student, teacher = Model(2), Model(4, seed=1).eval().requires_grad_(False)
    d = distiller(student, teacher, Feature(layers=layers))
    d(batch(), teacher)
    student.left_out = {1}
    if isinstance(layers, dict):
        assert d(batch(), teacher)[0] > 0
        return
    with pytest.raises(UserError, match=r"Model: blocks\.1 of the student did not run in this forward, so that layers"):
        d(batch(), teacher)


def test_a_block_that_was_taken_out_of_the_model_is_not_missed():
    student, teacher = Model(3), Model(4, seed=1).eval().requires_grad_(False)
    d = distiller(student, teacher, Feature())
    d(batch(), teacher)
    del student.blocks[2]
    assert d(batch(), teacher)[0] > 0


@pytest.mark.parametrize("loss", [Feature, SelfCorrelation])
def test_tokens_before_samples_are_refused(loss):
    """Of 8 tokens and 4 samples the loss had been another one, without a word."""
    student, teacher = Model(batch_first=False), Model(seed=1).eval().requires_grad_(False)
    with pytest.raises(UserError, match=r"gives \[n,b,e\] = \[8, 4, 16\], tokens before samples: .* of 4 samples"):
        distiller(student, teacher, loss())(batch(), teacher)
    assert distiller(Model(), teacher, loss())(batch(), teacher)[0] > 0


def test_features_without_a_graph_are_refused():
    """Reentrant checkpointing of several blocks gives the last one's alone a graph: the others had learned nothing."""
    student, teacher = Model(), Model(seed=1).eval().requires_grad_(False)
    d = distiller(student, teacher, Feature())
    student.again = True
    with pytest.raises(UserError, match=r"blocks\.\d ran without a graph inside a forward that has one"):
        d(batch(), teacher)


class Padded(nn.Module):
    """PyTorch's encoder with padding, which takes a fast path of nested tensors in eval."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(E, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        hidden = torch.arange(x.shape[1]) >= torch.tensor([[x.shape[1]], *[[5]] * (len(x) - 1)])
        return self.encoder(x, src_key_padding_mask=hidden)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_an_encoder_of_padded_samples_gives_plain_tensors():
    """A teacher's features had been nested ones, and ended in an internal error."""
    student, teacher = Padded(), Padded(1).eval().requires_grad_(False)
    d, x = distiller(student, teacher, Feature()), batch()
    value = d(x, teacher)[0]
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.testing.assert_close(value, d(x, teacher)[0])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
