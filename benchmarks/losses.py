"""Every distillation loss on MDTv2-B/2 -> S/2: what it adds to a training step, in time, memory and parameters.

    python benchmarks/losses.py [--tokens 256 4096] [--losses shd feature ...]

One layer: forward and backward of the loss on its last pair of layers at batch 1 (the whole loss where it has none:
lift, output, vitkd, align_to_distill), beside what a step takes without it. Step: one plain pass, noise prediction, one
step of AdamW, with the loss against without it; at 4,096 tokens the student recomputes its blocks.
Batch 2 at 256 tokens, 1 at 4,096. Random weights and noise. Sides in turn; memory by a process for each side.

minilm wants equal heads, so it is measured on a student with the teacher's 12; its reference is that student's step.
repa (which needs an encoder) and the losses of logits (kd, nkd) are left out.
"""

import argparse
from collections.abc import Callable

import torch
from _measure import child, in_turn, parse, parser, peak_mib

from dit_shd.core.plugins import Plugin
from dit_shd.distillation import recording
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LAYERS, LOSSES, LayerLoss, Reads
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion

TASK = Diffusion(mask_ratio=None)
BATCH = {256: 2, 4096: 1}
OPTIONS = {
    "tinybert": {"heads": "mean"},
    "vitkd": {"student_width": 384, "teacher_width": 768, "prefix_tokens": 0},
}
LEFT_OUT = ("repa", "kd", "nkd")
NAMES = [name for name in LOSSES.names() if name not in LEFT_OUT]


def heads_of(name: str) -> int:
    """Heads of the student that a loss is measured on."""
    return 12 if name == "minilm" else 6


def models(tokens: int, heads: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Teacher and student with weights that let attention do something (adaLN-Zero would not)."""
    torch.manual_seed(0)
    side = 2 * int(tokens**0.5)
    teacher = MDTv2.from_options("B/2", sample_size=side).eval().requires_grad_(False)
    student = MDTv2.from_options("S/2", sample_size=side, num_attention_heads=heads, attention_head_dim=384 // heads)
    for model in (teacher, student):
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02)
    return teacher, student


def losses(name: str) -> list:
    """The loss of a side; none for the reference."""
    return [] if name == "none" else [LOSSES.build(Plugin(name, OPTIONS.get(name, {})))]


class Step:
    """A training step with a loss."""

    def __init__(self, name: str, tokens: int, heads: int):
        self.teacher, student = models(tokens, heads)
        if tokens == 4096:
            student.enable_gradient_checkpointing()
        self.distiller = Distiller(TASK, student, losses(name))
        (self.batch,) = TASK.example(student, BATCH[tokens], torch.device("cpu"))
        self.distiller.build(TASK.example(student, 1, torch.device("cpu")), self.teacher)
        self.optimizer = torch.optim.AdamW(self.distiller.parameters(), lr=1e-4)

    def __call__(self) -> None:
        self.distiller(self.batch, self.teacher)[0].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Layers:
    """One forward of both models at batch 1, with all that losses read, for the losses apart from the models."""

    def __init__(self, tokens: int, heads: int):
        teacher, student = models(tokens, heads)
        (self.batch,) = TASK.example(student, 1, torch.device("cpu"))
        read = frozenset({Reads.OUTPUT}) | LAYERS
        with torch.no_grad():
            self.student, self.teacher = (recording.forward(TASK, m, self.batch, read) for m in (student, teacher))

    def run(self, name: str) -> tuple[Callable[[], None], int, int]:
        """Forward and backward of a loss on its last pair of layers; how many pairs it has, and parameters."""
        (loss,) = losses(name)
        with torch.no_grad():
            loss.build(self.student, self.teacher, self.batch)
        pairs = {"": ""}
        if isinstance(loss, LayerLoss):
            own, other = self.student.layers(loss.kind), self.teacher.layers(loss.kind)
            pairs = loss.layer_map(own, other)
            last = list(pairs)[-1]

        def run() -> None:
            if isinstance(loss, LayerLoss):
                value = loss.pair(leaf(own[last]), other[pairs[last]], self.batch).value
            else:
                value = loss.term(leaves(self.student), self.teacher, self.batch).value
            if value.requires_grad:
                value.sum().backward()

        return run, len(pairs), sum(p.numel() for p in loss.parameters())


def leaf(layer):
    """A layer whose tensors want a gradient."""
    if layer.hidden is not None:
        return type(layer)(layer.name, hidden=layer.hidden.detach().requires_grad_())
    found = layer.attention.detach()
    for x in (found.query, found.key, found.value):
        x.requires_grad_()
    return type(layer)(layer.name, attention=found)


def leaves(forward):
    """A forward whose layers and prediction want a gradient."""
    kinds = ("attention", "attention_output", "hidden")
    layers = {kind: {name: leaf(layer) for name, layer in getattr(forward, kind).items()} for kind in kinds}
    return type(forward)(forward.prediction.clone().requires_grad_(), forward.extra, **layers)


def memory(case: dict) -> float:
    step = Step(case["name"], case["tokens"], case["heads"])
    for _ in range(2):  # the first step does not know the teacher's layers yet
        step()
    return peak_mib()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 4096], choices=sorted(BATCH))
    options.add_argument("--losses", nargs="+", default=NAMES, choices=NAMES)
    options.add_argument("--no-steps", action="store_true", help="one layer alone, beside a step without the loss")
    options.add_argument("--no-memory", action="store_true", help="leave out the peaks, which take a process each")
    options.add_argument("--memory-alone", action="store_true", help="the peaks alone")
    args = parse(options, memory)
    for tokens in args.tokens:
        print(f"\n{tokens} tokens, batch {BATCH[tokens]}")
        print("| loss | pairs | a pair / step without | step / step without | more memory, MiB | parameters, M |")
        print("|---|---|---|---|---|---|", flush=True)
        for heads in (6, 12):
            names = [name for name in args.losses if heads_of(name) == heads]
            if names:
                rows(names, tokens, heads, args)


def rows(names: list[str], tokens: int, heads: int, args: argparse.Namespace) -> None:
    """Measure and print a row for each of some losses on a student of so many heads."""
    case = {"name": "none", "tokens": tokens, "heads": heads, "threads": args.threads}
    base = None if args.no_memory else child(case)
    if args.memory_alone:
        for name in names:
            print(f"| {name} | - | - | - | {child({**case, 'name': name}) - base:.0f} | - |", flush=True)
        return
    reference, layers = Step("none", tokens, heads), Layers(tokens, heads)
    alone = in_turn({"step": reference}, args.repeats)["step"] if args.no_steps else None
    for name in names:
        run, pairs, parameters = layers.run(name)
        if alone is None:
            step = Step(name, tokens, heads)
            seconds = in_turn({"without": reference, "with": step, "pair": run}, args.repeats)
            share, ratio = seconds["pair"] / seconds["without"], f"{seconds['with'] / seconds['without']:.3f}"
        else:
            share, ratio = in_turn({"pair": run}, args.repeats)["pair"] / alone, "-"
        more = "-" if base is None else f"{child({**case, 'name': name}) - base:.0f}"
        print(f"| {name} | {pairs} | {share:.4f} | {ratio} | {more} | {parameters / 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()
