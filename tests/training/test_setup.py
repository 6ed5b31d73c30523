"""What losses find out before training: saved with the run, read back, the same for every process."""

import json
import logging
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from runs import run, weights
from small_families import diffusers_dit
from small_runs import TEACHER

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.files import remove
from dit_shd.models import loading
from dit_shd.models.families.mdt import MDTv2
from dit_shd.squeezing.matching import MapSimilarity
from dit_shd.training.config import TrainConfig
from dit_shd.training.parts import weights_of_files
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.setup import build
from dit_shd.training.trainer import Trainer

MATCHED = [{"name": "shd", "weight": 0.5, "plan": "matched", "method": "joint", "calibration": 2}]


def test_a_matched_plan_is_found_before_training_and_kept(values, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dit_shd"):
        config, metrics = run(values, losses=MATCHED)
    found = json.loads((config.run / "calibration.json").read_text())
    plans = found["shd"]["plans"]
    assert len(plans) == 4
    assert all(sorted(head for part in plan for head in part) == [0, 1, 2, 3] for plan in plans.values())
    assert f"de_blocks.0.attn: {plans['de_blocks.0.attn']}" in caplog.text
    explicit = [{"name": "shd", "weight": 0.5, "plan": plans, "method": "joint"}]
    other, same = run(values, losses=explicit, run=str(tmp_path / "explicit"))
    assert same == metrics
    assert all(torch.equal(v, weights(other.run)[k]) for k, v in weights(config.run).items())


def test_a_resumed_run_reads_its_plans(values):
    """A plan changed by hand in the file is what the resumed run works with: nothing is found anew."""
    config, _ = run(values, losses=MATCHED)
    file = config.run / "calibration.json"
    found = json.loads(file.read_text())
    found["shd"]["plans"]["de_blocks.0.attn"] = [[3, 0], [1, 2]]
    file.write_text(json.dumps(found))
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer.from_config(make(TrainConfig, {**values, "losses": MATCHED, "steps": 6}))
    assert trainer.first_step == 4
    (_, loss), *_ = trainer.accelerator.unwrap_model(trainer.distiller).named_losses()
    assert loss.squeezer.plans["de_blocks.0.attn"] == ((3, 0), (1, 2))
    file.write_text("{")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(UserError, match=r"calibration\.json: not readable"):
        Trainer.from_config(make(TrainConfig, {**values, "losses": MATCHED, "steps": 6}))


def test_a_run_that_ended_before_its_first_checkpoint_finds_its_plan_anew(values):
    """As it does everything else: its teacher may be another by now."""
    config, _ = run(values, losses=MATCHED, steps=1)
    file, folder = config.run / "calibration.json", RunFolder(config.run)
    found = file.read_text()
    file.write_text(found.replace("shd", "earlier"))
    remove(folder.newest)  # as if it had been killed before
    build(make(TrainConfig, {**values, "losses": MATCHED, "steps": 1})).folder.release()
    assert file.read_text() == found


def test_a_plan_looks_at_the_same_images_whatever_a_step_is_divided_into(values, tmp_path, monkeypatch):
    seen, add = [], MapSimilarity.add

    def noted(self, capture, row_weight=None):
        seen[-1].append(len(capture.query))
        add(self, capture, row_weight)

    monkeypatch.setattr(MapSimilarity, "add", noted)
    for size in (8, 2):
        seen.append([])
        run({**values, "losses": MATCHED, "run": str(tmp_path / str(size))}, steps=1, micro_batch_size=size)
    assert [set(sizes) for sizes in seen] == [{1, 8}, {1, 2}], "the first sample; no more than a micro batch has"
    assert sum(seen[0]) == sum(seen[1])
    plans = [(tmp_path / size / "calibration.json").read_text() for size in ("8", "2")]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "loss",
    [
        {"method": "per_query"},
        {"measure": "cross_entropy", "temperature": 2.0},
        {"rows": 0.5, "backend": "streamed"},
        {"plan": {f"{s}.{i}.attn": [[0, 3], [1, 2]] for s, i in
                  (("en_inblocks", 0), ("en_outblocks", 0), ("de_blocks", 0), ("de_blocks", 1))}},
    ],
)  # fmt: skip
def test_every_option_trains(values, loss):
    _, metrics = run(values, losses=[{"name": "shd", "weight": 0.5, **loss}])
    assert all(torch.isfinite(torch.tensor(list(m.values()))).all() for m in metrics)


def test_a_student_like_a_teacher_of_our_own_family_trains_and_goes_on(values):
    like = {"like": "teacher", "num_attention_heads": 2}
    run(values, student=like, steps=1)
    config, metrics = run(values, student=like, steps=2)
    student, teacher = loading.load(config.run / "student"), loading.load(values["teacher"])
    assert type(student) is MDTv2 and student.config.num_attention_heads == 2
    assert student.config.num_layers == teacher.config.num_layers and metrics[-1]["step"] == 2


