"""Sampling: ours against the public MDT loop, same weights, same noise, same steps, float32, same threads.

    python benchmarks/sampling.py --public /path/to/MDT [--model digits s2] [--images 16] [--steps 250]

Public: SpacedDiffusion.p_sample_loop over forward_with_cfg, with our noise at hand for nothing. Ours: what
`sampler.draw` runs before it decodes, noise included, at the default settings; and with guidance_tolerance=0, where
the images must be the public ones. `digits` is the packaged teacher (49 tokens), `s2` is S/2 at 256 tokens with random
weights. The public code is not part of this repository: clone github.com/sail-sg/MDT anywhere and name the folder.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _measure import parse, parser
from model import public_module
from torch import Tensor

from dit_shd.core import rng
from dit_shd.diffusion.guidance import Guided, guidance_weight
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import label_plan
from dit_shd.diffusion.schedule import Schedule
from dit_shd.diffusion.solvers import denoise
from dit_shd.models.families.mdt import MDTv2, kept_biases
from dit_shd.models.loading import load

CPU = torch.device("cpu")
DIGITS = dict(input_size=28, patch_size=4, in_channels=1, hidden_size=96, depth=6, num_heads=4, decode_layer=2)
S2 = dict(input_size=32, hidden_size=384, depth=12, num_heads=6, decode_layer=6)


def models(name: str, path: str) -> tuple[torch.nn.Module, Any]:
    """The public model and ours, with one set of weights."""
    public = public_module(path)
    if name == "digits":
        ours: Any = load("asset:digits_teacher").eval()
        theirs = public.MDTv2(**DIGITS, num_classes=10, mask_ratio=0.3).eval()
        theirs.load_state_dict(ours.to_public())
        return theirs, ours
    torch.manual_seed(0)
    theirs = public.MDTv2(**S2, mask_ratio=0.3).eval()
    for p in theirs.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.02)
    return theirs, MDTv2.from_public(theirs.state_dict()).eval()


def public_loop(theirs: torch.nn.Module, config: SampleConfig, shape: tuple, labels: Tensor, null: int) -> Callable:
    """The public loop over our noise: the start, then one draw for every step but the last."""
    diffusion = importlib.import_module("masked_diffusion.gaussian_diffusion")
    respace = importlib.import_module("masked_diffusion.respace")
    process = respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, [config.steps]),
        betas=diffusion.get_named_beta_schedule("linear", 1000),
        model_mean_type=diffusion.ModelMeanType.EPSILON,
        model_var_type=diffusion.ModelVarType.LEARNED_RANGE,
        loss_type=diffusion.LossType.MSE,
    )
    noises = (rng.normal(config.seed, "sample", i, range(config.count), shape) for i in range(config.steps))
    start, *later = [torch.cat([z, z]) for z in noises]
    extra = dict(
        y=torch.cat([labels, torch.full_like(labels, null)]),
        cfg_scale=config.guidance,
        diffusion_steps=config.diffusion_steps,
        scale_pow=config.guidance_power,
    )
    loop, model = process.p_sample_loop, theirs.forward_with_cfg

    def run() -> Tensor:
        fresh, randn_like = iter([*reversed(later), start]), torch.randn_like
        torch.randn_like = lambda x: next(fresh)
        try:
            found = loop(model, start.shape, start, clip_denoised=False, model_kwargs=extra, device=CPU)
        finally:
            torch.randn_like = randn_like
        return found[: config.count]

    return run


def our_loop(ours: Any, config: SampleConfig, shape: tuple, labels: Tensor) -> Callable[[], Tensor]:
    """What `sampler.draw` runs before it decodes."""
    guided = Guided(ours, labels, config)
    guided.guided = 3  # outputs, as the public code has it: of a model with one channel that is the variance too

    def run() -> Tensor:
        with kept_biases(ours, torch.float32):
            return denoise(guided, config, range(config.count), shape, CPU)

    return run


def timed(sides: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """What each side gives, and its median seconds and CPU seconds; the sides take turns."""
    found: dict[str, Tensor] = {}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found, {name: [statistics.median(column) for column in zip(*rows)] for name, rows in times.items()}


def levels(a: Tensor, b: Tensor) -> str:
    """How far two sets of pixels in [-1, 1] are apart, in levels of uint8."""
    apart = (a.clamp(-1, 1) - b.clamp(-1, 1)).abs() * 127.5
    same = (((a + 1) * 127.5).clamp(0, 255).byte() == ((b + 1) * 127.5).clamp(0, 255).byte()).float().mean()
    under = (apart < 1).float().mean()
    return f"{under:.4%} of values under one level apart, {same:.4%} equal, at most {apart.max():.3g}"


def guided_steps(config: SampleConfig) -> int:
    """Steps whose unconditional half is computed."""
    weights = [guidance_weight(config, int(t) / 1000) for t in Schedule.linear().respaced(config.steps).timesteps]
    return sum(abs(weight - 1) > config.guidance_tolerance for weight in weights)


@torch.no_grad()
def main() -> None:
    options = parser(__doc__)
    options.add_argument("--public", help="a folder with the public MDT code")
    options.add_argument("--model", nargs="+", default=["digits"], choices=["digits", "s2"])
    options.add_argument("--images", type=int, default=16, help="images in the one batch")
    options.add_argument("--steps", type=int, default=250)
    args = parse(options)
    if not args.public or not Path(args.public, "masked_diffusion").is_dir():
        sys.exit("sampling.py: --public: no folder with the public MDT code (git clone https://github.com/sail-sg/MDT)")
    config = SampleConfig(count=args.images, batch_size=args.images, steps=args.steps)
    for name in args.model:
        theirs, ours = models(name, args.public)
        own = ours.config
        shape = (own.in_channels, own.sample_size, own.sample_size)
        labels = torch.from_numpy(label_plan(config, range(own.num_classes), range(config.count)))
        sides = {
            "public": public_loop(theirs, config, shape, labels, own.num_classes),
            "full": our_loop(ours, replace(config, guidance_tolerance=0.0), shape, labels),
            "default": our_loop(ours, config, shape, labels),
        }
        found, seconds = timed(sides, args.repeats)
        print(f"{name}: {args.images} images, {args.steps} steps, {guided_steps(config)} of them guided by default")
        for side in ("full", "default"):
            ratio, cpu_ratio = (a / b for a, b in zip(seconds[side], seconds["public"]))
            print(
                f"  {side}: public {seconds['public'][0]:.1f} s, ours {seconds[side][0]:.1f} s, ratio {ratio:.3f}",
                end="",
            )
            print(f", in CPU time {cpu_ratio:.3f}; against public {levels(found[side], found['public'])}")
        print(f"  default against full: {levels(found['default'], found['full'])}", flush=True)


if __name__ == "__main__":
    main()
