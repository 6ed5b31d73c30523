"""Training at scale: slices of weights, compiled and recomputed blocks, meters, teachers that stop."""

import socket
import subprocess
import sys
from contextlib import closing
from functools import partial

import pytest
import runs
import torch
import torch._dynamo
import yaml
from runs import drawn_by, rows, run, same_weights, weights
from safetensors.torch import load_file
from two_process_jobs import said
from two_process_jobs.training import SLICES, configs

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.training.compilation import ONCE, check_compiler, compile_blocks
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer

compiles = pytest.mark.skipif(not hasattr(torch._dynamo.config, ONCE), reason="refused: this torch is too old")


close = partial(runs.close, rel=1e-4)
slices = pytest.mark.skipif(not SLICES, reason="this torch slices on GPUs only")
quick = pytest.mark.two_processes("training")
others = [pytest.mark.slow, pytest.mark.two_processes("other_training")]


@slices
@pytest.mark.two_processes("training")
def test_sharded_training_equals_whole_training_and_checkpoints_fit_both(by_two):
    """fully_shard on gloo: teacher, student, optimizer and averages in slices; then on by one process, whole."""
    one, two = (by_two / "sharded" / name for name in ("one", "two"))
    close(rows(one), rows(two))
    same_weights(one, two)
    values, _ = configs(by_two)["sharded"]
    (_, straight), (_, on) = (run(values, run=str(folder), steps=4) for folder in (one, two))
    close(straight, on)
    assert [row["step"] for row in rows(by_two / "resumed")] == [1, 2, 3, 4, 5]  # begun by one process, whole


@slices
@pytest.mark.slow
def test_four_processes_of_two_nodes_learn_as_one_and_two_go_on(values, root, tmp_path):
    """torchrun's rendezvous of two nodes, both on this machine; slices of four processes, then of two."""
    values |= {"batch_size": 8, "log_every": 1, "checkpoint_every": 2}
    run(values, run=str(tmp_path / "one"), steps=4)
    file = tmp_path / "values.yaml"
    for count, steps in ((2, 2), (1, 4)):
        file.write_text(yaml.safe_dump({**values, "run": str(tmp_path / "nodes"), "steps": steps, "sharding": "fsdp2"}))
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            port = str(probe.getsockname()[1])
        words = ["-m", "torch.distributed.run", "--nnodes=2", f"--nproc_per_node={count}", f"--master_port={port}"]
        words += ["--master_addr=127.0.0.1"]
        nodes = [
            subprocess.Popen([sys.executable, *words, f"--node_rank={node}", str(root / "train_dit.py"), str(file)])
            for node in range(2)
        ]
        assert [node.wait(300) for node in nodes] == [0, 0]
    close(rows(tmp_path / "one"), rows(tmp_path / "nodes"))
    first, second = (weights(tmp_path / name, "student") for name in ("one", "nodes"))
    for name in first:  # the bias of keys has no gradient but rounding, which Adan makes steps of
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-3)


@slices
@pytest.mark.two_processes("training")
def test_sharded_projectors_learn_and_a_bad_step_of_one_process_holds_up_nobody(by_two):
    """The process that finds the bad number at once gathers slices for the others that go on looking."""
    one, two = (by_two / "bad" / name for name in ("one", "two"))
    close(rows(one), rows(two))
    assert [row.get("skipped_steps", 0) for row in rows(one)] == [0, 1, 1]
    same_distillers(one, two)


@pytest.mark.parametrize(
    "name", [pytest.param("hints", marks=quick), pytest.param("sharded_hints", marks=[slices, *others])]
)
def test_two_processes_learn_from_hidden_states_as_one(by_two, name):
    """The projector has no part in the masked pass, the one in which gradients are synchronised."""
    one, two = (by_two / name / folder for folder in ("one", "two"))
    close(rows(one), rows(two))
    same_distillers(one, two)


@pytest.mark.parametrize(
    "name", [pytest.param("projectors", marks=others), pytest.param("sharded_projectors", marks=[slices, quick])]
)
def test_two_processes_learn_projectors_as_one(by_two, name):
    """Whose sizes are the models'; the parameters of an orthonormal one are gathered for its decomposition."""
    one, two = (by_two / name / folder for folder in ("one", "two"))
    close(rows(one), rows(two))
    same_distillers(one, two)


