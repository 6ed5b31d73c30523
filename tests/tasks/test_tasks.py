"""What a task promises: refusals before anything is written, passes, kept batches; and a task of one's own trains."""

import dataclasses

import pytest
import torch
from runs import contents, diffusion, drawn, refused, run

from dit_shd.core import plugins
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.training.bad_step import read_batches
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer, train

MINE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.datasets.npz import Npz
from dit_shd.tasks import Batch, Output, Task


class Unlabelled(Npz):
    """Images alone."""

    fields = frozenset({"latents"})


@dataclass(frozen=True, eq=False)
class Flow(Batch):
    x: Tensor
    velocity: Tensor
    t: Tensor


class FlowMatching(Task[Flow]):
    """Rectified flow of images without labels: x_t = (1 - t) x_0 + t noise, learned is noise - x_0."""

    batch_type: ClassVar = Flow
    needs = frozenset({"latents"})
    passes = ("first", "second")
    all_passes = frozenset(passes)

    def __init__(self, fail: bool = False):
        self.fail = fail

    def check(self, role, model):
        if self.fail:
            raise UserError(f"{role}: is refused")

    def draw(self, draws):
        indices = draws.indices(len(self.dataset))
        x_0 = self.dataset.batch(indices, draws)["latents"]
        batches = []
        for name in self.passes:
            t = draws.uniform(f"time/{name}").float()
            noise = draws.normal(f"noise/{name}", x_0.shape[1:])
            s = t.view(-1, 1, 1, 1)
            x = (1 - s) * x_0 + s * noise
            batches.append(Flow(name, draws.step, torch.from_numpy(indices), x, noise - x_0, t))
        return batches

    def predict(self, model, batch):
        labels = torch.zeros(len(batch.x), dtype=torch.long, device=batch.x.device)
        return Output(model(batch.x, batch.t * 1000, labels, return_dict=False)[0][:, :1].float())

    def losses(self, output, batch):
        return {"velocity": (output.prediction - batch.velocity).square().flatten(1).mean(1)}

    def example(self, model, images, device):
        x = torch.zeros(images, 1, 8, 8, device=device)
        zeros = torch.zeros(images, dtype=torch.long, device=device)
        return [Flow(name, 0, zeros, x, x, zeros.float()) for name in self.passes]
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Somebody's own package with a task and a dataset."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_trusted", {"mine"})
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)


# What is refused


def test_data_without_what_a_task_needs_are_refused(values, mine, shapes):
    data = {"name": "mine.Unlabelled", "path": str(shapes)}
    message = "task: needs labels of the data, which have images, latents; choose another task or data"
    refused({**values, "data": data}, f"^{message}$")
    task, dataset = Diffusion(), DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    dataset.fields = frozenset({"tokens"})
    with pytest.raises(UserError, match=r"^task: needs labels, latents of the data, which have tokens; "):
        task.check_data(dataset)


@pytest.mark.parametrize(
    ("passes", "mask_ratio", "message"),
    [
        (["masked"], None, r"losses\.1\.passes: wanted one or more of plain, .* found masked$"),
        (["maskd"], 0.3, r"losses\.1\.passes: wanted one or more of plain, masked, .* found maskd$"),
        (["plain", "maskd"], 0.3, "found plain, maskd$"),
        (["plain", "maskd"], None, "found plain, maskd$"),
        ([], 0.3, "SHD: passes: wanted the name of one or more, found none"),
    ],
)
def test_a_pass_that_the_task_does_not_have_is_refused(values, passes, mask_ratio, message):
    losses = [{"name": "output"}, {"name": "shd", "passes": passes}]
    refused({**values, "losses": losses, "task": {"name": "diffusion", "mask_ratio": mask_ratio}}, message)


def test_of_passes_that_the_task_can_have_those_it_has_are_taken(values):
    losses = [{"name": "shd", "passes": ["plain", "masked"]}]
    _, (metrics,) = run({**values, "losses": losses, "task": {"name": "diffusion", "mask_ratio": None}}, steps=1)
    assert metrics["plain/shd"] > 0 and not any(key.startswith("masked") for key in metrics)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("difusion", "task: no plug-in called 'difusion', did you mean 'diffusion'"),
        ({"name": "diffusion", "mask_ration": 0.3}, "unknown key 'mask_ration', did you mean 'mask_ratio'"),
        ({"name": "diffusion", "label_dropout": 1.5}, r"task\.label_dropout: wanted a number from 0 to 1, found 1\.5"),
        ({"name": "diffusion", "mask_ratio": "much"}, r"task\.mask_ratio: wanted .*found 'much'"),
        ({"name": "diffusion", "evaluation": {"coun": 3}}, "unknown key 'coun', did you mean 'count'"),
        ({"name": "diffusion", "evaluation": 3}, r"task\.evaluation: wanted"),
        (
            {"name": "mine.FlowMatching"},
            r"add --trust mine to the command \(in Python first: dit_shd\.trust\('mine'\)\)",
        ),
        ({"name": 3}, r"task: wanted \{name: "),
        ({"mask_ration": 0.3}, "task: unknown key 'mask_ration', did you mean 'mask_ratio'"),
    ],
)
def test_tasks_that_there_are_not(values, task, message):
    refused({**values, "task": task}, message)


