"""One run, however it is divided: among processes, into micro batches, before and after a change of both."""

from dataclasses import replace

import pytest
import torch
from killing import line_of
from runs import close, drawn_by, rows, run, same_weights
from small_runs import tiny
from two_process_jobs.draws import STEADY

from dit_shd.core.config import make
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


@pytest.fixture
def plain(values):
    """SHD on; nothing that depends on the number of steps; steps that do not blow rounding up."""
    return {**values, **STEADY}


@pytest.mark.parametrize("size", [1, 4])
def test_accumulated_micro_batches_equal_the_batch_to_the_last_weight(plain, tmp_path, size):
    whole, _ = run(plain, run=str(tmp_path / "whole"))
    parts, _ = run(plain, run=str(tmp_path / "parts"), micro_batch_size=size)
    close(rows(whole.run), rows(parts.run))
    same_weights(whole.run, parts.run, ["student"], rtol=1e-4, atol=1e-6)


def test_processes_draw_in_the_forward_what_one_draws_in_its_micro_batches(plain, tmp_path, monkeypatch):
    """Dropout of each, for example: the second of two draws what one process draws of its second micro batch."""
    trainer = Trainer.from_config(make(TrainConfig, {**plain, "run": str(tmp_path / "run"), "micro_batch_size": 4}))
    weight = next(trainer.distiller.parameters())
    monkeypatch.setattr(trainer.distiller, "forward", lambda *_: (0 * weight.sum(), {"drawn": torch.rand(())}))

    def drawn_in(**division):
        trainer.batches = replace(trainer.batches, **division)
        return trainer.accumulate(map(trainer.batches.at, trainer.batches.places(0)))["plain/drawn"]

    mean, first, second = drawn_in(), drawn_in(processes=2), drawn_in(processes=2, process=1)
    assert first != second
    torch.testing.assert_close((first + second) / 2, mean)


@pytest.mark.two_processes("draws")
def test_the_number_of_processes_may_change_when_a_run_is_resumed(tmp_path, by_two):
    """Two processes to step 2, one to step 4; as one throughout, and every sample drawn is the one of its place."""
    values, drawn = {**tiny(by_two), **STEADY}, by_two / "order"
    changed = make(TrainConfig, {**values, "run": str(by_two / "changed")})
    trainer = Trainer.from_config(changed)
    assert trainer.first_step == 2
    list(trainer.run_steps())
    straight, _ = run(values, run=str(tmp_path / "straight"))
    close(rows(straight.run), rows(changed.run))
    same_weights(straight.run, changed.run, ["student"], rtol=1e-4, atol=1e-6)
    places = [(step, range(first, first + 4)) for step in (0, 1) for first in (0, 4)]
    wanted = {line_of(step, place, drawn_by(trainer, step, place).values()) for step, place in places}
    assert wanted <= set(drawn.read_text().splitlines(keepends=True))
