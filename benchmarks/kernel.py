"""One attention layer of SHD, forward and backward: ours against the materialising form, and the models' own attention.

    python benchmarks/kernel.py [--tokens 256 1024 4096 8192]

b = 1, 12 teacher heads into 6, width 64, no bias. The reference is tests/oracle.py in float32: whole maps, whole n x e
products, autograd. "Own attention" is what both models do anyway: teacher forward, student forward and backward, by
scaled_dot_product_attention. Memory is what each side adds to a process of its own (peak resident).
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from _measure import child, extra_mib, in_turn, parse, parser

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import Buffers
from dit_shd.squeezing.divergence import attached, divergence_job, gradients_of
from dit_shd.squeezing.plans import contiguous
from dit_shd.squeezing.projections import Projections
from dit_shd.squeezing.squeeze import squeeze

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle

H, G, D, E = 12, 6, 64, 768
REFERENCE_MOST = 4096
"""Tokens up to which the materialising form fits this benchmark (8192: about 18 GB)."""


def layers(n: int) -> tuple[Capture, Capture]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, H, n, D) for _ in range(3))
    mixed = F.scaled_dot_product_attention(q, k, v)  # the teacher's forward has it
    teacher = Capture(q, k, v, D**-0.5, out=torch.randn(H, D, E) / E**0.5, mixed=mixed)
    q, k, v = (torch.randn(1, G, n, D, requires_grad=True) for _ in range(3))
    return teacher, Capture(q, k, v, D**-0.5)


def sides(n: int, backend: str = "streamed"):
    teacher, student = layers(n)
    projections = Projections()  # as in training: the factors of W^O and scratch memory once, no look at numbers
    again = {"buffers": Buffers(torch.float32, teacher.query.device), "check": False}

    def ours() -> None:
        squeezed = squeeze(teacher, G, backend=backend, keep_maps=True, projections=projections, **again)
        job, run = divergence_job(teacher, student, squeezed, backend=backend, **again)
        attached(student, gradients_of(job, run)).sum().backward()

    def reference() -> None:
        with torch.no_grad():
            a = oracle.maps(teacher.query, teacher.key, teacher.scale)
            x = oracle.head_outputs(teacher.value, teacher.out)
            w, _ = oracle.merge_progressively(a, x, contiguous(H, G))
        b = oracle.maps(student.query, student.key, student.scale)
        oracle.divergence(a, b, w).sum().backward()

    def own() -> None:
        with torch.no_grad():
            F.scaled_dot_product_attention(teacher.query, teacher.key, teacher.value)
        F.scaled_dot_product_attention(student.query, student.key, student.value).sum().backward()

    return {"reference": reference, "ours": ours, "own": own}


def memory(case: dict) -> float:
    return extra_mib(sides(case["tokens"], case["backend"])[case["side"]])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    options.add_argument("--backend", default="streamed", choices=["streamed", "fused"])
    options.add_argument("--cpu", action="store_true", help="CPU seconds, not wall time, and no memory: a busy machine")
    args = parse(options, memory)
    for n in args.tokens:
        runs = sides(n, args.backend)
        if n > REFERENCE_MOST:
            del runs["reference"]
        seconds = in_turn(runs, args.repeats, time.process_time if args.cpu else time.perf_counter)
        case = {"tokens": n, "threads": args.threads, "backend": args.backend}
        mib = {} if args.cpu else {side: child({**case, "side": side}) for side in runs}
        ratios = [f"of own attention {seconds['ours'] / seconds['own']:.2f}"]
        if n <= REFERENCE_MOST:
            ratios += [f"of reference {seconds['ours'] / seconds['reference']:.3f}"]
            if mib:
                ratios += [f"memory of reference {mib['ours'] / mib['reference']:.3f}"]
        times = ", ".join(f"{side} {seconds[side]:.4f} s" + (f" {mib[side]:.0f} MiB" if mib else "") for side in runs)
        print(f"{n} tokens: {times}; {', '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
