"""Memory of one process in one training step, by count: what stays allocated, and the largest addition by a pass."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.teachers import Teachers, by_name, read_teachers
from dit_shd.profiling import meta
from dit_shd.profiling.loss_cost import build_losses, loss_costs
from dit_shd.profiling.step import StepShape
from dit_shd.squeezing.cost import LayerCost


@dataclass(frozen=True)
class Memory:
    """Bytes by their use."""

    images: int
    """Images of one micro batch."""
    parts: dict[str, int]
    """Use -> bytes."""

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())


def step_memory(step: StepShape, student: nn.Module, teachers: nn.Module | Teachers | None) -> Memory:
    """Count the bytes that a step allocates; the models may be on the meta device."""
    by_key = by_name(teachers)
    distiller = Distiller(step.task, meta.ModelSpec.of(student).skeleton(), step.losses)
    build_losses(distiller, by_key)
    distiller = distiller.to("meta")
    skeletons: dict[str, nn.Module] = {name: meta.ModelSpec.of(model).skeleton() for name, model in by_key.items()}
    if step.teacher_precision == "bf16":
        skeletons = {name: teacher.bfloat16() for name, teacher in skeletons.items()}
    trained = [p for p in distiller.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p)
    passes = [_pass(step, distiller, by_key, skeletons, name) for name in step.task.passes]
    return Memory(
        images=step.images,
        parts={
            "teacher's weights": sum(map(held, skeletons.values())),
            "student's weights": held(distiller),
            "gradients": sum(size(p) for p in trained),
            f"optimizer's states ({step.optimizer})": _states(step, trained),
            f"weight averages ({step.averages})": step.averages * sum(size(p) for p in distiller.student.parameters()),
            **max(passes, key=lambda parts: sum(parts.values())),
        },
    )


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def held(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(size(x) for x in [*model.parameters(), *model.buffers()])


def _states(step: StepShape, trained: list[nn.Parameter]) -> int:
    optimizer = step.build_optimizer(trained)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(size(value) for value in states if isinstance(value, Tensor))


def _pass(step: StepShape, distiller: Distiller, teachers: Teachers, skeletons: Teachers, name: str) -> dict[str, int]:
    """The peak of one pass: the student's forward, that of each teacher, the backward."""
    student, task = distiller.student, step.task
    (batch,) = [batch for batch in task.example(student, step.images, meta.META) if batch.pass_name == name]
    losses = distiller.losses_of(name)
    extra = sum(loss_costs(losses, task, name, student, teachers, step.images).values(), LayerCost())
    if step.recompute:
        meta.recompute_blocks(student, step.precision)
    with meta.emulate_gpu(step.precision), meta.MemoryTracker(student, *skeletons.values()) as tracker:
        output = task.predict(student, batch)
        with torch.no_grad():
            for teacher in read_teachers(losses, skeletons):
                task.predict(skeletons[teacher], batch)
        output.prediction.sum().backward()
    return {"activations": tracker.peak, "losses (gradients held, tiles)": extra.held + extra.scratch}
