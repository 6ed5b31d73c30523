"""SHD between timm's vision transformers: DeiT-III small (6 heads) teaches the attention of DeiT tiny (3 heads).

    python examples/distil_deit.py [--steps 40]

Random weights and striped random images of 64 x 64, so that it runs anywhere in a minute on a CPU. With real models:
timm.create_model(..., pretrained=True) and your images.
"""

import argparse

import timm
import torch
import torch.nn.functional as F

from dit_shd import SHD, capture


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with vertical (0) or horizontal (1) stripes [count,3,64,64], and which it is."""
    labels = torch.randint(2, (count,))
    stripes = ((torch.arange(64) // 4) % 2).float().expand(64, 64)
    both = torch.stack([stripes, stripes.t()])
    return torch.randn(count, 3, 64, 64) + both[labels][:, None], labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)

    size = dict(img_size=64, num_classes=2)
    teacher = timm.create_model("deit3_small_patch16_224", **size).requires_grad_(False).eval()
    student = timm.create_model("deit_tiny_patch16_224", **size).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4)
    shd = SHD(weight=1.0)  # SHD: layer by layer, since both have twelve

    for step in range(args.steps):
        x, labels = images(args.batch_size)
        with capture(teacher) as teacher_maps, capture(student) as student_maps:  # SHD
            with torch.no_grad():
                teacher(x)
            logits = student(x)
        attention = shd(teacher_maps, student_maps)  # SHD
        loss = F.cross_entropy(logits, labels) + attention

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, of which attention {attention.item():.4f}")


if __name__ == "__main__":
    main()
