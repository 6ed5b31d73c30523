"""`dit-shd train` as it is read: the header, the lines after it, a start from another run's weights."""

import json
import re

import pytest
import torch
import yaml
from language import GPT2, causal_lm, lines
from safetensors.torch import load_file

from dit_shd.cli import run_header
from dit_shd.cli.program import main
from dit_shd.cli.run_header import RemainingTime, duration, shown_terms
from dit_shd.cli.specification import command_names
from dit_shd.tasks import TASKS
from dit_shd.training.step import Step


@pytest.fixture
def file(values, tmp_path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def header(text: str) -> dict[str, str]:
    """The lines of a header by their names."""
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if re.match(r"[a-z, ]+\s{2,}\S", line)]
    return dict(lines)


def test_a_run_begins_with_what_it_is(file, values, capsys):
    assert main(["train", file, "steps=2"]) == 0
    captured = capsys.readouterr()
    told = header(captured.err)
    assert told["run"] == f"{values['run']}: a new run of task diffusion"
    assert "precision float32" in told["device"]
    assert re.search(r"MDTv2, 4 layers, 4 heads, width 16, 16 tokens, 0\.\d\d M parameters, \S+ GFLOP", told["teacher"])
    assert values["teacher"] in told["teacher"]
    assert "MDTv2, 4 layers, 2 heads, width 8" in told["student"]
    assert told["data"] == "npz: 60 samples, 3 classes, shape 1 x 8 x 8"
    assert told["layers, shd"].startswith("4 heads into 2 (contiguous, pairwise); 4 layers, each from the teacher's")
    assert told["losses"] == "plain: base + 1 x output + 0.5 x shd; masked: base + 1 x output"
    assert told["steps"] == "2 of 8 samples; an epoch of 60 samples is 7.5 steps, the run 0.3 epochs"
    assert f"next: dit-shd sample {values['run']} count=100" in captured.out
    assert main(["train", values["run"], "steps=4", "micro_batch_size=4"]) == 0, "a run folder goes on"
    told = header(capsys.readouterr().err)
    assert told["run"].startswith(f"{values['run']}: resumed from step 2 of 4")
    assert "as 2 micro batches of 4" in told["steps"]


def test_what_comes_next_is_sampled_as_the_run_has_learned(file, values, capsys):
    """The teacher's guided prediction was taught; the command leads to no warning that it is guided once more."""
    assert main(["train", file, "steps=1", "losses=[{name: output, guidance: 4.0}]"]) == 0
    assert f"next: dit-shd sample {values['run']} count=100 guidance=1" in capsys.readouterr().out


def test_a_run_that_is_not_sampled_from_ends_with_the_command_that_scores_it(tmp_path, capsys):
    causal_lm(GPT2).save_pretrained(tmp_path / "m")
    values = {
        "run": str(tmp_path / "run"),
        "task": "language_modeling",
        "data": {"name": "text", "path": lines(tmp_path), "length": 16},
        "student": {"name": "transformers", "source": str(tmp_path / "m")},
        "losses": [],
        "batch_size": 2,
        "steps": 1,
    }
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "lm.yaml")]) == 0
    assert capsys.readouterr().out.endswith(f"next: dit-shd perplexity {tmp_path / 'run'}\n")
    assert {TASKS.find(name).measured_by for name in TASKS.names()} - {""} <= set(command_names())


def test_the_remaining_time_comes_once_after_some_steps(monkeypatch):
    clock = iter([100.0, 138.0])
    monkeypatch.setattr(run_header.time, "monotonic", lambda: next(clock))
    remaining = RemainingTime(5, 105)
    said = [remaining.after(Step(number, {})) for number in range(6, 106)]
    assert [line for line in said if line] == ["about 3 min left: 2 s a step"] == [said[19]]
    assert [duration(s) for s in (90, 200, 20_000, 400_000)] == ["90 s", "3 min", "5.6 hours", "4.6 days"]


def test_the_bar_has_every_term_and_no_single_layer():
    metrics = {"step": 3, "loss": 1.0, "plain/noise": 0.5, "masked/noise": 0.25, "plain/shd": 2.0, "lr": 1e-3}
    metrics |= {"plain/shd/blocks.0/alpha": 0.5, "grad_norm/plain/shd": 1.0, "grad_norm": 2.0}
    assert shown_terms(metrics) == {"loss": "1.0000", "noise": "0.5000", "masked/noise": "0.2500", "shd": "2.0000"}


def test_a_new_run_begins_with_another_runs_weights(file, values, tmp_path, caplog):
    """All tensors are taken; after no step that moves them the students are equal."""
    caplog.set_level("INFO", "dit_shd")
    assert main(["train", file, "steps=2"]) == 0
    new = ["train", file, f"run={tmp_path / 'new'}", f"from={values['run']}", "steps=1", "losses=[{name: output}]"]
    caplog.clear()
    assert main([*new, "optimizer.lr=0", "ema=0"]) == 0
    said = caplog.text
    caplog.clear()
    before, after = (
        load_file(folder / "student" / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "run", tmp_path / "new")
    )
    count = sum(t.numel() for t in before.values())
    assert re.search(rf"from {values['run']}: ([\d,]+) of \1 parameters taken$", said, re.MULTILINE)
    assert count <= int(re.search(r"from \S+: ([\d,]+)", said)[1].replace(",", ""))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    record = json.loads((tmp_path / "new" / "from.json").read_text())
    assert record["source"] == values["run"] and record["taken"] == record["total"] and record["new"] == []
    assert main([*new, "optimizer.lr=0", "ema=0", "steps=2"]) == 0, "goes on; the weights are not taken again"
    assert "parameters taken" not in caplog.text


def test_weights_of_other_sizes_are_refused(file, values, tmp_path, teacher, capsys):
    assert main(["train", file, f"from={teacher}"]) == 2
    line = capsys.readouterr().err.strip()
    assert "of the student's" in line and "is [" in line
    assert not (tmp_path / "run").exists()
    assert main(["train", file, f"from={teacher}", "initialisation.weights=teacher"]) == 2
    assert "choose one of the two" in capsys.readouterr().err


def full_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")


@pytest.mark.parametrize(
    ("full", "where"),
    [
        (full_gpu, "on the GPU for 2.50 GiB"),
        (lambda *_: torch.empty(2**50, dtype=torch.uint8), "in memory for 1048576.0 GiB"),  # the allocator's own error
    ],
)
def test_running_out_of_memory_is_one_line(file, monkeypatch, capsys, full, where):
    from dit_shd.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "accumulate", full)
    assert main(["train", file]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"dit-shd train: no room {where} more; less memory: ")
    for key in ("micro_batch_size", "gradient_checkpointing=true", "dry_run=true", "auto"):
        assert key in line
