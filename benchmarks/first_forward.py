"""What the first captured forward costs, in which W^O is looked for: models of timm, diffusers and transformers.

    python benchmarks/first_forward.py

CPU seconds of a forward without a graph: plain, the first inside capture() of a model that was never captured before,
and a later one. Shapes of DeiT-S, DiT-S/2 and GPT-2 with random weights, two images or texts.
"""

import time
from collections.abc import Callable

import timm
import torch
from _measure import in_turn, parse, parser
from diffusers import DiTTransformer2DModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from dit_shd import capture

Made = tuple[nn.Module, Callable[[nn.Module], object]]


def deit() -> Made:
    x = torch.randn(2, 3, 224, 224)
    return timm.create_model("deit3_small_patch16_224"), lambda model: model(x)


def dit() -> Made:
    shape = {"num_attention_heads": 6, "num_layers": 12, "attention_head_dim": 64}
    x, inputs = torch.randn(2, 4, 32, 32), {"timestep": torch.full((2,), 500), "class_labels": torch.arange(2)}
    return DiTTransformer2DModel(in_channels=4, sample_size=32, **shape), lambda model: model(x, **inputs)


def gpt2() -> Made:
    ids = torch.randint(0, 50257, (2, 256))
    return GPT2LMHeadModel(GPT2Config()), lambda model: model(ids)


MODELS = {"DeiT-S, 197 tokens": deit, "DiT-S/2, 256 tokens": dit, "GPT-2, 256 tokens": gpt2}


@torch.no_grad()
def main() -> None:
    args = parse(parser(__doc__))
    for name, make in MODELS.items():
        made = [make() for _ in range(args.repeats + 1)]
        fresh = iter(made)
        for model, _ in made:
            model.eval()
        seen, forward = made[0]

        def recorded(model: nn.Module, forward: Callable[[nn.Module], object]) -> None:
            with capture(model):
                forward(model)

        recorded(seen, forward)
        sides = {
            "plain": lambda: forward(seen),  # noqa: B023
            "first": lambda: recorded(*next(fresh)),  # noqa: B023
            "later": lambda: recorded(seen, forward),  # noqa: B023
        }
        seconds = in_turn(sides, args.repeats, clock=time.process_time)
        ratios = ", ".join(f"{side} {seconds[side]:.2f} s ({seconds[side] / seconds['plain']:.2f})" for side in sides)
        print(f"{name}: {ratios}", flush=True)


if __name__ == "__main__":
    main()
