"""A whole training step of MDTv2-B/2 -> S/2 at true size, with SHD against without.

    python benchmarks/step.py [--tokens 256 4096]

Plain and masked pass, noise prediction and output distillation in both, SHD on the plain pass, one optimizer step with
AdamW and gradient clipping. Batch 8 at 256 tokens, 1 at 4096. Random weights and noise. Time in one process, the two
sides in turn; peak memory (resident, the whole process) in a process for each side.
"""

import time
from contextlib import contextmanager

import torch
from _measure import child, in_turn, parse, parser, peak_mib

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.output import Output
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch

TASK = Diffusion()
BATCH = {256: 8, 1024: 2, 4096: 1}


def models(tokens: int, low: bool = False, **options: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Teacher and student, B/2 and S/2 but for options; with weights that let attention do something."""
    torch.manual_seed(0)
    side = 2 * int(tokens**0.5)
    teacher = MDTv2.from_options("B/2", sample_size=side, **options).eval().requires_grad_(False)
    student = MDTv2.from_options("S/2", sample_size=side, **options)
    for model in (teacher, student):
        for p in model.parameters():  # adaLN-Zero would not let it do anything
            torch.nn.init.normal_(p, std=0.02)
    return (teacher.bfloat16() if low else teacher), student


def batches(tokens: int, b: int | None = None) -> list[NoisyBatch]:
    """A plain and a masked pass (40% of the tokens hidden)."""
    b, side = b or BATCH[tokens], 2 * int(tokens**0.5)
    x, noise, t = torch.randn(b, 4, side, side), torch.randn(b, 4, side, side), torch.full((b,), 300)
    keep = torch.stack([torch.randperm(tokens)[: int(tokens * 0.6)].sort().values for _ in range(b)])
    labels = torch.arange(b)
    x_t = TASK.process.add_noise(x, noise, t)
    kept = {"plain": None, "masked": keep}
    return [NoisyBatch(name, 0, labels, x, noise, x_t, t, labels, kept[name]) for name in TASK.passes]


@contextmanager
def step(side: str, tokens: int, low: bool = False):
    """Yields a function that takes one step."""
    teacher, student = models(tokens, low)
    if tokens == 4096:
        student.enable_gradient_checkpointing()
    losses = [Output(), SHD()] if side == "with" else [Output()]
    distiller = Distiller(TASK, student, losses)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    drawn = batches(tokens)

    def run() -> None:
        for batch in drawn:
            distiller(batch, teacher)[0].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    yield run


def memory(case: dict) -> float:
    BATCH[case["tokens"]] = case["images"]
    with step(case["side"], case["tokens"]) as run:
        for _ in range(2 if case["tokens"] < 4096 else 1):  # the first step does not know the teacher's layers yet
            run()
    return peak_mib()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 4096], choices=sorted(BATCH))
    options.add_argument("--cpu", action="store_true", help="CPU seconds, not wall time, and no memory: a busy machine")
    options.add_argument("--images", type=int, help="another batch")
    args = parse(options, memory)
    for tokens in args.tokens:
        BATCH[tokens] = args.images or BATCH[tokens]
        with step("without", tokens) as without, step("with", tokens) as with_shd:
            clock = time.process_time if args.cpu else time.perf_counter
            seconds = in_turn({"without": without, "with": with_shd}, args.repeats, clock)
        ratio = seconds["with"] / seconds["without"]
        what = f"{tokens} tokens, batch {BATCH[tokens]}"
        times = f"without SHD {seconds['without']:.2f} s, with {seconds['with']:.2f} s"
        print(f"{what}: {times}, ratio {ratio:.3f}{' of CPU time' if args.cpu else ''}", flush=True)
        if args.cpu:
            continue
        case = {"tokens": tokens, "threads": args.threads, "images": BATCH[tokens]}
        peaks = {side: child({**case, "side": side}) for side in ("without", "with")}
        ratio = peaks["with"] / peaks["without"]
        shown = f"without SHD {peaks['without']:.0f} MiB, with {peaks['with']:.0f} MiB"
        print(f"{what}, peak memory of the process: {shown}, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
