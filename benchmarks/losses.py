"""Every distillation loss on MDTv2-B/2 -> S/2: what it adds to a step that distils outputs, in CPU time and memory.

    python benchmarks/losses.py [--tokens 256 4096] [--losses shd feature ...] [--parts layer step] [--out FILE]

layer: forward and backward of the loss on its last pair of layers at batch 1 (the whole loss where it is no sum over
layers), its peak memory and its parameters. step: noise prediction, output distillation and one step of AdamW in a
plain pass, with the loss in turn with the same models without it; at 4,096 tokens the student recomputes its blocks.
Batch 2 at 256 tokens, 1 at 4,096. Random weights and noise. minilm wants equal heads, so its student has the
teacher's 12 and so has its reference. repa (which needs an encoder) and the losses of logits (kd, nkd) are left out.

Times are CPU seconds of the process (one thread), so that other work on the machine does not count. Every
measurement runs in a process of its own and is a line of FILE as soon as it is known; the same command goes on with
those that are missing. The table is printed at the end, and from what there is by --table.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import child, in_turn, parse, parser, peak_mib, reset_peak

from dit_shd.core.plugins import Plugin
from dit_shd.distillation import recording
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LAYERS, LOSSES, LayerLoss, Reads
from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion

TASK = Diffusion(mask_ratio=None)
BATCH = {256: 2, 4096: 1}
PARTS = ("layer", "step")
OPTIONS = {
    "tinybert": {"heads": "mean"},
    "vitkd": {"student_width": 384, "teacher_width": 768, "prefix_tokens": 0},
}
LEFT_OUT = ("repa", "kd", "nkd", "output")
FIRST = ("shd", "feature", "self_correlation", "vkd", "minilmv2")
NAMES = [*FIRST, *(name for name in LOSSES.names() if name not in (*FIRST, *LEFT_OUT))]
NO_TEACHER = "no teacher"
"""The row of a step without any distillation."""


def models(name: str, tokens: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Teacher and student with weights that let attention do something (adaLN-Zero would not)."""
    torch.manual_seed(0)
    side = 2 * int(tokens**0.5)
    heads = 12 if name == "minilm" else 6
    teacher = MDTv2.from_options("B/2", sample_size=side).eval().requires_grad_(False)
    student = MDTv2.from_options("S/2", sample_size=side, num_attention_heads=heads, attention_head_dim=384 // heads)
    for model in (teacher, student):
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.02)
    return teacher, student


def loss_of(name: str):
    """A loss by its name, with the options that these models want."""
    return LOSSES.build(Plugin(name, OPTIONS.get(name, {})))


class Step:
    """A training step with some losses."""

    def __init__(self, names: list[str], models: tuple[torch.nn.Module, torch.nn.Module], tokens: int):
        self.teacher, student = models
        self.distiller = Distiller(TASK, student, [loss_of(name) for name in names])
        (self.batch,) = TASK.example(student, BATCH[tokens], torch.device("cpu"))
        self.distiller.build(TASK.example(student, 1, torch.device("cpu")), self.teacher)
        self.optimizer = torch.optim.AdamW(self.distiller.parameters(), lr=1e-4)
        for p in self.distiller.parameters():
            p.grad = torch.zeros_like(p)
        self.optimizer.step()  # the moments are there from the first step on
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        self.distiller(self.batch, self.teacher)[0].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step(name: str, tokens: int, repeats: int) -> dict:
    """CPU seconds and peaks of a step without a loss and with it, once both know the order of the teacher's layers."""
    both = models(name, tokens)
    if tokens == 4096:
        both[1].enable_gradient_checkpointing()
    reference = Step(["output"], both, tokens)
    without = once(reference)
    reference.optimizer.state.clear()  # the same student's moments, which the other side has, too
    added = Step([] if name == NO_TEACHER else ["output", name], both, tokens)
    added()
    with_it = once(added)
    seconds = {"without": without[0], "with": with_it[0]}
    if repeats > 1:
        seconds = in_turn({"without": reference, "with": added}, repeats, time.process_time)
    return {f"{side}_s": value for side, value in seconds.items()} | {"without_mib": without[1], "with_mib": with_it[1]}


