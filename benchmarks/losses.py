"""Every distillation loss on MDTv2-B/2 -> S/2: what it adds to a training step, in time, memory and parameters.

    python benchmarks/losses.py [--tokens 256 4096] [--losses shd feature ...]

One layer: forward and backward of the loss on its last pair of layers at batch 1 (the whole loss where it has none:
lift, output, vitkd, align_to_distill), beside what a step takes without it. Step: one plain pass,
noise prediction, one step of AdamW, with the loss against without it; at 4,096 tokens the student recomputes its blocks.
Batch 2 at 256 tokens, 1 at 4,096. Random weights and noise. Sides in turn; memory by a process for each side.

minilm wants equal heads, so it is measured on a student with the teacher's 12; its reference is that student's step.
repa (which needs an encoder) and the losses of logits (kd, nkd) are left out.
"""

import torch
from _measure import child, in_turn, parse, parser, peak_mib

from dit_shd.core.plugins import Plugin
from dit_shd.distillation import recording
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES, LayerLoss
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

    @property
    def parameters(self) -> int:
        """What the loss learns."""
        return sum(p.numel() for p in self.distiller.losses.parameters())


class Layer:
    """Forward and backward of a loss on one pair of layers, apart from the models."""

    def __init__(self, name: str, tokens: int):
        teacher, student = models(tokens, heads_of(name))
        (batch,) = TASK.example(student, 1, torch.device("cpu"))
        (self.loss,) = losses(name)
        with torch.no_grad():
            s, t = (recording.forward(TASK, model, batch, self.loss.reads) for model in (student, teacher))
        self.loss.build(s, t, batch)
        if isinstance(self.loss, LayerLoss):
            pairs = self.loss.layer_map(s.layers(self.loss.kind), t.layers(self.loss.kind))
            last = list(pairs)[-1]
            self.run = lambda: self.loss.pair(
                leaf(s.layers(self.loss.kind)[last]), t.layers(self.loss.kind)[pairs[last]], batch
            )
        else:
            self.run = lambda: self.loss.term(leaves(s), t, batch)

    def __call__(self) -> None:
        value = self.run().value.sum()
        if value.requires_grad:
            value.backward()


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
    options.add_argument("--no-memory", action="store_true", help="leave out the peaks, which take a process each")
    args = parse(options, memory)
    for tokens in args.tokens:
        print(f"\n{tokens} tokens, batch {BATCH[tokens]}")
        print("| loss | one layer / step without | step / step without | more memory, MiB | parameters, M |")
        print("|---|---|---|---|---|", flush=True)
        references = {}
        for name in args.losses:
            heads = heads_of(name)
            if heads not in references:
                reference = Step("none", tokens, heads)
                case = {"name": "none", "tokens": tokens, "heads": heads, "threads": args.threads}
                references[heads] = reference, None if args.no_memory else child(case)
            reference, base = references[heads]
            layer, step = Layer(name, tokens), Step(name, tokens, heads)
            seconds = in_turn({"without": reference, "with": step, "layer": layer}, args.repeats)
            share, ratio = (seconds[side] / seconds["without"] for side in ("layer", "with"))
            more = "-"
            if base is not None:
                case = {"name": name, "tokens": tokens, "heads": heads, "threads": args.threads}
                more = f"{child(case) - base:.0f}"
            print(f"| {name} | {share:.4f} | {ratio:.3f} | {more} | {step.parameters / 1e6:.2f} |", flush=True)
            del layer, step


if __name__ == "__main__":
    main()
