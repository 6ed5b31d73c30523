"""Numbers that go bad: found, named, kept, left out; never in the weights."""

import json
import re

import pytest
import torch
from runs import contents, drawn_by, rows, run
from safetensors.torch import load_file
from two_process_jobs import said

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.models import export, loading
from dit_shd.tasks.diffusion import NoisyBatch
from dit_shd.training.bad_step import read_batches
from dit_shd.training.config import TrainConfig
from dit_shd.training.nan_guard import Guard
from dit_shd.training.replay import replay
from dit_shd.training.trainer import Trainer

BAD = 2
"""The step, counted from 0, in which something goes bad."""


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def poisoned(values, module, kind, **changes):
    """Steps and their trainer, in whose step BAD a module of student or teacher gives what is not finite."""
    trainer = Trainer.from_config(make(TrainConfig, {**values, "checkpoint_every": 99, **changes}))
    finished = [0]

    def hook(_module, _inputs, output):
        if finished[0] != BAD:
            return output
        return Poison.apply(output) if kind == "gradient" else output * float(kind)

    (trainer.teachers["teacher"] if module.startswith("teacher.") else trainer.student).get_submodule(
        module.partition(".")[2]
    ).register_forward_hook(hook)
    return counted(trainer.run_steps(), finished), trainer


def counted(steps, finished):
    for step in steps:
        finished[0] = step.number
        yield step


