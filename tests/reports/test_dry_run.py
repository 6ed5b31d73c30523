"""The text of a dry run: its counts, what is missing, what is said of several processes."""

import ast
from dataclasses import replace
from functools import cache

import pytest
from counted_steps import small, step

from dit_shd.cli import program
from dit_shd.core.config import make
from dit_shd.core.shipped_configs import read_config
from dit_shd.profiling.estimate import DryRun
from dit_shd.profiling.flops import step_operations
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training.checks import fsdp2_refusal
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run

REFUSED = {
    "adamw8bit": ({"optimizer": {"name": "adamw8bit"}}, "fsdp2 divides the optimizer's states already"),
    "norms": ({"gradient_norms_every": 10}, "fsdp2 cannot measure each term's gradient"),
    "offload": ({"teacher_offload": "blocks"}, "fsdp2 does not go with teacher_offload=blocks"),
}


def config_of(**changes: object) -> TrainConfig:
    return make(TrainConfig, {**read_config("digits_shd"), "estimate": {"measure": False}, **changes})


@cache
def counted(changes: str) -> DryRun:
    return dry_run(config_of(**ast.literal_eval(changes)))


def dry_run_of(**changes: object) -> DryRun:
    """Counted once for all tests that ask for it."""
    return counted(repr(changes))


def test_slices_are_counted_where_a_run_can_be_divided():
    text = dry_run_text(dry_run_of())
    assert "8 GPUs, DDP" in text and "8 GPUs, FSDP2" in text
    assert "FSDP2 divides all that is not of a pass" in text


@pytest.mark.parametrize("case", REFUSED)
def test_slices_are_not_counted_where_training_would_refuse_them(case):
    changes, reason = REFUSED[case]
    refusal = fsdp2_refusal(config_of(**changes))
    assert refusal is not None and reason in refusal
    text = dry_run_text(replace(dry_run_of(), fsdp2_refusal=refusal))
    assert "8 GPUs, DDP" in text and "8 GPUs, FSDP2" not in text
    assert refusal in text


def test_losses_that_end_are_counted_until_then():
    """SHD ends after a quarter of the steps, and the teacher with it."""
    ending = {"name": "shd", "weight": {0: 0.3, "25%": 0}}
    run = dry_run_of(losses=[ending])
    first, later = (each.executed for each in run.operations_by_step.values())
    without = dry_run_of(losses=[], teacher=None).operations
    assert list(run.operations_by_step) == [0, run.steps // 4] and later == without.executed < first
    assert run.all_operations == run.batch_size * run.steps * (first + 3 * later) / 4
    assert f"{later * run.batch_size / 1e12:.3g} TFLOP from step {run.steps // 4} on, where losses end" in dry_run_text(
        run
    )
    assert f"{run.all_operations / 1e18:.3g} EFLOP" in dry_run_text(run)


@pytest.mark.parametrize(("micro", "images"), [(None, (32, 4)), (16, (16, 4)), (2, (2, 2))])
def test_several_processes_share_the_batch(micro, images):
    run = dry_run_of(losses=[], teacher=None, micro_batch_size=micro)
    alone = dry_run_of(losses=[], teacher=None, micro_batch_size=images[1]).memory
    assert (run.memory.images, run.memory_of_several) == (images[0], alone)
    lines = dry_run_text(run).splitlines()
    (said,) = [line.split()[-3:] for line in lines if line.startswith("images of a micro batch")]
    (held,) = [line.split()[-3:] for line in lines if line.startswith("MiB of each")]
    assert said == [str(images[0]), str(images[1]), str(images[1])]
    assert held == [
        f"{x / 2**20:.2f}" for x in (run.memory.total, alone.replicated, alone.divided(8, accumulates=True))
    ]


def test_times_of_small_models_are_words_and_of_others_numbers():
    """`days of training, A100 2.54e-07` says nothing to anybody; sampling 50,000 digits takes some hours."""
    run = replace(dry_run_of(losses=[], teacher=None), steps=1)
    rows = [line for line in dry_run_text(run).splitlines() if line.startswith(("training,", "days of", "sampling"))]
    assert rows[0].split()[3:] == ["under", "4", "s"] * 2
    assert [row.split()[4:] for row in rows[-2:]] == [["under", "87", "s"] * 3] * 2
    assert not any("e-" in row or "under" in row for row in rows[1:-2])
    long = dry_run_text(replace(run, steps=10**9))
    assert "under" not in long and "e-" not in "".join(line for line in long.splitlines() if "days of" in line)


def test_what_learned_the_guided_prediction_is_sampled_without_guidance():
    """`dit-shd sample` warns of guiding it twice; twice its forwards were counted."""
    guided, plain = (dry_run_of(losses=[{"name": "output", "guidance": scale}]) for scale in (2.0, 1.0))
    assert "sampling in 250 steps, one forward each or 250 guided steps, two forwards each" in dry_run_text(guided)
    assert "sampling in 250 guided steps, two forwards each;" in dry_run_text(plain)


def text(capsys, *words):
    code = program.main(["train", *words])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.fixture
def file(values, tmp_path):
    import yaml

    path = tmp_path / "config.yaml"
    changes = {"data": {"name": "npz", "path": "none.npz"}, "teacher": str(tmp_path / "none")}
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def test_dry_run_writes_nothing(file, values, capsys, monkeypatch, tmp_path):
    """Without data and without a teacher: the counts of step_operations, and no new file."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    stand_in = "{name: mdt, num_attention_heads: 4, attention_head_dim: 4, sample_size: 8, patch_size: 2, "
    stand_in += "in_channels: 1, num_classes: 3, num_layers: 4, decode_layer: 2}"
    code, out, _ = text(capsys, str(file), "dry_run=true", f"estimate.teacher={stand_in}")
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    expected = step_operations(step(make(TrainConfig, values)), small(2, 4), small(4, 4)).total
    (total,) = [line for line in out.splitlines() if line.startswith("total")][:1]
    assert float(total.split()[3]) == pytest.approx(expected / 1e9, abs=0.005)
    assert f"{8 * expected / 1e12:.3g} TFLOP" in out
    assert "none is not here" in out and "measured on" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "teacher: wanted a run folder"),
        ([], "to count without it, say what it will be: estimate.teacher='{name: mdt, size: B/2}'"),
        (["teacher=null"], "losses need a teacher"),
        (
            ["student={name: dit, size: S/2}", "estimate.teacher={name: mdt, size: S/2}"],
            "mask_ratio: the student (DiT) has no masked pass",
        ),
        (["estimate.teacher={name: mdt, size: Q/2}"], "no size 'Q/2'"),
        (["estimate.mfu=x"], "estimate.mfu"),
        (["losses=[{name: shd, passes: [side]}]"], "losses.0.passes: wanted one or more of plain, masked"),
        (["losses=[{name: shd, passes: [masked]}]", "mask_ratio=null"], "losses.0.passes: wanted one or more of plain"),
        (
            ["evaluation.every=1", "evaluation.steps=2000", "estimate.teacher={name: mdt, size: S/2}"],
            "evaluation: steps: wanted 1 to 1000, found 2000",
        ),
    ],
)
def test_dry_run_says_what_is_missing(file, capsys, words, message):
    code, out, err = text(capsys, str(file), "dry_run=true", *words)
    assert (code, out) == (2, "") and message in err


def test_without_a_teacher_nothing_of_one_is_told(file, capsys):
    code, out, _ = text(capsys, str(file), "dry_run=true", "losses=[]", "teacher=null", "estimate.measure=false")
    assert code == 0 and "teacher, forward" not in out and "measured" not in out
