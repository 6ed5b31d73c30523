"""SHD in any Trainer of transformers or TRL.

from dit_shd.integrations.trainers import add_shd
add_shd(trainer, SHD(weight=1.0), teacher)  # TRL's distillation trainers have a teacher: add_shd(trainer)

The trainer computes its loss as before, and the attention of both models is captured while it does; SHD is added to
what it returns. So backward, accumulation, precision, clipping and saving stay the trainer's own.

Rows of tokens that are not learned (padding, prompts: label -100) take no part, nor those of a document's last token,
which predicts nothing. The sum over all others is divided by their number in the whole batch of an optimizer step, over
its micro batches and processes, as the trainer divides the cross-entropy: the same gradient as Distiller's. Where a
trainer makes its texts while it trains and does not count them beforehand (GKD on-policy), that number is not known,
and each micro batch counts the same. Documents that are packed into a row share its alpha.
"""

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import captured
from dit_shd.core.errors import UserError
from dit_shd.distillation.comparison import check_finite
from dit_shd.distillation.losses.shd import SHD
from dit_shd.distillation.records import Layer
from dit_shd.integrations.trainer_batches import (
    Inputs,
    WeightedRows,
    check_apart,
    is_causal,
    query_rows,
    teacher_inputs,
    without_cache,
)

if TYPE_CHECKING:
    from transformers import Trainer

WRAPPED = ("compute_loss", "get_batch_samples", "log")
"""Methods of a trainer that a term stands before."""
MARK = "shd_term"
"""Where a trainer has its term, whatever is wrapped around its methods afterwards."""


def backbone(model: nn.Module) -> nn.Module:
    """A language model without its head, which TRL's DistillationTrainer runs by itself; also of one with adapters."""
    whole: Any = getattr(model, "get_base_model", lambda: model)()
    return getattr(whole, "base_model", whole)


def _check_uncompiled(model: Any, asked: bool = False) -> None:  # noqa: ANN401 (a module, or none)
    """Refuse a model that is compiled whole: its backbone then runs inside of the program, and is not captured."""
    if asked or hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise UserError(
            f"add_shd: {type(model).__name__} is compiled whole, so that its attention cannot be captured; leave out "
            "torch_compile and model.compile(), and compile its blocks: "
            "dit_shd.models.compilation.compile_blocks(model)"
        )


def _check_unshared(student: nn.Module | None, teacher: nn.Module) -> None:
    """Refuse a teacher that has weights that the student learns: freezing it would end that without a word."""
    learning = {id(p) for p in student.parameters() if p.requires_grad} if student is not None else set[int]()
    if any(id(p) in learning for p in teacher.parameters()):
        raise UserError(
            "add_shd: the teacher shares weights with the student that the student learns; give a copy, made before "
            "the student learns (and before it gets adapters): add_shd(trainer, loss, copy.deepcopy(teacher))"
        )


def add_shd(
    trainer: "Trainer", loss: SHD | None = None, teacher: nn.Module | None = None, prompt_rows: bool = False
) -> "SHDTerm":
    """Add SHD to a trainer that is made, before train() is called.

    Args:
        trainer: Of transformers or TRL, with a causal language model.
        loss: SHD as it is to be computed; the paper's beta for language, 1.0, where it is not given.
        teacher: The teacher; none where the trainer has one (`teacher_model`).
        prompt_rows: Whether query rows of tokens that are not learned, but for padding, take part as well; the paper's
            figure 1 leaves instructions out.

    Returns:
        The term, which is in the trainer's log as `shd`, without its weight; its `remove` leaves the trainer as it was.

    Raises:
        UserError: A trainer that has SHD, no teacher or one with weights that the student learns, an encoder-decoder,
            a plan that is not calibrated, or models compiled whole, in slices or in replicas that cannot be read.
    """
    loss = SHD(weight=1.0) if loss is None else loss
    if MARK in vars(trainer):
        raise UserError(
            "add_shd: this trainer has SHD already, which would count twice; take it away first: term.remove()"
        )
    if trainer.args.n_gpu > 1:
        raise UserError("add_shd: DataParallel is not supported; start one process for each GPU (torchrun, accelerate)")
    if loss.calibration and not loss.squeezer.plans:
        raise UserError(
            "add_shd: a matched plan has to be calibrated first: loss.calibrate(teacher_captures, student_captures) on "
            "some batches, then loss.calibrated()"
        )
    of_trainer = getattr(trainer, "teacher_model", None)
    teacher = of_trainer if teacher is None else teacher
    if not isinstance(teacher, nn.Module):
        raise UserError(
            f"add_shd: {type(trainer).__name__} has no teacher_model; wanted add_shd(trainer, loss, teacher)"
        )
    if any(hasattr(p, "ds_tensor") for p in teacher.parameters()):
        raise UserError(
            "add_shd: the teacher's weights are partitioned by DeepSpeed's ZeRO stage 3, so its W^O cannot be read; "
            "give it whole: add_shd(trainer, loss, teacher), or use stage 2"
        )
    if teacher is not of_trainer:
        _check_unshared(trainer.model, teacher)
        teacher.to(trainer.args.device).eval().requires_grad_(False)
    for model in (trainer.model, trainer.accelerator.unwrap_model(teacher)):
        _check_uncompiled(model, trainer.args.torch_compile)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UserError(
                f"add_shd is for language models without an encoder, found {type(model).__name__}: the rows of its "
                "labels are not those of its encoder"
            )
    return SHDTerm(trainer, loss, teacher, prompt_rows)


