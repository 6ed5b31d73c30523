"""Memory by count against torch's own record of what a CPU allocates."""

import copy
import gc
from contextlib import contextmanager

import pytest
import torch
from language import GPT2, causal_lm, lines

from dit_shd.core.config import make
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.distiller import Distiller
from dit_shd.models.blocks import recompute
from dit_shd.models.families.mdt import MDTv2
from dit_shd.profiling.memory import OF_PASS, step_memory
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.tasks.language_modeling import LanguageModeling
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape

CPU = torch.device("cpu")


@contextmanager
def recorded():
    """The most bytes that are allocated in the block beyond those before it: a list of this number."""
    found = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield found
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]")
    sums = torch.tensor([size for *_, size in changes]).cumsum(0)
    found.append(int(sums.max()))


def step_of(task, losses, **changes):
    """A step of eight samples, as a run counts it."""
    shape = step_shape(make(TrainConfig, {"losses": losses, **changes}), 8)
    shape.__dict__["task"] = task
    return shape


def taken(step, student, teacher):
    """The peak of the first step of a pass, taken for real; gradients are there."""
    if step.recompute:
        recompute(student)
    for parameter in student.train().parameters():
        parameter.grad = torch.zeros_like(parameter)
    (batch,) = step.task.example(student, step.images, CPU)
    Distiller(step.task, student, copy.deepcopy(step.losses))(batch, teacher)[0].backward()  # what libraries keep
    distiller = Distiller(step.task, student, step.losses)
    gc.collect()  # what is freed later would be taken off
    with recorded() as peak:
        distiller(batch, teacher)[0].backward()
    return peak[0]


def of_pass(memory):
    return sum(memory.parts[use] for use in OF_PASS)


@pytest.mark.parametrize("losses", [[], [{"name": "kd", "temperature": 2.0}]], ids=["alone", "kd"])
def test_logits_and_what_losses_make_of_them_are_counted(losses, tmp_path):
    """With many tokens to know they are most of a step: count and real step differed by a factor of four."""
    data = {"path": lines(tmp_path), "length": 32, "document": "line"}
    student, teacher = (causal_lm({**GPT2, "vocab_size": 6000}, seed) for seed in (0, 1))
    task = LanguageModeling()
    task.use(DATASETS.build(Plugin("text", data)), None)
    step = step_of(task, losses)
    assert of_pass(step_memory(step, student, teacher)) == pytest.approx(taken(step, student, teacher), rel=0.1)


def test_what_losses_read_is_kept_where_blocks_run_again():
    """The count adds the peaks of blocks and losses, which are not at one time. Nothing of the teacher is held."""
    sizes = dict(sample_size=32, in_channels=1, num_classes=3, num_layers=6, decode_layer=2, attention_head_dim=32)
    torch.manual_seed(0)
    student = MDTv2(**sizes, num_attention_heads=2)
    teacher = MDTv2(**sizes, num_attention_heads=4).eval().requires_grad_(False)
    task = Diffusion(mask_ratio=None)
    losses = [{"name": "shd", "chunk_mib": 2}]
    step = step_of(task, losses, gradient_checkpointing=True)
    assert 1 <= of_pass(step_memory(step, student, teacher)) / taken(step, student, teacher) < 1.3
