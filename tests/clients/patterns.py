"""Ways in which public code calls attention and projects its result, each in a few lines of our own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as renamed

from .entry import Client
from .layers import D, E, H, Layer, X, elsewhere, merged, split
from .projections import Adapted, ByHead, ByHeadCast, Cast, Conv, Einsum, Flat, Inline, Matmul, normed


class Inherited(Layer):
    def forward(self, x: Tensor, bias: Any = None) -> Tensor:
        return super().forward(x)


class InBlock(nn.Module):
    """The block calls attention; a class that holds its projections has a forward that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.mlp = Layer(), nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.held.proj(elsewhere(*split(self.held.qkv(x)))))


class Both(Layer):
    """Self-attention in the block's own forward, cross-attention and more self-attention in its children's."""

    def __init__(self) -> None:
        super().__init__()
        self.cross, self.more = nn.MultiheadAttention(E, H, batch_first=True), Layer()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = super().forward(x)
        return self.more(x + self.cross(x, c, c, need_weights=False)[0])


class ModelAndBlocks(nn.Module):
    """Blocks of which the middle one is given other tokens, too; a last layer in the model's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList((Layer(), Both(), Layer())), Layer()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.blocks[2](self.blocks[1](self.blocks[0](x), c))
        return x + self.last.proj(elsewhere(*split(self.last.qkv(x))))


class InModel(nn.Module):
    """All layers in the model's own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.qkvs, self.projs = (nn.ModuleList(nn.Linear(E, k * E) for _ in range(2)) for k in (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        for qkv, proj in zip(self.qkvs, self.projs):
            x = x + proj(elsewhere(*split(qkv(x))))
        return x

    def encode(self, x: Tensor) -> Tensor:
        return self.forward(x).mean(1)


class Doors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(2))

    def forward_features(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean(1)


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Layer()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.block(x)
        return x


class Crops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.block(x), self.block(x[:, :3])], 1)


class Cross(nn.Module):
    """Encoder-decoder, equal lengths; names and order of arguments say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mine, self.q, self.kv, self.out = Layer(), nn.Linear(E, E), nn.Linear(E, 2 * E), nn.Linear(E, E)

    def forward(self, b: Tensor, a: Tensor) -> Tensor:
        a = self.mine(a)
        (q,), (k, v) = split(self.q(a), 1), split(self.kv(b), 2)
        return a + self.out(elsewhere(q, k, v))


class Pooled(Layer):
    """Keys at half resolution."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.qkv(x))
        return self.proj(elsewhere(q, k[:, :, ::2], v[:, :, ::2]))


class Prefixed(Layer):
    """Learned keys before those of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.past = nn.Parameter(torch.randn(2, 1, H, 3, D))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.qkv(x))
        past_k, past_v = self.past.expand(2, x.shape[0], -1, -1, -1)
        return self.proj(elsewhere(q, torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)))


class Queries(nn.Module):
    """Learned queries see an image (cross), then each other (self)."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 5, E))
        self.q, self.kv, self.out, self.mine = nn.Linear(E, E), nn.Linear(E, 2 * E), nn.Linear(E, E), Layer()

    def forward(self, image: Tensor) -> Tensor:
        x = self.queries.expand(len(image), -1, -1)
        (q,), (k, v) = split(self.q(x), 1), split(self.kv(image), 2)
        return self.mine(x + self.out(elsewhere(q, k, v)))


class Joint(nn.Module):
    """Text first, by position; each has projections of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_c, self.qkv_x, self.proj_c, self.proj_x = (nn.Linear(E, k * E) for k in (3, 3, 1, 1))

    def forward(self, c: Tensor, x: Tensor) -> Tensor:
        n = c.shape[1]
        q, k, v = (torch.cat(pair, 2) for pair in zip(split(self.qkv_c(c)), split(self.qkv_x(x))))
        a = elsewhere(q, k, v)
        return self.proj_x(a[:, n:]) + self.proj_c(a[:, :n]).mean(1, keepdim=True)


class Gated(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(elsewhere(*split(self.qkv(x))) * torch.sigmoid(x))


class Gating(Layer):
    """The gate is made of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(E, E)

    def forward(self, x: Tensor) -> Tensor:
        y = elsewhere(*split(self.qkv(x)))
        return self.proj(y * torch.sigmoid(self.gate(y)))


