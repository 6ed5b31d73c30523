"""Layers that are skipped, dropped at random, computed by hand or there in training alone: none shifts the others."""

import pytest
import torch
from small_attention import Attention, E, Net, inputs
from torch import nn

from dit_shd import SHD, capture
from dit_shd.attention.recording.survey import Survey
from dit_shd.core.errors import UserError
from dit_shd.distillation.comparison import warn_of_left_out

pytestmark = pytest.mark.usefixtures("seeded")


def test_layers_that_are_skipped_are_not_paired_by_their_depth():
    teacher, student = Net(depth=4).eval(), Net(depth=4, heads=2)
    for skip in ((1,), (2,), (), (0, 1)):  # the first forwards lack a layer, too: they are looked at once more
        student.skip = skip
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            student(inputs())
        assert list(s) == [f"blocks.{i}" for i in range(4) if i not in skip]
        if skip:
            with pytest.raises(UserError, match=f"blocks.{skip[0]} of the student did not run in its last forward"):
                SHD()(t, s)
        else:
            assert SHD()(t, s) > 0
    with capture(teacher) as t, capture(student, layers=["blocks.2", "blocks.3"]) as s:
        with torch.no_grad():
            teacher(inputs())
        student(inputs())
    assert SHD()(t, s) > 0


def test_a_layer_that_never_runs_is_looked_for_twice():
    model, surveys = Net(depth=4), []
    model.skip = (1,)
    for _ in range(4):
        with capture(model) as captures, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Survey, "stop", lambda survey, stop=Survey.stop: (surveys.append(survey), stop(survey)))
            model(inputs())
        assert list(captures) == ["blocks.0", "blocks.2", "blocks.3"]
    assert len(set(surveys)) == 2


@pytest.mark.parametrize(
    ("skips", "looks"), [([(1, 2), (3,), (0, 1), (2,), ()], 2), ([(1, 2, 3), (1, 3), (1, 2), (1,), (1,)], 3)]
)
def test_layers_that_are_dropped_at_random_are_looked_for_three_times_at_most(skips, looks):
    """Each survey is an eager forward with hooks everywhere: one for every step would be slow, and never compiled."""
    model, surveys = Net(depth=4), []
    for skip in skips:
        model.skip = skip
        with capture(model) as captures, pytest.MonkeyPatch.context() as patch:
            patch.setattr(Survey, "stop", lambda survey, stop=Survey.stop: (surveys.append(survey), stop(survey)))
            model(inputs())
    assert len(set(surveys)) == looks
    assert list(captures) == [f"blocks.{i}" for i in range(4) if i not in skip]
    assert captures.skipped == [f"blocks.{i}" for i in skip]


class AttentionByHand(Attention):
    """Attention that no tap sees."""

    def forward(self, x):
        q, k, v = self.heads_of(x)
        made = torch.einsum("bhnm,bhmd->bnhd", (torch.einsum("bhnd,bhmd->bhnm", q, k) / E).softmax(-1), v)
        return self.proj(made.flatten(2))


class Mixer(AttentionByHand):
    """By its name nobody knows what it is."""


class StateSpace(nn.Linear):
    """In its place, of something else."""

    def forward(self, x):
        return super().forward(x).cumsum(1).sigmoid()


@pytest.mark.parametrize("kind", [AttentionByHand, Mixer])
def test_a_layer_computed_by_hand_does_not_shift_the_others(kind, caplog):
    """It was in no report, and the student's first layer learned from the teacher's second."""
    teacher, student, hybrid = Net(depth=4).eval(), Net(depth=4, heads=2), Net(depth=4).eval()
    student.blocks[1], hybrid.blocks[2] = kind(heads=2), kind()
    for _ in range(2):
        with capture(teacher) as t, capture(student) as s, capture(hybrid) as mixed:
            with torch.no_grad():
                teacher(inputs()), hybrid(inputs())
            student(inputs())
    assert "blocks.1 ran without calling scaled_dot_product_attention" in str(s.report())
    with pytest.raises(UserError, match=r"paired by their depth, since one of the student .*: blocks\.1 ran without"):
        SHD()(t, s)
    assert SHD(layers={"blocks.2": "blocks.2"})(t, s) > 0
    warn_of_left_out.cache_clear()
    for _ in range(2):
        assert SHD()(mixed, s) > 0  # of two hybrid models, those layers that can be recorded
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "SHD: 2 layers of teacher and student cannot be recorded" in said and "blocks.2 of the teacher ran" in said


def test_a_mixer_of_another_kind_is_not_missed(caplog):
    teacher, student = Net(depth=4).eval(), Net(depth=4, heads=2)
    for model in (teacher, student):
        model.blocks[1] = StateSpace(E, E)
    with capture(teacher) as t, capture(student) as s:
        with torch.no_grad():
            teacher(inputs())
        student(inputs())
        assert SHD()(t, s) > 0 and len(s) == 3 and "ran without" not in str(s.report())
    assert not caplog.records


class WithHead(Net):
    def score(self, x):
        return x.mean(1)


def test_a_method_without_attention_that_is_called_after_the_forward_skips_no_layers():
    """As TRL's SFTTrainer calls one of the backbone before its loss is taken."""
    teacher, student = WithHead(depth=2).eval(), WithHead(depth=2, heads=2)
    for _ in range(3):
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs())
            student.score(student(inputs()))
        assert not s.skipped and SHD()(t, s) > 0


class OnlyInTraining(Net):
    def forward(self, x):
        x = super().forward(x)
        return self.more(x) if self.training else x

    def __init__(self):
        super().__init__()
        self.more = Attention()


def test_a_layer_that_runs_in_training_alone_is_recorded_there():
    model = OnlyInTraining().eval()
    with capture(model) as captures:
        for train, count in ((False, 2), (True, 3), (False, 2)):
            model.train(train)
            model(inputs())
            assert len(captures) == count
