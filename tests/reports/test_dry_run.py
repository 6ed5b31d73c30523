"""The text of a dry run: what is said of several processes."""

import pytest

from dit_shd.core.config import make
from dit_shd.core.shipped_configs import read_config
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run

REFUSED = {
    "adamw8bit": ({"optimizer": {"name": "adamw8bit"}}, "fsdp2 divides the optimizer's states already"),
    "norms": ({"gradient_norms_every": 10}, "fsdp2 cannot measure each term's gradient"),
    "offload": ({"teacher_offload": "blocks"}, "fsdp2 does not go with teacher_offload=blocks"),
}


def text_of(**changes: object) -> str:
    values = {**read_config("digits_shd"), "estimate": {"measure": False}, **changes}
    return dry_run_text(dry_run(make(TrainConfig, values)))


def test_slices_are_counted_where_a_run_can_be_divided():
    text = text_of()
    assert "8 GPUs, DDP" in text and "8 GPUs, FSDP2" in text
    assert "FSDP2 divides all that is not of a pass" in text


@pytest.mark.parametrize("case", REFUSED)
def test_slices_are_not_counted_where_training_would_refuse_them(case):
    changes, reason = REFUSED[case]
    text = text_of(**changes)
    assert "8 GPUs, DDP" in text and "8 GPUs, FSDP2" not in text
    assert reason in text