class Layers:
    """One forward of both models at batch 1, with all that losses read, for the losses apart from the models."""

    def __init__(self, both: tuple[torch.nn.Module, torch.nn.Module]):
        (self.batch,) = TASK.example(both[1], 1, torch.device("cpu"))
        read = frozenset({Reads.OUTPUT}) | LAYERS
        with torch.no_grad():
            self.teacher, self.student = (recording.forward(TASK, model, self.batch, read) for model in both)

    def run(self, name: str) -> tuple[Callable[[], None], int, int]:
        """Forward and backward of a loss on its last pair of layers; how many pairs it has, and parameters."""
        loss = loss_of(name)
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


def layer(name: str, tokens: int, repeats: int) -> dict:
    """CPU seconds and peak of a loss on one pair of layers."""
    run, pairs, parameters = Layers(models(name, tokens)).run(name)
    run()
    before = reset_peak()
    seconds, peak = once(run)
    if repeats > 1:
        seconds = in_turn({"pair": run}, repeats, time.process_time)["pair"]
    return {"pairs": pairs, "pair_s": seconds, "pair_mib": peak - before, "parameters": parameters}


def once(run: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of one run, and the process's peak memory in it, in MiB."""
    reset_peak()
    start = time.process_time()
    run()
    return time.process_time() - start, peak_mib()


def measure(case: dict) -> dict:
    """One line of the file."""
    part = {"layer": layer, "step": step}[case["part"]]
    return part(case["name"], case["tokens"], case["repeats"])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, nargs="+", default=[256, 4096], choices=sorted(BATCH))
    options.add_argument("--losses", nargs="+", default=[*NAMES, NO_TEACHER], choices=[*NAMES, NO_TEACHER])
    options.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    options.add_argument("--out", type=Path, default=Path("losses.jsonl"), help="the lines; those in it are not redone")
    options.add_argument("--table", action="store_true", help="measure nothing")
    args = parse(options, measure)
    lines = {} if not args.out.exists() else read(args.out)
    for tokens in args.tokens:
        for part in args.parts:
            for name in args.losses:
                if args.table or (tokens, name, part) in lines or (name, part) == (NO_TEACHER, "layer"):
                    continue
                repeats = args.repeats if tokens == 256 else 1
                case = {"name": name, "tokens": tokens, "part": part, "repeats": repeats, "threads": args.threads}
                line = case | child(case)
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                lines[tokens, name, part] = line
                print(json.dumps(line), flush=True)
        print("\n".join(table(tokens, lines)))


def read(file: Path) -> dict[tuple[int, str, str], dict]:
    """The lines of a file by tokens, loss and part."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {(line["tokens"], line["name"], line["part"]): line for line in lines}


def table(tokens: int, lines: dict) -> list[str]:
    """The lines of a number of tokens as a table, with - for what is not measured."""
    rows = [
        f"\n{tokens} tokens, a step of batch {BATCH[tokens]}",
        "| loss | pairs | a pair, s | all pairs / step without "
        "| a pair, MiB | step / step without | more memory of a step, MiB | parameters, M |",
        "|" + "---|" * 8,
    ]
    for name in (*NAMES, NO_TEACHER):
        pair, whole = lines.get((tokens, name, "layer")), lines.get((tokens, name, "step"))
        cells = ["-"] * 7
        if pair:
            cells[0], cells[1] = f"{pair['pairs']}", f"{pair['pair_s']:.3f}"
            cells[3], cells[6] = f"{pair['pair_mib']:.0f}", f"{pair['parameters'] / 1e6:.2f}"
        if pair and whole:
            cells[2] = f"{BATCH[tokens] * pair['pairs'] * pair['pair_s'] / whole['without_s']:.3f}"
        if whole:
            cells[4] = f"{whole['with_s'] / whole['without_s']:.3f}"
            cells[5] = f"{whole['with_mib'] - whole['without_mib']:.0f}"
        if pair or whole:
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