def test_a_teacher_in_bfloat16_teaches_nearly_the_same(values, tmp_path):
    _, fine = run(values)
    _, low = run(values, teacher_precision="bf16", run=str(tmp_path / "low"))
    assert fine[0]["plain/shd"] != low[0]["plain/shd"]
    assert fine[0]["plain/shd"] == pytest.approx(low[0]["plain/shd"], rel=0.05)
    assert fine[0]["plain/output"] == pytest.approx(low[0]["plain/output"], rel=0.1)


@pytest.mark.parametrize("family", ["mdt", "like", "diffusers"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_student_begins_with_the_weights_of_its_teacher_s_files(values, teacher, tmp_path, family, precision):
    try:
        loading.load(teacher, precision)
    except UserError as error:  # this diffusers quantises on GPUs alone
        pytest.skip(str(error))
    values = {**values, "teacher_precision": precision, "initialisation": {"weights": "teacher", "calibration": 0}}
    values["losses"] = [{"name": "output"}]
    if family == "diffusers":
        diffusers_dit().save_pretrained(tmp_path / "dit")
        values |= {"teacher": str(tmp_path / "dit"), "student": {"like": "teacher"}, "task": {"mask_ratio": None}}
    else:
        values["student"] = {"like": "teacher"} if family == "like" else {**TEACHER}
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer.from_config(make(TrainConfig, values))
    student = trainer.accelerator.unwrap_model(trainer.distiller).student.state_dict()
    of_files = loading.load(values["teacher"]).state_dict()
    assert any(not torch.equal(x, x.bfloat16().float()) for x in of_files.values())
    assert all(torch.equal(x, of_files[name]) for name, x in student.items())


@pytest.mark.parametrize(("files", "precision", "read"), [
    ("bf16", "bf16", None), ("bf16", "no", None), ("no", "no", None),
    ("bf16", "int8", torch.bfloat16), ("no", "bf16", torch.float32),
])  # fmt: skip
def test_a_teacher_s_files_are_read_again_where_it_holds_less_than_they(values, tmp_path, files, precision, read):
    model = diffusers_dit()
    (model.bfloat16() if files == "bf16" else model).save_pretrained(tmp_path / "dit")
    config = make(TrainConfig, {**values, "teacher": str(tmp_path / "dit"), "teacher_precision": precision})
    weights = weights_of_files(config)
    assert weights is None if read is None else {x.dtype for x in weights.values()} == {read}


def test_a_matched_plan_serves_the_masked_pass_too(values):
    loss = {**MATCHED[0], "passes": ["plain", "masked"]}
    config, _ = run(values, losses=[loss])
    plans = json.loads((config.run / "calibration.json").read_text())["shd"]["plans"]
    assert "sideblocks.0.attn" in plans


@pytest.mark.parametrize("field", ["images", "dino"])
def test_a_loss_that_reads_what_no_batch_has_is_refused(values, field):
    """The images of digits are given one by one, to classification."""
    losses = [{"name": "output"}, {"name": "repa", "field": field, "depth": 2}]
    message = rf"^losses\.1: reads {field} of the data, whose batches have labels, latents; choose other data"
    with pytest.raises(UserError, match=message):
        run(values, data={"name": "digits"}, losses=losses)
    assert not Path(values["run"]).exists()


def test_what_nothing_would_train_is_told(values, tmp_path, caplog):
    """A variance that stays at zero is how a model of velocity is known: the student could not be sampled from."""
    values = {**values, "base_weight": 0.0, "steps": 1}
    with pytest.raises(UserError, match=r"base_weight: is 0, and no loss trains the variance .*learn_sigma=false has"):
        run(values, losses=[{"name": "output"}])
    assert not Path(values["run"]).exists()
    run(values, losses=[{"name": "output", "variance": True}])
    assert "base_weight" not in caplog.text
    begun = {"weights": "teacher", "calibration": 0}
    run(values, losses=[{"name": "output"}], initialisation=begun, run=str(tmp_path / "begun"))
    assert "false has none; it stays as it begins" in caplog.text
    run(values, losses=[{"name": "shd"}], run=str(tmp_path / "maps"))
    assert "no loss reads what the student predicts: its last layer stays as it begins" in caplog.text


def test_other_settings_than_the_teachers_are_told_once(values, caplog, monkeypatch):
    """When the run begins: one that goes on takes no weights of its teacher."""
    monkeypatch.setattr("dit_shd.distillation.initialisation.initialise.in_words", lambda _: "activation")
    monkeypatch.setattr("dit_shd.distillation.initialisation.initialise.differing_settings", lambda *_: {"act": (1, 2)})
    begun = {"weights": "teacher", "calibration": 0}
    run(values, initialisation=begun, steps=1)
    assert caplog.text.count("its teacher's weights mean something else (activation)") == 1
    run(values, initialisation=begun, steps=2)
    assert caplog.text.count("mean something else") == 1


def test_a_student_whose_blocks_are_not_recomputed_is_refused_before_there_is_a_folder(values, monkeypatch):
    monkeypatch.setattr(MDTv2, "_supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"^gradient_checkpointing: diffusers recomputes no blocks of MDTv2; wanted gr"):
        build(make(TrainConfig, {**values, "gradient_checkpointing": True}))
    assert not Path(values["run"]).exists()