CASES = {
    "activation": (
        "student.en_inblocks.0.mlp",
        "nan",
        r"noise.*first in student.en_inblocks.0.mlp \(its output, plain",
    ),
    "overflow": ("student.final_layer", "inf", r"noise.*first in student.final_layer \(its output"),
    "teacher": ("teacher.de_blocks.0.norm1", "nan", r"output.*first in teacher.de_blocks.0.norm1 \(its output"),
    "teacher's attention": ("teacher.de_blocks.0.attn.qkv", "inf", r"shd.*first in teacher.de_blocks.0.attn.qkv"),
    "gradient": (
        "student.en_inblocks.0.mlp",
        "gradient",
        r"the gradient is not finite .*first in student.en_inblocks.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_step_stops_before_the_weights_and_is_named(values, case):
    module, kind, words = CASES[case]
    steps, trainer = poisoned(values, module, kind)
    for step in steps:
        if step.number == BAD:
            break
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    with pytest.raises(UserError, match=rf"step 3: .*{words}.*saved as of step 2.*skip_bad_steps=1 goes on"):
        next(steps)
    assert all(torch.equal(before[k], v) for k, v in trainer.student.state_dict().items())
    saved = trainer.folder.load()
    assert saved["step"] == BAD
    assert all(torch.equal(before[k], saved["distiller"][f"student.{k}"]) for k in before)
    assert export.exported_step(trainer.folder.student) == BAD
    file = trainer.folder.path / "bad_steps" / "step_00000003.safetensors"
    batches = {batch.pass_name: batch for batch in read_batches(file, NoisyBatch)}
    drawn = drawn_by(trainer, BAD, range(8))
    assert batches.keys() == drawn.keys()
    for name, batch in drawn.items():
        for field, value in vars(batch).items():
            kept = getattr(batches[name], field)
            assert torch.equal(value, kept) if isinstance(value, torch.Tensor) else value == kept


@pytest.mark.parametrize("limit", [0, 1])
def test_a_batch_that_cannot_be_kept_hides_no_bad_step(values, limit, caplog):
    """As on a full disk: the cause is named, and the steps before it are saved."""
    steps, trainer = poisoned(values, *CASES["activation"][:2], skip_bad_steps=limit, steps=4)
    (trainer.folder.path / "bad_steps").write_text("in the way")
    words = "step 3: the loss .*its batch is not kept .*bad_steps: cannot be written: File exists"
    if limit:
        assert [step.number for step in steps][-1] == 4 and re.search(words, caplog.text)
    else:
        with pytest.raises(UserError, match=words):
            list(steps)
        assert trainer.folder.load()["step"] == BAD


def test_a_bad_step_is_left_out_counted_and_nothing_else_changes(values, caplog):
    """The count survives resuming; the order of the samples and the learning rate are those of the other steps."""
    steps, trainer = poisoned(values, *CASES["activation"][:2], skip_bad_steps=1, log_every=1, steps=5)
    seen = []
    for step in steps:
        seen.append(step.metrics)
        if step.number == BAD:
            before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
        if step.number == BAD + 1:
            assert all(torch.equal(before[k], v) for k, v in trainer.student.state_dict().items())
    assert set(seen[BAD]) == {"step", "lr", "skipped_steps"}
    assert seen[BAD + 1]["skipped_steps"] == 1
    assert "skipped_steps" not in seen[0]
    assert "loss" in seen[BAD + 1]
    assert [m for m in caplog.messages if "step 3: the loss (plain/noise" in m and "left out (1 of 1)" in m]
    again = Trainer.from_config(make(TrainConfig, {**values, "checkpoint_every": 99, "steps": 6, "skip_bad_steps": 1}))
    assert again.services.guard.skipped == 1
    assert next(again.run_steps()).metrics["skipped_steps"] == 1


def test_a_bad_step_can_be_replayed(values):
    """NaN in the student's own weights shows at every step, also in a process that begins anew."""
    config, _ = run(values, steps=2)
    with pytest.raises(UserError, match="is at step 2; step 2 can be replayed from 1 alone"):
        replay(config.run, 2)
    before = contents(config.run)
    finding = replay(config.run, 3)
    assert (finding.terms, finding.layer) == ((), None)
    assert str(finding) == "taken again, its loss, gradients and layers are finite"
    with pytest.raises(UserError, match="step: wanted a number from 1, found '3'"):
        replay(config.run, "3")
    folder = config.run / "checkpoints" / "step_00000002"
    tensors = load_file(folder / "distiller.safetensors")
    tensors["student.en_inblocks.0.mlp.fc1.bias"][0] = float("nan")
    rewrite(folder, tensors)
    finding = replay(config.run, 3)
    assert finding.layer == "student.en_inblocks.0.mlp.fc1 (its output, plain pass)"
    assert {"plain/noise", "plain/output", "masked/noise"} <= set(finding.terms)
    assert not (config.run / "bad_steps").exists()
    assert contents(config.run).keys() == before.keys()


def rewrite(folder, tensors):
    from safetensors.torch import save_file

    from dit_shd.core.hashing import sha256
    from dit_shd.training.checkpoint import MANIFEST

    save_file(tensors, folder / "distiller.safetensors")
    (folder / MANIFEST).write_text(json.dumps({f.name: sha256(f) for f in folder.iterdir() if f.name != MANIFEST}))


def test_what_is_no_kept_batch_is_one_line(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"x" * 20)
    for name in ("x.safetensors", "y.safetensors"):
        with pytest.raises(UserError, match="wanted a batch kept by a training run"):
            read_batches(tmp_path / name, NoisyBatch)


class FakeAccelerator:
    """One process, with fp16's scaler on a CPU."""

    num_processes, device, is_main_process = 1, torch.device("cpu"), True

    def __init__(self, scale):
        self.scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        if self.scaler is not None:
            self.scaler.scale(torch.ones(1))  # it is made lazily

    def reduce(self, value, how):
        return value


@pytest.mark.parametrize(
    ("scale", "loss", "norm", "good"),
    [
        (None, 1.0, 1.0, True),
        (None, "nan", 1.0, False),
        (None, 1.0, "inf", False),
        (65536.0, 1.0, "inf", True),  # the scaler leaves the step out and scales less
        (65536.0, "nan", 1.0, False),  # no scale helps a loss
        (1.0, 1.0, "nan", False),  # nothing was scaled up: the gradient is bad itself
    ],
)
def test_overflow_of_fp16_is_the_scalers_until_it_scales_no_more(tmp_path, scale, loss, norm, good):
    guard = Guard(tmp_path, FakeAccelerator(scale), 0)
    assert guard.finite(torch.tensor(float(loss)), torch.tensor(float(norm))) == good


def test_a_skipped_step_leaves_the_scaler_usable(tmp_path):
    """unscale_ may be called once between two updates."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([parameter], 0.1), torch.amp.GradScaler("cpu", init_scale=4.0)
    for value in (float("nan"), 1.0):
        scaler.scale((parameter * value).sum()).backward()
        scaler.unscale_(optimizer)
        if value == 1.0:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert parameter.item() == pytest.approx(0.9)
    assert scaler.get_scale() == 2.0


def test_a_teacher_that_overflows_in_bfloat16_is_refused(values, teacher, tmp_path):
    """Above 3.39e38 a finite float32 rounds to infinity."""
    model = loading.load(teacher)
    with torch.no_grad():
        model.final_layer.linear.bias[0] = 3.4e38
    model.save_pretrained(tmp_path / "large")
    large = {**values, "teacher": str(tmp_path / "large"), "teacher_precision": "bf16"}
    with pytest.raises(UserError, match=r"large: its weights are not finite .* final_layer.linear.bias"):
        run(large)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_teacher_whose_activations_overflow_is_refused_before_anything_is_written(
    values, teacher, tmp_path, precision
):
    model = loading.load(teacher)
    with torch.no_grad():
        model.en_inblocks[0].mlp.fc1.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match=r"the first sample: .* first in teacher.en_inblocks.0.mlp(.fc1)? \(its output"):
        run({**values, "teacher": str(tmp_path / "large"), "teacher_precision": precision})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_model_with_nan_is_refused_at_load(teacher, tmp_path, kind):
    model = loading.load(teacher)
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = float("nan")
    if kind == "folder":
        model.save_pretrained(tmp_path / "m")
    else:
        torch.save(model.state_dict(), tmp_path / "m")
    with pytest.raises(UserError, match=r"m: its weights are not finite \(NaN or infinity\), first in pos_embed"):
        loading.load(tmp_path / "m")


@pytest.mark.two_processes("bad_steps")
def test_two_processes_decide_alike(by_two):
    """Only the second process has a bad number; both leave the step out, and both stop at the next."""
    (first,), (second,) = said(by_two)
    assert first == second
    assert "step 4: the loss (plain/noise" in first
    assert "first in student.en_inblocks.0 (its output" in first
    logged = rows(by_two / "run")
    assert [row.get("skipped_steps", 0) for row in logged] == [0, 1, 1]
    assert ["loss" in row for row in logged] == [True, False, True]
    assert {f.name for f in (by_two / "run" / "bad_steps").iterdir()} == {
        f"step_0000000{n}.safetensors" for n in (2, 4)
    }