@slices
@pytest.mark.two_processes("training")
def test_a_part_of_a_block_that_is_used_after_it_is_gathered(by_two):
    """As of diffusers' DiT, whose end asks the first block for the embedding of labels."""
    one, two = (by_two / "sharded_diffusers" / folder for folder in ("one", "two"))
    close(rows(one), rows(two))
    same_distillers(one, two)


@pytest.mark.parametrize(
    "name", [pytest.param("teachers", marks=others), pytest.param("sharded_teachers", marks=[slices, *others])]
)
def test_two_processes_learn_from_two_teachers_as_one(by_two, name):
    """Of unlike heads and depths; in the masked pass only the second one is read."""
    one, two = (by_two / name / folder for folder in ("one", "two"))
    assert {"plain/shd", "plain/shd#2", "masked/output"} <= rows(two)[0].keys()
    close(rows(one), rows(two))
    same_distillers(one, two)


def same_distillers(one, two):
    """The last checkpoints of two runs hold the same students and projectors."""
    first, second = (
        load_file(folder / "checkpoints" / "step_00000003" / "distiller.safetensors") for folder in (one, two)
    )
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharding": "fsdp2"}, "needs two processes"),
        ({"ema": []}, "ema: wanted one or more rates"),
        ({"ema": [0.9, 0.9]}, "each once"),
        ({"ema": [0.9, 1.5]}, "ema: wanted a number from 0 to 1"),
        ({"losses": [{"name": "shd", "weight": {}}]}, "found nothing"),
        ({"losses": [{"name": "shd", "weight": {-1: 2.0}}]}, "wanted whole steps from 0"),
        ({"losses": [{"name": "shd", "weight": {0: -2.0}}]}, "weight: wanted 0 or more"),
        (
            {"losses": [{"name": "shd", "weight": {"late": 2.0}}]},
            "losses.0.weight: wanted a whole number, found 'late'",
        ),
        ({"evaluation": {"every": 1, "count": 0}}, "evaluation: count: wanted 1 or more"),
        ({"evaluation": {"every": 1}, "diffusion_steps": 40}, "evaluation: steps: wanted 1 to 40, found 50"),
        (
            {"evaluation": {"every": 1, "sample": {"vae": "nowhere"}}},
            "vae: wanted a folder with .* found nothing at 'nowhere'",
        ),
        ({"evaluation": {"every": 1, "reference": "digits:validation", "features": "digits"}}, r"found .*\(8, 8, 1\)"),
        ({"evaluation": {"every": 1, "sample": {"solvr": "ddim"}}}, "unknown key 'solvr', did you mean 'solver'"),
        ({"evaluation": {"every": 1, "reference": "nowhere.npz", "features": "digits"}}, "found nothing at"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(values, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run({**values, **changes})
    assert not (tmp_path / "run").exists()


def test_recomputed_blocks_give_the_same_run(values, tmp_path):
    _, plain = run(values, steps=2)
    _, again = run(values, steps=2, gradient_checkpointing=True, run=str(tmp_path / "again"))
    close(plain, again, rel=1e-5)


def test_timing_tells_throughput_and_memory(values):
    config, _ = run(values, steps=2, peak_tflops=1.0)
    timing = rows(config.run, "timing.jsonl")
    assert len(timing) == 2
    for row in timing:
        assert row["images_per_second"] == pytest.approx(8 / row["seconds"], rel=0.05)
        assert 0.01 < row["memory_gib"] < 24
        assert row["mfu"] == pytest.approx(row["tflops"], rel=0.01)
        assert row["tflops"] > 0


def test_a_loss_that_has_ended_is_in_no_row_and_no_operations_of_its_teacher_are_counted(values):
    values["losses"] = [{"name": "shd", "weight": {0: 1.0, 2: 0.0}}]
    config, metrics = run({**values, "mask_ratio": None}, steps=4)
    assert ["plain/shd" in row for row in metrics] == [True, True, False, False]
    begin, last, after, end = (row["tflops"] * row["seconds"] for row in rows(config.run, "timing.jsonl"))
    assert begin == pytest.approx(last, rel=0.01) and after == pytest.approx(end, rel=0.01)
    assert after < 0.8 * begin


def test_the_teacher_stops_after_the_last_layer_that_is_needed(values):
    """The same value and gradients; the layers behind do not run."""
    layers = {"en_inblocks.0.attn": "en_inblocks.0.attn"}
    trainer = Trainer.from_config(make(TrainConfig, {**values, "losses": [{"name": "shd", "layers": layers}]}))
    batch = drawn_by(trainer, 0, range(4))["plain"]
    ran = []
    for name, block in trainer.teachers["teacher"].named_modules():
        if name.endswith("blocks.0"):
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    losses = list(trainer.state.distiller.losses)
    whole = Distiller(trainer.task, trainer.student, losses, stop_teacher_early=False)
    found = []
    for distiller in (trainer.state.distiller, whole, whole):
        ran.clear()
        distiller.zero_grad()
        loss, _ = distiller(batch, trainer.teachers["teacher"])
        loss.backward()
        found.append((loss.detach(), trainer.student.pos_embed.grad.clone(), list(ran)))
    (cut, cut_grad, few), _, (all_, all_grad, every) = found
    assert torch.equal(cut, all_)
    assert torch.equal(cut_grad, all_grad)
    assert few == []  # the hook of a block that is left in its middle does not run
    assert len(every) == 3
    assert (
        trainer.task.predict(trainer.teachers["teacher"], batch).prediction.isfinite().all()
    )  # and it works as before


def test_a_teacher_whose_output_is_read_runs_to_its_end(values):
    shd = {"name": "shd", "layers": {"en_inblocks.0.attn": "en_inblocks.0.attn"}}
    trainer = Trainer.from_config(make(TrainConfig, {**values, "losses": [shd, {"name": "output"}]}))
    ran = []
    last = trainer.teachers["teacher"].final_layer.register_forward_hook(lambda *_: ran.append("final_layer"))
    trainer.state.distiller(drawn_by(trainer, 0, range(4))["plain"], trainer.teachers)
    assert ran == ["final_layer"]
    last.remove()


@compiles
def test_compiled_blocks_give_the_same_losses_and_settle(values):
    """With captures handed on while blocks run, in both passes; once two numbers of kept tokens have been seen, any
    number is served by what is compiled."""
    plain, compiled = (
        Trainer.from_config(make(TrainConfig, {**values, "run": f"{values['run']}{i}"})) for i in range(2)
    )
    compile_blocks(compiled.student, *compiled.teachers.values(), backend="aot_eager")
    counter = torch._dynamo.utils.counters
    graphs = []
    for number in range(7):
        for batch in drawn_by(plain, number, range(4)).values():
            (one, logs), (two, others) = (t.state.distiller(batch, t.teachers) for t in (plain, compiled))
            assert logs.keys() == others.keys()
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
            one.backward()
            two.backward()
        graphs.append(counter["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[3] == graphs[6]
    for p, q in zip(plain.student.parameters(), compiled.student.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"precision": "bf16"}])
@compiles
def test_compiled_training_by_inductor(values, tmp_path, changes):
    """Needs a C++ compiler and some minutes."""
    _, plain = run({**values, **changes, "run": str(tmp_path / "plain")}, steps=2)
    _, compiled = run({**values, **changes, "compile": True}, steps=2)
    close(plain, compiled, rel=3e-2 if "precision" in changes else 1e-3)


@pytest.mark.slow
@slices
@compiles
@pytest.mark.two_processes("compiled")
@pytest.mark.parametrize("name", ["whole", "dit", "recomputed", "mdt"])
def test_two_processes_train_compiled_blocks_as_one_trains_plain_ones(by_two, name):
    """By inductor; a graph is broken only where attention with MDT's table is not one operator, on a CPU."""
    one, two = (by_two / name / folder for folder in ("one", "two"))
    close(rows(one), rows(two), rel=1e-3)
    same_distillers(one, two)
    for (broken,) in said(by_two):
        assert name == "mdt" or broken[name] == 0


@compiles
def test_without_a_compiler_compile_is_one_line(values, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nwas found")

    check_compiler.cache_clear()  # of a test in which it worked
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"^compile: torch.compile does not work here \(no C\+\+ compiler was found\)"):
        run({**values, "compile": True})
    with pytest.raises(
        UserError, match=r"^optimizer\.name=adamw8bit: torch.compile does not work here \(no C\+\+ comp"
    ):
        run({**values, "optimizer": {"name": "adamw8bit"}, "run": f"{values['run']}8"})
