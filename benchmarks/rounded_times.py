"""What a trained transformer predicts at times that are rounded to bfloat16, against what bfloat16 arithmetic changes.

FLUX, Chroma, Qwen-Image and others round the time to the precision of their latents, before and after the factor 1000;
a teacher in bfloat16 is asked so, a student in float32 is not. The shipped pipeline's transformer (SD3's class) rounds
none: here it is asked at both.
"""

import argparse
import copy
import random
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

import dit_shd

PIPELINE = Path(dit_shd.__file__).parent / "assets" / "captioned_digits"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=48)
    count = parser.parse_args().samples
    pipeline = StableDiffusion3Pipeline.from_pretrained(str(PIPELINE))
    pipeline.set_progress_bar_config(disable=True)
    draw = random.Random(0)
    prompts = [f"a {draw.choice(WORDS)}" for _ in range(count)]
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 10, "guidance_scale": 1.0, "output_type": "latent"}
    x_0 = pipeline(prompts, generator=generator, **options).images
    text, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False)
    time, noise = torch.rand(count, generator=generator), torch.randn(x_0.shape, generator=generator)
    share = time[:, None, None, None]
    x_t, whole = (1 - share) * x_0 + share * noise, pipeline.transformer.eval()
    half = copy.deepcopy(whole).bfloat16()

    @torch.no_grad()
    def ask(model: torch.nn.Module, at: torch.Tensor) -> torch.Tensor:
        x, e, p = (part.to(next(model.parameters()).dtype) for part in (x_t, text, pooled))
        return model(x, encoder_hidden_states=e, pooled_projections=p, timestep=1000 * at, return_dict=False)[0].float()

    exact = ask(whole, time)
    rounded = (1000 * time.bfloat16()).float() / 1000
    print(f"{count} samples, relative change of the prediction:  median  90%  largest")
    for name, prediction in {
        "float32 at rounded times": ask(whole, rounded),
        "bfloat16 at exact times": ask(half, time),
        "bfloat16 at rounded times": ask(half, rounded),
    }.items():
        change = (prediction - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        print(f"{name:<26} {change.median():.4f} {change.quantile(0.9):.4f} {change.max():.4f}")


if __name__ == "__main__":
    main()
