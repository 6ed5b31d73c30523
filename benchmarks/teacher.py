"""What the teacher costs in a training step, and what is saved by running less of it.

    python benchmarks/teacher.py [--tokens 256]

MDTv2-B/2 -> S/2 at true size, random weights, plain and masked pass, forward and backward, SHD on the encoder's layers
(the first half of the model) in the plain pass. Reference: a teacher in float32 that runs in both passes to their end,
as output distillation needs it. Then: in the plain pass only; there only to the last layer that SHD looks at; the same
in bfloat16. And, for the bound, the student's own step without any teacher.
"""

from collections.abc import Callable

from _measure import in_turn, parse, parser
from step import BATCH, TASK, batches, models

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.output import Output
from dit_shd.distillation.losses.shd import SHD


def side(tokens: int, output: bool, cut: bool, low: bool = False, taught: bool = True) -> Callable[[], None]:
    """A function that runs both passes forward and backward."""
    teacher, student = models(tokens, low)
    drawn = batches(tokens)
    encoder = {f"{part}.{i}.attn": f"{part}.{i}.attn" for part in ("en_inblocks", "en_outblocks") for i in range(3)}
    losses = [SHD(layers=encoder), *([Output()] if output else [])] if taught else []
    distiller = Distiller(TASK, student, losses, stop_teacher_early=cut)

    def run() -> None:
        for batch in drawn:
            distiller(batch, teacher)[0].backward()
        student.zero_grad()

    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=256, choices=sorted(BATCH))
    args = parse(options)
    seconds = in_turn(
        {
            "both passes to the end": side(args.tokens, output=True, cut=False),
            "plain pass to the end": side(args.tokens, output=False, cut=False),
            "plain pass, cut": side(args.tokens, output=False, cut=True),
            "plain pass, cut, bfloat16": side(args.tokens, output=False, cut=True, low=True),
            "no teacher": side(args.tokens, output=False, cut=False, taught=False),
        },
        args.repeats,
    )
    whole = seconds["both passes to the end"]
    for name, found in seconds.items():
        print(f"{args.tokens} tokens, batch {BATCH[args.tokens]}, {name}: {found:.2f} s, ratio {found / whole:.3f}")


if __name__ == "__main__":
    main()