class AfterGLU(Layer):
    """The projection's result is half a gate of the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(E, 2 * E)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.wide(elsewhere(*split(self.qkv(x)))))


class Twice(Gating):
    """Two products of the result, neither of them alone W^O."""

    def forward(self, x: Tensor) -> Tensor:
        y = elsewhere(*split(self.qkv(x)))
        return x + self.proj(y) + self.gate(y)


class ByHand(Layer):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.qkv(x))
        return self.proj(merged((q @ k.transpose(2, 3)).softmax(-1) @ v))


class Multi(nn.Module):
    def __init__(self, need_weights: bool, batch_first: bool = True):
        super().__init__()
        self.attn, self.need_weights = nn.MultiheadAttention(E, H, batch_first=batch_first), need_weights

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, need_weights=self.need_weights)[0]


class Masked(Layer):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split(self.qkv(x))
        mask = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        return x + self.proj(merged(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.2)))


def stack(*make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(each() for each in make * 2))


def layers(how: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return stack(lambda: Layer(how))


def projected(project: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return stack(lambda: Layer(project=project))


def replaced() -> nn.Module:
    """A forward that was set on the instance."""
    model = Doors()
    for block in model.blocks:
        block.forward = lambda x, own=block.forward: own(x)
    return model


def two(n: int, m: int) -> Callable[[], dict[str, Any]]:
    def draw() -> dict[str, Any]:
        g = torch.Generator().manual_seed(0)
        return {"args": (torch.randn(2, n, E, generator=g), torch.randn(2, m, E, generator=g))}

    return draw


def encoder(batch_first: bool) -> Callable[[], nn.Module]:
    return lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(E, H, E, batch_first=batch_first), 2, enable_nested_tensor=False
    )


CLIENTS = [
    Client("function of another place", layers(elsewhere), X, 2),
    Client("alias", layers(lambda q, k, v: merged(renamed(q, k, v))), X, 2),
    Client("closure on the instance", layers(lambda *qkv: elsewhere(*qkv)), X, 2),
    Client("super().forward", stack(Inherited), X, 2),
    Client("in the block's forward", stack(InBlock), X, 2),
    Client("in the block's forward and its children's", Both, two(6, 5), 2, 1),
    Client("in the model's forward and its blocks'", ModelAndBlocks, two(6, 5), 5, 1),
    Client("in the model's forward", InModel, X, 2),
    Client("a method of a model that does it itself", InModel, X, 2, call="encode"),
    Client("the attention itself", Layer, X, 1),
    Client("forward_features", Doors, X, 2, call="forward_features"),
    Client("forward called by name", Doors, X, 2, call="forward"),
    Client("forward set on the instance", replaced, X, 2),
    Client("shared layer", Looped, X, 3),
    Client("list of crops", Crops, X, 2),
    Client("cross-attention of equal length", Cross, two(6, 6), 1, 1),
    Client("cross-attention of other length", Cross, two(5, 6), 1, 1),
    Client("pooled keys", stack(Pooled), X, 2),
    Client("learned keys before", stack(Prefixed), X, 2),
    Client("learned queries", Queries, X, 1, 1),
    Client("joint, text first", Joint, two(5, 9), 2),
    Client("joint, equal lengths", Joint, two(6, 6), 2),
    Client("causal mask and scale", stack(Masked), X, 2),
    Client(
        "gate before W^O", stack(Gated), X, 2, reason="does not arrive unchanged at any projection", projections=False
    ),
    Client(
        "gate made of the result",
        stack(Gating),
        X,
        2,
        reason="goes through sigmoid, so that is a gate",
        projections=False,
    ),
    Client("GLU after W^O", stack(AfterGLU), X, 2, reason="goes through glu, so that is a gate", projections=False),
    Client("two products of the result", stack(Twice), X, 2, reason="arrives at several products", projections=False),
    Client("weights in one storage", Flat, X, 2),
    Client("x @ weight.T", projected(lambda: Matmul(E, E)), X, 2),
    Client("cast weight", projected(lambda: Cast(E, E)), X, 2),
    Client("1x1 convolution", projected(lambda: Conv(E, E, 1)), X, 2),
    Client("einsum", projected(lambda: Einsum(E, E)), X, 2),
    Client("einsum by head", stack(ByHead), X, 2),
    Client("einsum by head, cast", stack(ByHeadCast), X, 2),
    Client("cast weight, inline", stack(Inline), X, 2),
    Client("weight_norm", projected(normed), X, 2),
    Client("low-rank adapter", projected(Adapted), X, 2),
    Client("Linear and Dropout", projected(lambda: nn.Sequential(nn.Linear(E, E), nn.Dropout(0.1))), X, 2),
    Client("two Linears", projected(lambda: nn.Sequential(nn.Linear(E, 5), nn.Linear(5, E))), X, 2),
    Client("softmax by hand", stack(ByHand), X, reason="computed by hand"),
    Client("MultiheadAttention", stack(lambda: Multi(False)), X, 2, training=True),
    Client("MultiheadAttention in eval", stack(lambda: Multi(False)), X, 2, exact=False),
    Client("MultiheadAttention with weights", stack(lambda: Multi(True)), X, 2, training=True),
    Client("MultiheadAttention, tokens first", stack(lambda: Multi(True, False)), X, 2, training=True),
    Client("TransformerEncoder", encoder(True), X, 2, exact=False),
    Client("TransformerEncoder, tokens first", encoder(False), X, 2, exact=False),
]
