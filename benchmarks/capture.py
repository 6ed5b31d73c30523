"""What recording costs a forward: DiT of diffusers (S/2, B/2 shapes, random weights), with and without capture().

    python benchmarks/capture.py [--tokens 256 1024]

Three uses, each with the context entered anew for every forward as a training step does: `teacher` (no graph, every
Capture handed to a sink and let go), `student` (with a graph, the Captures held), and `held` (no graph, held).
No loss is computed.
"""

import torch
from _measure import in_turn, parse, parser
from diffusers import DiTTransformer2DModel

from dit_shd import capture

SHAPES = {"S/2": dict(num_attention_heads=6, num_layers=12), "B/2": dict(num_attention_heads=12, num_layers=12)}
BATCH = {256: 4, 1024: 1, 4096: 1}


def build(size: str, tokens: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sample = 2 * int(tokens**0.5)
    return DiTTransformer2DModel(attention_head_dim=64, in_channels=4, sample_size=sample, patch_size=2, **SHAPES[size])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 1024], choices=sorted(BATCH))
    args = parse(options)
    for tokens in args.tokens:
        for size in SHAPES:
            model = build(size, tokens).eval()
            b, sample = BATCH[tokens], 2 * int(tokens**0.5)
            inputs = dict(timestep=torch.full((b,), 500), class_labels=torch.arange(b))
            x = torch.randn(b, 4, sample, sample)

            def forward() -> torch.Tensor:
                return model(x, **inputs).sample  # noqa: B023

            def recorded(**how) -> None:
                with capture(model, **how) as captures:  # noqa: B023
                    forward()
                    len(captures)

            def teacher() -> None:
                with torch.no_grad():
                    recorded(sink=lambda *_: None)

            plain = torch.no_grad()(forward)
            sides = {
                "no graph": plain,
                "teacher": teacher,
                "held": torch.no_grad()(recorded),
                "graph": forward,
                "student": recorded,
            }
            seconds = in_turn(sides, args.repeats)
            for use, reference in (("teacher", "no graph"), ("held", "no graph"), ("student", "graph")):
                times = f"{seconds[reference] * 1e3:.1f} ms, recorded {seconds[use] * 1e3:.1f} ms"
                ratio = seconds[use] / seconds[reference]
                print(f"{size} {tokens} tokens, batch {b}, {use}: {times}, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
