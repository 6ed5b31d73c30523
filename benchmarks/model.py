"""MDTv2: ours against the public code (sail-sg/MDT), same weights, float32, same threads.

    python benchmarks/model.py --public /path/to/MDT [--tokens 256 1024 4096]

S/2 forward and backward and B/2 forward, in time; at 4096 tokens S/2 also in memory beyond weights and buffers.
The public code is not part of this repository: clone github.com/sail-sg/MDT anywhere and name the folder.
"""

import importlib
import sys
import types
from pathlib import Path

import torch
from _measure import child, extra_mib, in_turn, parse, parser

from dit_shd.models.families.mdt import MDTv2

SHAPES = {"S/2": dict(hidden_size=384, depth=12, num_heads=6), "B/2": dict(hidden_size=768, depth=12, num_heads=12)}
BATCH = {256: 8, 1024: 2, 4096: 1}


def public_module(path: str):
    """Its model file alone (the package's own __init__ wants fairscale and blobfile)."""
    package = types.ModuleType("masked_diffusion")
    package.__path__ = [f"{path}/masked_diffusion"]
    sys.modules["masked_diffusion"] = package
    sys.modules.setdefault("timm.models.layers", types.SimpleNamespace(trunc_normal_=torch.nn.init.trunc_normal_))
    return importlib.import_module("masked_diffusion.models")


def build(side: str, size: str, tokens: int, path: str) -> torch.nn.Module:
    torch.manual_seed(0)
    latent = 2 * int(tokens**0.5)
    if side == "public":
        model = public_module(path).MDTv2(input_size=latent, decode_layer=6, mask_ratio=0.3, **SHAPES[size])
    else:
        model = MDTv2.from_options(size, sample_size=latent)
    if side == "recomputed":
        model.enable_gradient_checkpointing()
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)
    return model.train()


def step(side: str, model: torch.nn.Module, tokens: int, backward: bool):
    latent, b = 2 * int(tokens**0.5), BATCH[tokens]
    x, t, y = torch.randn(b, 4, latent, latent), torch.full((b,), 500), torch.arange(b)

    def forward() -> torch.Tensor:
        return model(x, t, y) if side == "public" else model(x, t, y).sample

    def run() -> None:
        if backward:
            forward().square().mean().backward()
            model.zero_grad()
        else:
            with torch.no_grad():
                forward()

    return run


def memory(case: dict) -> float:
    """MiB beyond weights and buffers at the peak of forward and backward (the gradients of the weights included)."""
    run = step(case["side"], build(case["side"], "S/2", case["tokens"], case["public"]), case["tokens"], True)
    return extra_mib(run)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--public", help="a folder with the public MDT code")
    options.add_argument("--tokens", type=int, nargs="+", default=sorted(BATCH), choices=sorted(BATCH))
    args = parse(options, memory)
    if not args.public or not Path(args.public, "masked_diffusion").is_dir():
        sys.exit("model.py: --public: no folder with the public MDT code (git clone https://github.com/sail-sg/MDT)")
    for tokens in args.tokens:
        for size, backward in (("S/2", True), ("B/2", False)):
            if tokens == 4096 and size == "B/2":
                continue
            names = ("public", "ours", "recomputed") if tokens == 4096 else ("public", "ours")
            sides = {}
            for name in names:
                sides[name] = step(name, build(name, size, tokens, args.public), tokens, backward)
            seconds = in_turn(sides, args.repeats if tokens < 4096 else min(args.repeats, 2))
            what = "forward and backward" if backward else "forward"
            for name in names[1:]:
                ratio = seconds[name] / seconds["public"]
                times = f"public {seconds['public']:.2f} s, {name} {seconds[name]:.2f} s"
                print(f"{size} {tokens} tokens, batch {BATCH[tokens]}, {what}: {times}, ratio {ratio:.2f}", flush=True)
    if 4096 in args.tokens:
        case = {"tokens": 4096, "public": args.public, "threads": args.threads}
        found = {side: child({**case, "side": side}) for side in ("public", "ours", "recomputed")}
        for side in ("ours", "recomputed"):
            ratio = found[side] / found["public"]
            shown = f"public {found['public']:.0f} MiB, {side} {found[side]:.0f} MiB"
            print(f"S/2 4096 tokens, memory: {shown}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
