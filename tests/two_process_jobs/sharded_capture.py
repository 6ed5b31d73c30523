"""Captures of models in slices over two processes: FSDP1, FSDP2 and tensor parallel, against the whole model's."""

import copy
import os
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from dit_shd import SHD, capture

WIDTH, HEADS = 32, 4


class Layer(nn.Module):
    def __init__(self, heads=HEADS):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.width = WIDTH // heads

    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (-1, self.width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MatmulLayer(Layer):
    """The projection by x @ weight.T, of which a product sees a view."""

    def forward(self, x):
        q, k, v = (f(x).unflatten(2, (-1, self.width)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ self.proj.weight.T


def build(layer, heads=HEADS):
    torch.manual_seed(heads)
    return nn.Sequential(*(layer(heads) for _ in range(3))).eval().requires_grad_(False)


def fsdp1(model, original):
    return FullyShardedDataParallel(
        model, auto_wrap_policy=ModuleWrapPolicy({Layer, MatmulLayer}), use_orig_params=original,
        device_id=torch.device("cpu"),
    )  # fmt: skip


def fsdp2(model):
    for layer in model:
        fully_shard(layer)
    return fully_shard(model)


def tensor_parallel(model):
    mesh = init_device_mesh("cpu", (2,))
    plan = {**dict.fromkeys("qkv", ColwiseParallel()), "proj": RowwiseParallel()}
    for layer in model:
        parallelize_module(layer, mesh, plan)
    return model


WAYS = {
    "FSDP1": lambda model: fsdp1(model, original=False),
    "FSDP1, original parameters": lambda model: fsdp1(model, original=True),
    "FSDP2": fsdp2,
    "tensor parallel": tensor_parallel,
}


def recorded(model, x):
    """Maps and W^O of every layer, read when the forward is over and sharded again; and the captures."""
    with torch.no_grad(), capture(model) as captures:
        output = model(x)
    return output, captures, [(c.map(), c.out, c.why_no_out) for c in captures.values()]


def work(folder):
    warnings.simplefilter("ignore")
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, found = int(os.environ["RANK"]), {}
    x = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    student = build(Layer, 2).requires_grad_(True)
    with capture(student) as s:
        student(x)
    for name, shard in WAYS.items():
        for layer in (Layer, MatmulLayer):
            if layer is MatmulLayer and name == "tensor parallel":
                continue  # x @ weight.T is no Linear, which is what a plan divides
            model = build(layer)
            want = recorded(model, x)
            sharded = shard(copy.deepcopy(model))
            for turn in range(2):
                output, captures, layers = recorded(sharded, x)
                whole = SHD()(want[1], s).item()
                loss = SHD()(captures, s).item() if name != "tensor parallel" else None
                found[name, layer.__name__, turn] = {
                    "same output": torch.allclose(output, want[0], atol=1e-6),
                    "layers": list(captures),
                    "why": [why for *_, why in layers],
                    "found": [(a, b) for a, b, _ in layers],
                    "want": [(a, b) for a, b, _ in want[2]],
                    "loss": (loss, whole),
                }
    torch.save(found, folder / f"found_{rank}.pt")


def prepare(folder):
    """Nothing: the whole models are recorded by the same processes."""
