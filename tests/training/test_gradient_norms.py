"""Norms of the gradients of each term: they add up to the gradient, and change nothing."""

import pytest
import torch
import torch._dynamo
from runs import drawn_by, run

from dit_shd.core.config import make
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Loss, Term
from dit_shd.training.config import TrainConfig
from dit_shd.training.gradient_norms import gradient_norms
from dit_shd.training.trainer import Trainer


def test_norms_of_gradients_that_are_too_small_for_fp16_are_taken_scaled(values):
    """As training takes its gradients; without the scale they are 0."""

    class Tiny(Loss):
        def term(self, student, teacher, batch):
            return Term((student.prediction.half() * 2.0**-14).float().flatten(1).mean(1) * 2.0**-14)

    trainer = Trainer.from_config(make(TrainConfig, {**values, "mask_ratio": None}))
    batch, distiller = drawn_by(trainer, 0, range(2))["plain"], Distiller(trainer.task, trainer.student, [Tiny()])
    plain, scaled = (gradient_norms(distiller, batch, trainer.teachers["teacher"], s) for s in (1.0, 2.0**16))
    (tiny,) = plain.keys() - {"plain/noise", "plain/variational"}
    assert plain[tiny] == 0 < scaled[tiny]
    assert scaled["plain/noise"] == pytest.approx(float(plain["plain/noise"]), rel=1e-5)


def test_gradient_norms_add_up_to_the_gradient(values):
    """One term's norm is the norm of its gradient by another way: backward on it alone."""
    trainer = Trainer.from_config(make(TrainConfig, {**values, "mask_ratio": None}))
    batch = drawn_by(trainer, 0, range(8))["plain"]
    distiller = trainer.state.distiller
    norms = gradient_norms(distiller, batch, trainer.teachers["teacher"])
    assert list(norms) == ["plain/noise", "plain/variational", "plain/output", "plain/shd"]
    for name, norm in norms.items():
        terms, _ = distiller.terms(batch, trainer.teachers["teacher"])
        terms[name.split("/")[1]].backward()
        grads = [p.grad for p in distiller.student.parameters() if p.grad is not None]
        assert norm == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm()), rel=1e-4)
        distiller.zero_grad()


def test_a_term_that_does_not_pull_at_the_student_has_norm_zero(values):
    class Aside(Loss):
        def __init__(self):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))

        def term(self, student, teacher, batch):
            return Term(teacher.prediction.flatten(1).mean(1) * self.factor)

    trainer = Trainer.from_config(make(TrainConfig, {**values, "mask_ratio": None}))
    distiller = Distiller(trainer.task, trainer.student, [Aside()])
    norms = gradient_norms(distiller, drawn_by(trainer, 0, range(2))["plain"], trainer.teachers["teacher"])
    assert norms["plain/noise"] > 0
    assert list(norms.values())[-1] == 0


def test_gradient_norms_are_logged_and_change_nothing(values, tmp_path):
    _, without = run(values, steps=3)
    _, norms = run(values, steps=3, gradient_norms_every=2, log_every=3, run=str(tmp_path / "norms"))
    assert norms[0] == {}
    assert {"grad_norm/plain/shd", "grad_norm/masked/output"} <= norms[1].keys()
    assert not any(key.startswith("grad_norm/") for key in norms[2])
    assert [{k: v for k, v in row.items() if "grad_norm/" not in k} for row in norms[1:]] == without[1:]