def test_what_a_task_says_of_a_model_is_said_before_anything_is_written(values, mine):
    own = {**values, "losses": [{"name": "shd", "passes": ["first"]}]}
    refused({**own, "task": {"name": "mine.FlowMatching", "fail": True}}, "^student: is refused$")


# What a task gives


def test_an_example_has_the_passes_of_a_step_and_the_mean_sizes(shapes):
    data = DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    options = {"sample_size": 20, "patch_size": 2, "in_channels": 1, "num_classes": 3, "num_layers": 4}
    options |= {"decode_layer": 2, "num_attention_heads": 2, "attention_head_dim": 4}
    student = FAMILIES.build(Plugin("mdt", options))
    for mask_ratio in (None, 0.0, 0.3, 0.8):
        task = diffusion(data, tokens=100, mask_ratio=mask_ratio)
        example = {batch.pass_name: batch for batch in task.example(student, 2, torch.device("cpu"))}
        steps = [drawn(task, step, range(1)) for step in range(200)]
        assert all(tuple(step) == tuple(example) == task.passes for step in steps)
        for name, batch in example.items():
            mean = sum(task.tokens_seen(student, step[name]) for step in steps) / len(steps)
            assert abs(task.tokens_seen(student, batch) - mean) < 1.5
            assert task.predict(student, batch).prediction.shape == (2, 1, 20, 20)


def test_a_batch_moves_whole(shapes):
    batch = drawn(diffusion(DATASETS.build(Plugin("npz", {"path": str(shapes)}))), 3, range(4))["masked"]
    moved = batch.to("meta")
    assert (moved.pass_name, moved.step, type(moved)) == ("masked", 3, NoisyBatch)
    for field in dataclasses.fields(NoisyBatch):
        value = getattr(moved, field.name)
        tensors = value.values() if isinstance(value, dict) else [value]
        assert field.name in ("pass_name", "step") or all(x.device.type == "meta" for x in tensors), field.name


# A task of one's own


@pytest.fixture
def own(values, mine, shapes):
    losses = [{"name": "output", "passes": ["first"]}, {"name": "shd", "passes": ["second"]}]
    data = {"name": "mine.Unlabelled", "path": str(shapes), "flip": True}
    return {**values, "task": "mine.FlowMatching", "data": data, "losses": losses}


def test_a_task_of_ones_own_trains_resumes_and_is_divided(own, tmp_path):
    """Bit for bit after a resumption, and to rounding in micro batches, as any other."""
    straight, metrics = run(own, run=str(tmp_path / "a"), steps=6)
    names = {"first/velocity", "second/velocity", "first/output", "second/shd", "second/shd/clamped"}
    assert names < metrics[0].keys() and not {"second/output", "first/shd"} & metrics[0].keys()
    terms = sum(metrics[0][key] for key in ("first/velocity", "second/velocity", "first/output"))
    assert metrics[0]["loss"] == pytest.approx(terms + 2 * metrics[0]["second/shd"], rel=1e-5)
    broken = make(TrainConfig, {**own, "steps": 6, "run": str(tmp_path / "b")})
    for step in train(broken):
        if step.number == 5:
            break
    list(Trainer.from_config(broken).run_steps())
    assert contents(straight.run) == contents(broken.run)
    _, parts = run(own, run=str(tmp_path / "c"), steps=3, micro_batch_size=2)
    for whole, part in zip(metrics, parts):
        assert whole["loss"] == pytest.approx(part["loss"], rel=1e-4)


def test_a_bad_step_of_a_task_of_ones_own_is_kept_as_its_batch(own):
    trainer = Trainer.from_config(make(TrainConfig, {**own, "skip_bad_steps": 1, "steps": 2}))
    trainer.student.final_layer.register_forward_hook(lambda _, args, output: output * float("nan"))
    next(trainer.run_steps())
    file = trainer.folder.path / "bad_steps" / "step_00000001.safetensors"
    kept = read_batches(file, trainer.task.batch_type)
    wanted = trainer.batches.at((0, 0))
    assert [(type(batch), batch.pass_name) for batch in kept] == [(type(batch), batch.pass_name) for batch in wanted]
    for found, want in zip(kept, wanted):
        for name, value in vars(want).items():
            other = getattr(found, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    with pytest.raises(UserError, match="wanted a batch kept by a training run"):
        read_batches(file, NoisyBatch)