class SHDTerm:
    """The term that add_shd adds.

    Args:
        trainer: Whose methods compute_loss, get_batch_samples and log are wrapped.
        loss: SHD.
        teacher: On the trainer's device, frozen.
        prompt_rows: Whether query rows of prompts take part.
    """

    def __init__(self, trainer: "Trainer", loss: SHD, teacher: nn.Module, prompt_rows: bool = False):
        self.trainer, self.loss, self.teacher, self.prompt_rows = trainer, loss, teacher, prompt_rows
        self._expected: deque[Tensor] = deque()
        """Query rows of the micro batches to come, as far as they are known beforehand [b,n]."""
        self._total = 0.0
        """How many there are in the optimizer step's batch, over all processes."""
        self._of_step, self._sum = torch.zeros(()), torch.zeros(())
        """SHD of the optimizer step's micro batches in this process, and of the steps since the last log in all."""
        self._steps, self._begun = 0, -1
        """How many steps that are, and the number of the last one that has begun."""
        self._causal = is_causal(trainer.accelerator.unwrap_model(trainer.model))
        self._compute_loss, self._log = trainer.compute_loss, trainer.log
        self._get_batch_samples = trainer.get_batch_samples
        self._before = {name: vars(trainer)[name] for name in WRAPPED if name in vars(trainer)}
        """The methods that a user had put on the trainer itself."""
        self._removed, self._apart, self._unchecked = False, False, True
        for name in WRAPPED:
            setattr(trainer, name, getattr(self, name))
        setattr(trainer, MARK, self)

    def remove(self) -> None:
        """Leave the trainer as it was; what was wrapped around its methods since stays, and passes the term by."""
        kept = vars(self.trainer)
        for name in WRAPPED:
            if kept.get(name) == getattr(self, name):
                del kept[name]
                kept.update({name: self._before[name]} if name in self._before else {})
        if kept.get(MARK) is self:
            del kept[MARK]
        self._removed = True

    def _ended(self) -> bool:
        return self._removed or self.loss.ended(int(self.trainer.state.global_step))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as the trainer's)
        """The trainer's, which draws the micro batches of an optimizer step; their rows are counted."""
        drawn = self._get_batch_samples(*args, **kwargs)
        self._of_step, step = torch.zeros(()), int(self.trainer.state.global_step)
        if step <= self._begun:  # another training
            self._sum, self._steps = torch.zeros(()), 0
        self._begun = step
        if self._ended():
            return drawn
        labelled = [x for x in drawn[0] if isinstance(x, Mapping) and x.get("labels") is not None]  # others are texts
        self._expected = deque(self._rows(dict(x)) for x in labelled)
        count = torch.tensor(float(sum(int(rows.sum()) for rows in self._expected)), device=self.trainer.args.device)
        counts: Any = self.trainer.accelerator.gather(count[None])
        self._total = float(counts.sum())
        return drawn

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401 (as the trainer's)
    ) -> Any:  # noqa: ANN401 (as the trainer's)
        """The trainer's loss and, in training, SHD until its schedule has ended."""
        arguments = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not model.training or self._ended():
            return self._compute_loss(model, inputs, **arguments)
        unwrap = self.trainer.accelerator.unwrap_model
        models = unwrap(model), unwrap(self.teacher)
        for each in models:
            _check_uncompiled(each)
        rows, keywords = self._rows(inputs), teacher_inputs(inputs, models[1])
        given = dict(inputs)  # out of the trainer's, label smoothing and compute_loss_func take the labels
        runs: list[bool] = []
        with (
            capture(backbone(models[0])) as student,
            captured(backbone(models[1])) as teacher,
            backbone(models[0]).register_forward_pre_hook(lambda *_: runs.append(True)),
        ):
            returned = self._compute_loss(model, inputs, **arguments)
            if len(runs) > 1:  # captures are those of the last: of another batch, or without a graph
                raise UserError(
                    f"add_shd: the student runs {len(runs)} times in compute_loss (a metric, a monitor?), and SHD "
                    "learns from one forward; take the others out of it, into a callback (TRL's SFTTrainer has one "
                    "more with label_smoothing_factor or compute_loss_func: leave them out)"
                )
            if not len(teacher):  # the trainer does not run it
                with torch.no_grad():
                    self.teacher(**keywords, **without_cache(models[1]))
        self._apart = self._apart or check_apart(teacher, student, given)
        value = self._summed(student, teacher, rows) * self._share(rows, given)
        if self._unchecked:
            check_finite("the first batch", value.detach())
            self._unchecked = False
        self._keep(value.detach())
        step = int(self.trainer.state.global_step)
        term = self.loss.weight_at(step) * self._factor(num_items_in_batch) * value
        return (returned[0] + term, returned[1]) if isinstance(returned, tuple) else returned + term

    def _rows(self, inputs: Inputs) -> Tensor:
        return query_rows(inputs, self.prompt_rows, self._causal)

    def _summed(self, student: Captures, teacher: Captures, rows: Tensor) -> Tensor:
        """SHD, the sum over the rows that take part."""
        teacher, student = self.loss.checked(teacher, student)
        b, n = rows.shape
        step = int(self.trainer.state.global_step)
        batch = WeightedRows("plain", step, torch.arange(b), rows.float() * (b * n))
        layers = {name: Layer(name, attention=layer) for name, layer in student.items()}
        pairs = self.loss.begin(list(teacher), layers, batch)
        for name, layer in teacher.items():
            pairs(Layer(name, attention=layer))
        return pairs.term().value.mean()

    def _micro_batches(self) -> int:
        return max(1, int(getattr(self.trainer, "current_gradient_accumulation_steps", 1)))

    def _share(self, rows: Tensor, inputs: Inputs) -> float:
        """What makes of a micro batch's sum its share of the step's mean, of which processes have the mean."""
        total = self._known_total(rows, inputs)
        if total:
            return self.trainer.accelerator.num_processes / total
        return 1 / (self._micro_batches() * max(1, int(rows.sum())))

    def _factor(self, num_items: Any) -> float:  # noqa: ANN401 (a number or a tensor)
        """What undoes that the trainer divides by the micro batches what is a mean of each."""
        trainer: Any = self.trainer
        scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func
        return 1.0 if scaled else float(self._micro_batches())

    def _keep(self, share: Tensor) -> None:
        """Keep a micro batch's share for the log; with the last one of a step that of all processes."""
        self._of_step = self._of_step.to(share) + share
        accelerator: Any = self.trainer.accelerator
        if accelerator.sync_gradients:
            self._sum = self._sum.to(share) + accelerator.gather(self._of_step[None]).mean()
            self._of_step, self._steps = torch.zeros(()), self._steps + 1

    def _known_total(self, rows: Tensor, inputs: Inputs) -> float:
        """The rows of the optimizer step's whole batch; 0 where they are not known beforehand."""
        expected = self._expected.popleft() if self._expected else None
        if expected is not None and torch.equal(expected.to(rows.device), rows):
            return self._total
        generated = inputs.get("num_items_in_batch")  # TRL's DistillationTrainer generates a step's texts at once
        return 0.0 if generated is None or self.prompt_rows or "completion_mask" not in inputs else float(generated)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's, with SHD as it is in the loss: the mean over the steps since the last time."""
        if self._steps and "loss" in logs:
            check_finite("the steps since the last log", self._sum)  # where transformers' own filter logs a loss of 0
            logs["shd"] = float(self._sum) / self._steps
            self._sum, self._steps = torch.zeros(()), 0
        self._log(logs, *args, **kwargs)
