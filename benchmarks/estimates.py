"""What is lost by approximations: SHD from some of the query rows, and with the teacher in bfloat16.

    python benchmarks/estimates.py [--tokens 256]

MDTv2-B/2 -> S/2 with random weights, plain pass. Rows: the relative error of the loss and of its gradient (all student
parameters as one vector) over 5 draws, and the time of squeeze and divergence. bfloat16: the same errors, the change of
alpha, and the time of a whole training step (benchmarks/step.py), teacher in bfloat16 against float32 everywhere.
"""

import statistics
import time

import torch
from _measure import in_turn, parse, parser
from step import BATCH, TASK, batches, models, step

from dit_shd.attention.recording.attach import capture
from dit_shd.distillation.losses.shd import SHD


def loss_and_gradient(loss: SHD, teacher, student, batch) -> tuple[float, torch.Tensor, dict, float]:
    with capture(teacher) as theirs, capture(student) as ours:
        with torch.no_grad():
            TASK.predict(teacher, batch)
        TASK.predict(student, batch)
    start = time.perf_counter()
    term = loss.divergence(theirs, ours)
    seconds = time.perf_counter() - start
    student.zero_grad()
    term.value.mean().backward()
    grads = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
    return term.value.mean().item(), torch.cat(grads), term.logs, seconds


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=256, choices=sorted(BATCH))
    args = parse(options)
    teacher, student = models(args.tokens)
    batch = batches(args.tokens)[0]
    where = f"{args.tokens} tokens, batch {BATCH[args.tokens]}"
    value, gradient, logs, seconds = loss_and_gradient(SHD(), teacher, student, batch)
    for rows in (0.5, 0.25, 0.1):
        draws = [loss_and_gradient(SHD(rows=rows), teacher, student, batch) for _ in range(5)]
        errors = [abs(d[0] - value) / value for d in draws], [off(d[1], gradient) for d in draws]
        loss_error, gradient_error = (statistics.mean(e) for e in errors)
        ratio = statistics.median(d[3] for d in draws) / seconds
        print(f"{where}, rows={rows}: loss off by {loss_error:.2%}, gradient by {gradient_error:.2%}; time {ratio:.2f}")
    low = models(args.tokens, low=True)[0]
    rough_value, rough_gradient, rough, _ = loss_and_gradient(SHD(), low, student, batch)
    alphas = [abs(float(rough[k] - logs[k])) for k in logs if k.startswith("alpha/")]
    print(
        f"{where}, teacher in bfloat16: loss off by {abs(rough_value - value) / value:.2%}, gradient by "
        f"{off(rough_gradient, gradient):.2%}, a layer's mean alpha by at most {max(alphas):.4f}"
    )
    with step("with", args.tokens) as fine, step("with", args.tokens, low=True) as rough_step:
        seconds_of = in_turn({"float32": fine, "bfloat16 teacher": rough_step}, args.repeats)
    ratio = seconds_of["bfloat16 teacher"] / seconds_of["float32"]
    print(
        f"{where}, whole step: " + ", ".join(f"{k} {v:.2f} s" for k, v in seconds_of.items()) + f", ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    main()
