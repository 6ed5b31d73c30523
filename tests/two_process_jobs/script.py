"""A training script of somebody's own: DDP by accelerate and SHD on captures of a diffusers model."""

import torch
from accelerate import Accelerator
from diffusers import DiTTransformer2DModel

from dit_shd import SHD, capture


def dit(heads):
    torch.manual_seed(heads)
    sizes = {"num_attention_heads": heads, "attention_head_dim": 8, "in_channels": 4, "num_layers": 3}
    return DiTTransformer2DModel(**sizes, sample_size=8, patch_size=2, num_embeds_ada_norm=10).eval()


def train(out):
    """Three steps of batches of four, of which each process has its part."""
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    teacher, student = dit(4), dit(2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    student, optimizer = accelerator.prepare(student, optimizer)
    for i in range(3):
        r = torch.Generator().manual_seed(i)
        x, t, y = torch.randn(4, 4, 8, 8, generator=r), torch.arange(4) * 200, torch.arange(4)
        mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
        batch = {"timestep": t[mine], "class_labels": y[mine]}
        with capture(teacher) as tc, capture(student) as sc:
            with torch.no_grad():
                teacher(x[mine], **batch)
            found = student(x[mine], **batch).sample
        accelerator.backward(SHD()(tc, sc) + found.square().mean())
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        torch.save((world, accelerator.unwrap_model(student).state_dict()), out)
    accelerator.end_training()


def prepare(folder):
    train(folder / "one.pt")


def work(folder):
    train(folder / "two.pt")
