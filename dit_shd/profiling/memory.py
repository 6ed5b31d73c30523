"""Memory of one process in one training step, by count: what stays allocated, and the largest addition by a pass."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.records import LAYERS
from dit_shd.distillation.teachers import Teachers, by_name, read_teachers
from dit_shd.models.batch_norms import evaluated_norms
from dit_shd.models.bfloat16 import in_bfloat16
from dit_shd.models.blocks import blocks
from dit_shd.models.quantization import counted_bytes, is_quantised, plain_parts
from dit_shd.profiling import meta
from dit_shd.profiling.loss_cost import build_losses, kept_numbers, loss_costs
from dit_shd.profiling.step import StepShape
from dit_shd.squeezing.cost import LayerCost

TEACHER, OF_PASS = "teacher's weights", ("activations", "losses (gradients held, tiles)")
"""Uses of memory: of the teacher, and what a pass adds."""
OF_STEP = "optimizer's step, more than a pass adds"
"""The use of memory after the passes, where it is what there is most of."""


@dataclass(frozen=True)
class Memory:
    """Bytes by their use."""

    images: int
    """Images of one micro batch."""
    parts: dict[str, int]
    """Use -> bytes."""
    gathered: int
    """Under FSDP2, bytes of weights that a pass holds whole beside a process's share of them."""
    divides_teacher: bool = True
    """Whether FSDP2 divides the teacher, too: not one in fewer than 16 bits."""

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.parts.values())

    @property
    def replicated(self) -> int:
        """Bytes of one of several processes under DDP, which holds the gradients twice."""
        return self.total + self.parts["gradients"]

    def divided(self, processes: int, accumulates: bool) -> int:
        """Bytes of one of several processes under FSDP2: what a pass or the step adds, and a share of others.

        Args:
            processes: Their number.
            accumulates: Whether a step is of several passes or micro batches: gradients are whole until its last one.
        """
        of_pass = sum(self.parts[use] for use in OF_PASS)
        step = -(-(of_pass + self.parts[OF_STEP]) // processes) if self.parts[OF_STEP] else 0
        of_pass += self.gathered
        shared = {use: size for use, size in self.parts.items() if use not in (*OF_PASS, OF_STEP)}
        whole = 0 if self.divides_teacher else shared.pop(TEACHER)
        of_pass += shared.pop("gradients") if accumulates else 0
        return max(of_pass, step) + whole + sum(-(-size // processes) for size in shared.values())


def step_memory(step: StepShape, student: nn.Module, teachers: nn.Module | Teachers | None) -> Memory:
    """Count the bytes that a step allocates; the models may be on the meta device."""
    by_key = by_name(teachers)
    distiller = Distiller(step.task, meta.ModelSpec.of(student).skeleton(), step.losses)
    build_losses(distiller, by_key)
    distiller = distiller.to("meta")
    skeletons: dict[str, nn.Module] = {
        k: meta.ModelSpec.of(model).skeleton().eval().requires_grad_(False) for k, model in by_key.items()
    }
    bits = step.teacher_precision if is_quantised(step.teacher_precision) else None
    fewer = None if bits is None else sum(counted_bytes(teacher, bits) for teacher in skeletons.values())
    if step.teacher_precision != "no":
        skeletons = {name: in_bfloat16(teacher) for name, teacher in skeletons.items()}
    trained = [p for p in distiller.parameters() if p.requires_grad]
    averaged = sum(size(p) for p in distiller.student.parameters() if p.requires_grad)
    for p in trained:
        p.grad = torch.zeros_like(p)
    passes = [_pass(step, distiller, by_key, skeletons, name) for name in step.task.passes]
    largest = max(passes, key=lambda parts: sum(parts.values()))
    optimizer = step.build_optimizer(trained)
    return Memory(
        images=step.images,
        gathered=_gathered(distiller, skeletons if bits is None else {}),
        divides_teacher=bits is None,
        parts={
            TEACHER: _resident(skeletons, step.teacher_offload == "blocks", fewer),
            "student's weights": held(distiller),
            "gradients": sum(size(p) for p in trained),
            f"optimizer's states ({step.optimizer})": _states(optimizer),
            f"weight averages ({step.averages})": step.averages * averaged,
            **largest,
            OF_STEP: max(0, _step_copies(optimizer) - sum(largest.values())),
        },
    )


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return tensor.numel() * tensor.element_size()


def held(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(size(x) for x in [*model.parameters(), *model.buffers()])


def _resident(teachers: Teachers, offloaded: bool, fewer: int | None) -> int:
    """Bytes of the teachers' weights on the device: all, or of offloaded ones two blocks and what is in no block."""
    if fewer is not None:
        return fewer
    return sum(_in_blocks(teacher, 2) if offloaded else held(teacher) for teacher in teachers.values())


def _in_blocks(model: nn.Module, count: int) -> int:
    """Bytes of a model of whose blocks that many are there at once."""
    sizes = [held(block) for block in blocks(model)]
    return held(model) - sum(sizes) + count * max(sizes, default=0)


def _gathered(distiller: Distiller, teachers: Teachers) -> int:
    """Bytes that FSDP2 gathers for a pass: student and losses, and a block on its way; of teachers three blocks.

    These are the first, the one that runs and the one on its way (training/fsdp.py).
    """
    on_its_way = max((held(block) for block in blocks(distiller.student)), default=0)
    return held(distiller) + on_its_way + sum(_in_blocks(teacher, 3) for teacher in teachers.values())


def _step_copies(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that PyTorch's AdamW copies of a group of parameters at once, as it does on a GPU (foreach)."""
    copies = isinstance(optimizer, torch.optim.AdamW)
    return max(sum(map(size, group["params"])) for group in optimizer.param_groups) if copies else 0


def _states(optimizer: torch.optim.Optimizer) -> int:
    with torch.compiler.set_stance("force_eager"):  # of torchao, which compiles its step
        optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(size(part) for value in states for part in plain_parts(value).values())


def _pass(step: StepShape, distiller: Distiller, teachers: Teachers, skeletons: Teachers, name: str) -> dict[str, int]:
    """The peak of one pass: the student's forward, that of each teacher, what reads outputs alone, the backward.

    Losses that read layers are counted apart from it.
    """
    student, task = distiller.student, step.task
    (batch,) = [batch for batch in task.example(student, step.images, meta.META) if batch.pass_name == name]
    losses = distiller.losses_of(name)
    of_layers = {key: loss for key, loss in losses.items() if loss.reads & LAYERS}
    of_outputs = [loss for key, loss in losses.items() if key not in of_layers and not loss.fields]
    extra = sum(loss_costs(of_layers, task, name, student, teachers, step.images).values(), LayerCost())
    kept = 0
    if step.recompute:
        width = (meta.DTYPES.get(step.precision) or torch.float32).itemsize
        kept = width * step.images * kept_numbers(of_layers, task, name, student, teachers)
        meta.recompute_blocks(student, step.precision)

    def peak(counted: bool) -> int:
        with evaluated_norms(student), meta.MemoryTracker(student, *skeletons.values()) as tracker:
            with meta.emulate_gpu(step.precision):
                if counted:
                    value = sum(Distiller(task, student, of_outputs).terms(batch, skeletons)[0].values())
                else:
                    value = task.predict(student, batch).prediction.sum()
                with torch.no_grad():
                    for teacher in read_teachers(of_layers if counted else losses, skeletons):
                        task.predict(skeletons[teacher], batch)
            with meta.emulate_gpu(step.precision, keep=False):
                torch.as_tensor(value).backward()
        return tracker.peak

    try:
        activations = peak(counted=True)
    except RuntimeError:  # a loss, or a term of the task, looks at its numbers, and there are none
        activations = peak(counted=False)
    return dict(zip(OF_PASS, (activations, extra.held + extra.scratch + kept)))
