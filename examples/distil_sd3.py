"""SHD in a plain diffusers training loop: a small SD3-like student learns from a bigger one's attention.

    python examples/distil_sd3.py [--steps 60]

Random weights and random latents, so that it runs anywhere in a minute on a CPU: the point is where the lines marked
SHD go. With real models: SD3Transformer2DModel.from_pretrained(...), your latents, your text embeddings.
"""

import argparse

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from dit_shd import SHD, capture


def transformer(heads: int, layers: int) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=16,
        num_attention_heads=heads,
        caption_projection_dim=heads * 16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    torch.manual_seed(0)

    teacher = transformer(heads=8, layers=4).requires_grad_(False).eval()
    student = transformer(heads=4, layers=2).train()
    scheduler = FlowMatchEulerDiscreteScheduler()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    shd = SHD(weight=2.0, layers="proportional")  # SHD: 8 heads into 4, layers 2 and 4 of the teacher into 1 and 2

    for step in range(args.steps):
        latents = torch.randn(args.batch_size, 4, 16, 16)
        text, pooled = torch.randn(args.batch_size, 12, 32), torch.randn(args.batch_size, 32)
        noise = torch.randn_like(latents)
        at = torch.randint(len(scheduler.timesteps), (args.batch_size,))
        t, sigma = scheduler.timesteps[at], scheduler.sigmas[at].view(-1, 1, 1, 1)
        x_t = (1 - sigma) * latents + sigma * noise

        condition = dict(encoder_hidden_states=text, pooled_projections=pooled, timestep=t)
        with capture(teacher) as teacher_maps, capture(student) as student_maps:  # SHD: text and image
            with torch.no_grad():
                target = teacher(x_t, **condition).sample
            velocity = student(x_t, **condition).sample
        attention = shd(teacher_maps, student_maps)  # SHD: outside the forward
        loss = F.mse_loss(velocity, noise - latents) + F.mse_loss(velocity, target) + attention

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, of which attention {attention.item():.4f}")


if __name__ == "__main__":
    main()
