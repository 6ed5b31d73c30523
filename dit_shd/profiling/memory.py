"""Memory of one process in one training step, by count: what is held throughout, and the most that one pass adds."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Loss, Reads
from dit_shd.profiling import meta
from dit_shd.profiling.flops import captures_of
from dit_shd.profiling.step import StepShape
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Task


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for."""

    images: int
    """Of one micro batch."""
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def step_memory(step: StepShape, student: Any, teacher: Any) -> Memory:
    """Count what a step holds; the models may be without weights."""
    distiller = Distiller(step.task, meta.ModelSpec.of(student).skeleton(), step.losses).to("meta")
    bare = None if teacher is None else meta.ModelSpec.of(teacher).skeleton()
    if bare is not None and step.teacher_precision == "bf16":
        bare = bare.bfloat16()
    trained = [p for p in distiller.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p)
    passes = [_pass(step, distiller, teacher, bare, name) for name in step.task.passes]
    return Memory(
        images=step.images,
        parts={
            "teacher's weights": 0 if bare is None else held(bare),
            "student's weights": held(distiller),
            "gradients": sum(size(p) for p in trained),
            f"optimizer's states ({step.optimizer})": _states(step, trained),
            f"weight averages ({step.averages})": step.averages * sum(size(p) for p in distiller.student.parameters()),
            **max(passes, key=lambda parts: sum(parts.values())),
        },
    )


def size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def held(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(size(x) for x in [*model.parameters(), *model.buffers()])


def _states(step: StepShape, trained: list[nn.Parameter]) -> int:
    optimizer = step.build_optimizer(trained)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(size(value) for value in states if isinstance(value, Tensor))


def _pass(step: StepShape, distiller: Distiller, teacher: Any, bare: Any, name: str) -> dict[str, int]:
    """The peak of one pass: the student's forward, the teacher's beside it, the backward."""
    student: Any = distiller.student
    task = step.task
    (batch,) = [batch for batch in task.example(student, step.images, meta.META) if batch.pass_name == name]
    wanted = [loss for loss in distiller.losses if isinstance(loss, Loss) and name in loss.passes]
    extra = _losses(wanted, task, name, student, teacher, step.images)
    if step.recompute:
        student.enable_gradient_checkpointing()
    with meta.emulate_gpu(step.precision), meta.MemoryTracker(student, *([] if bare is None else [bare])) as live:
        output = task.predict(student, batch)
        if wanted:
            assert bare is not None, "losses need a teacher"
            with torch.no_grad():
                task.predict(bare, batch)
        output.prediction.sum().backward()
    return {"activations": live.peak, "losses (gradients held, tiles)": extra.held + extra.scratch}


def _losses(wanted: list[Loss], task: Task[Any], name: str, student: Any, teacher: Any, images: int) -> LayerCost:
    if not any(Reads.ATTENTION in loss.reads for loss in wanted):
        return LayerCost()
    theirs, ours = captures_of(teacher, task, name), captures_of(student, task, name)
    return sum((loss.cost(theirs, ours, images) for loss in wanted), LayerCost())
