"""What a dry run says beside counts."""

import pytest
from language import GPT2, causal_lm, lines
from tiny_pipelines import write_pipeline

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training import dry_run as module
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run


def test_a_student_of_a_folder_is_measured_as_it_trains(tmp_path, monkeypatch):
    """transformers reads models for evaluation, in which blocks are not computed again, nor dropped out in."""
    causal_lm(GPT2).save_pretrained(tmp_path / "m")
    modes, average = [], module.EMA

    def noted(student, *rest):
        modes.append(student.network.training)
        return average(student, *rest)

    monkeypatch.setattr(module, "EMA", noted)
    values = {
        "run": str(tmp_path / "run"),
        "task": "language_modeling",
        "data": {"name": "text", "path": lines(tmp_path), "length": 16},
        "student": {"name": "transformers", "source": str(tmp_path / "m")},
        "losses": [],
        "dry_run": True,
    }
    assert dry_run(make(TrainConfig, values)).measured is not None
    assert modes == [True]
    auto = {**values, "micro_batch_size": "auto", "batch_size": 4, "estimate": {"measure": False}}
    assert "micro_batch_size=auto: counted with 4 images in a forward;" in dry_run_text(
        dry_run(make(TrainConfig, auto))
    )


def test_a_teacher_that_is_not_there_yet_may_have_more_stochastic_depth_than_the_student(tmp_path):
    model = {"name": "timm", "model": "deit_tiny_patch16_224", "img_size": 28, "in_chans": 1, "num_classes": 10}
    model |= {"mean": [0.1], "std": [0.3], "options": {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}}
    values = {
        "run": str(tmp_path / "run"),
        "task": "classification",
        "data": "digits",
        "student": model,
        "teacher": "runs/nowhere",
        "losses": [{"name": "kd"}],
        "dry_run": True,
        "estimate": {"teacher": {**model, "drop_path_rate": 0.2}},
    }
    assert dry_run(make(TrainConfig, values)).measured is not None


@pytest.mark.parametrize(
    ("key", "value"), [("mfu", 0), ("mfu", -1), ("mfu", 7), ("samples", -5), ("sampling_steps", 0)]
)
def test_assumptions_that_cannot_be_are_refused(values, key, value):
    with pytest.raises(UserError, match=rf"estimate\.{key}: "):
        dry_run(make(TrainConfig, {**values, "dry_run": True, "estimate": {key: value}}))


def test_it_says_what_the_student_begins_with(tmp_path):
    values = {
        "run": str(tmp_path / "run"),
        "task": {"name": "text_to_image", "side": 8, "text_tokens": 5},
        "data": {"name": "text_latents", "path": "nowhere"},
        "teacher": str(write_pipeline("sd3", tmp_path / "pipeline")),
        "student": {"like": "teacher", "num_attention_heads": 2},
        "initialisation": {"weights": "teacher"},
        "losses": [{"name": "output"}],
        "dry_run": True,
        "estimate": {"measure": False},
    }
    text = dry_run_text(dry_run(make(TrainConfig, values)))
    assert "begins with its teacher's weights:\ntransformer_blocks.0 from transformer_blocks.0; attn heads: " in text
    assert "stream: 16 of 32 channels" in text
    values["initialisation"]["heads"] = "merge"
    with pytest.raises(UserError, match=r"initialisation\.heads=pick"):
        dry_run(make(TrainConfig, values))


def test_a_language_student_that_begins_with_weights(tmp_path):
    """As the recipes of Dolly have it, whose headers name this command."""
    causal_lm(GPT2).save_pretrained(tmp_path / "gpt2")
    values = {
        "run": str(tmp_path / "run"),
        "task": {"name": "language_modeling"},
        "data": {"name": "text", "path": lines(tmp_path), "tokenizer": "bytes", "length": 16},
        "student": {"name": "transformers", "source": str(tmp_path / "gpt2"), "config": {"attn_pdrop": 0.1}},
        "dry_run": True,
    }
    done = dry_run(make(TrainConfig, values))
    assert {p.device.type for p in done.student.parameters()} == {"meta"}
    assert done.measured is not None and done.operations.total > 0
    values["student"]["config"] = {"n_head": 2}
    with pytest.raises(UserError, match="pretrained: false"):
        dry_run(make(TrainConfig, values))


@pytest.mark.parametrize("here", [True, False])
def test_a_teacher_that_is_not_read_in_few_bits_is_refused_as_training_does(tmp_path, here):
    """It was counted in 8 bits, and training refused it: int8 of LLaMA is where 8 bits would pay."""
    teacher = str(tmp_path / "gpt2") if here else "runs/later"
    causal_lm(GPT2).save_pretrained(tmp_path / "gpt2")
    stand_in = {"name": "transformers", "config": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}}
    values = {
        "run": str(tmp_path / "run"),
        "task": {"name": "language_modeling"},
        "data": {"name": "text", "path": lines(tmp_path), "tokenizer": "bytes", "length": 16},
        "student": {"name": "transformers", "source": str(tmp_path / "gpt2")},
        "teacher": teacher,
        "losses": ["kd"],
        "estimate": {"measure": False, "teacher": stand_in},
        "dry_run": True,
    }
    assert dry_run(make(TrainConfig, values)).operations.total > 0
    with pytest.raises(UserError, match=f"{teacher}: teacher_precision=int8 reads folders of diffusers"):
        dry_run(make(TrainConfig, {**values, "teacher_precision": "int8"}))


def flux(layers):
    sizes = {"num_layers": layers, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    sizes |= {"in_channels": 4, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": [4, 6, 6]}
    return {"name": "diffusers", "transformer": "FluxTransformer2DModel", "config": sizes}


def sharded(tmp_path, **changes):
    values = {
        "run": str(tmp_path / "run"),
        "task": "text_to_image",
        "data": {"name": "text_latents", "path": str(tmp_path / "nowhere")},
        "teacher": "hub:somebody/something",
        "student": {"like": "teacher", "num_layers": 1},
        "losses": ["output"],
        "precision": "bf16",
        "sharding": "fsdp2",
        "dry_run": True,
        "estimate": {"measure": False, "teacher": flux(3)},
    }
    return make(TrainConfig, {**values, **changes})


def test_neither_processes_nor_the_teacher_are_needed(tmp_path):
    """One process counts a run in slices; a student like a teacher that is not here is like its stand-in."""
    counted = dry_run(sharded(tmp_path))
    assert (type(counted.student).__name__, counted.student.config.num_layers) == ("FluxTransformer2DModel", 1)
    assert counted.teachers["teacher"].config.num_layers == 3
    assert counted.fsdp2_refusal is None
    refused = dry_run(sharded(tmp_path, sharding="no", gradient_norms_every=1))
    assert "gradient_norms_every" in refused.fsdp2_refusal
    with pytest.raises(UserError, match="fsdp2 cannot measure each term's gradient"):
        dry_run(sharded(tmp_path, gradient_norms_every=1))
