"""Text to image: captions that are dropped, sizes and teachers that do not fit, keys that do nothing."""

import json
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from encoded_text import encode
from safetensors.torch import load_file, save_file
from text_to_image import values
from tiny_pipelines import KINDS, OTHERS, flux, write_pipeline

from dit_shd.core import plugins, rng
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import Kept
from dit_shd.diffusion import adapters
from dit_shd.diffusion.adapters.sd3 import SD3
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.validation_loss import ValidationLoss
from dit_shd.models import loading
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.tasks import TASKS
from dit_shd.tasks.text_to_image import TextToImage
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.trainer import Trainer


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A pipeline whose licence forbids derivatives, and what was encoded by it."""
    folder = tmp_path_factory.mktemp("one")
    pipeline = write_pipeline("sd3", folder / "pipeline")
    (pipeline / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    return pipeline, encode(folder, pipeline)


def test_dropped_captions_are_those_of_the_raw_stream_and_become_the_empty_prompt(one):
    pipeline, latents = one
    task = TextToImage(text_dropout=0.5)
    task.use(DATASETS.build(Plugin("text_latents", {"path": str(latents)})), loading.load(str(pipeline)))
    whole = TextToImage(text_dropout=0.0)
    whole.use(task.dataset, loading.load(str(pipeline)))
    ((batch,), (kept,)) = (each.draw(Draws(5, 3, range(12), 12)) for each in (task, whole))
    drop = [bool(rng.stream(5, "text/plain", 3, i).random() < 0.5) for i in range(12)]
    assert 2 < sum(drop) < 10
    empty = Prompts.load(str(pipeline), torch.device("cpu"))([""])
    for i, dropped in enumerate(drop):
        shown, full = batch.text[i][batch.text_mask[i]], kept.text[i][kept.text_mask[i]]
        torch.testing.assert_close(shown, empty.embeddings[0][empty.mask[0]] if dropped else full)
        torch.testing.assert_close(batch.text_pooled[i], empty.pooled[0] if dropped else kept.text_pooled[i])
        assert torch.equal(batch.x_t[i], kept.x_t[i])


def test_a_model_that_learned_a_scale_is_given_the_task_s():
    """FLUX.1 dev's training script gives 3.5."""
    model, scales = flux().transformer, []
    model.register_forward_pre_hook(lambda _, args, kwargs: scales.append(kwargs["guidance"]), with_kwargs=True)
    for scale in (2.5, None):
        task = TextToImage(embedded_guidance=scale, side=4, text_tokens=3)
        (batch,) = task.example(model, 2, torch.device("cpu"))
        task.predict(model, batch)
    assert [x.tolist() for x in scales] == [[2.5, 2.5], [3.5, 3.5]]


def test_a_student_without_the_scale_may_have_a_teacher_that_is_given_it():
    guided, plain, task = flux().transformer, flux().transformer, TextToImage(embedded_guidance=4.0)
    plain.register_to_config(guidance_embeds=False)
    assert guided.config.guidance_embeds
    task.check_together({"student": plain, "teacher": guided})
    with pytest.raises(UserError, match=r"embedded_guidance: wanted a model that is given a guidance scale, found the"):
        task.check_together({"student": plain})


def test_text_encoders_are_never_in_memory_while_training(one, tmp_path, monkeypatch):
    import transformers

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model of transformers is built")

    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    evaluation = {"data": {"name": "text_latents", "path": str(one[1])}, "count": 2}
    changes = {"task": {"name": "text_to_image", "evaluation": evaluation}, "validate_every": 1, "steps": 1}
    config = make(TrainConfig, values("sd3", *one, tmp_path / "run", **changes))
    (step,) = list(Trainer.from_config(config).run_steps())
    assert step.metrics["loss"] > 0
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "cc-by-nd-4.0" in card
    assert "forbids to pass on what is made of them" in card


def test_held_out_latents_are_of_the_autoencoder_of_those_that_are_learned(one, tmp_path, caplog):
    """By the same text encoders alone they would be taken; and data that are learned are not held out."""
    evaluation = {"data": {"name": "text_latents", "path": str(one[1])}, "count": 2}
    changes = {"task": {"name": "text_to_image", "evaluation": evaluation}, "validate_every": 1, "steps": 1}
    trainer = Trainer.from_config(make(TrainConfig, values("sd3", *one, tmp_path / "run", **changes)))
    trainer.folder.release()
    assert "is the data that is learned" in caplog.text
    pipeline = shutil.copytree(one[0], tmp_path / "pipeline")
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.1 * x for name, x in load_file(file).items()}, file, {"format": "pt"})
    held_out = Plugin("text_latents", {"path": str(encode(tmp_path, pipeline))})
    smaller = Plugin("text_latents", {"path": str(encode(tmp_path / "smaller", one[0], size=8))})
    trainer.task.evaluation = ValidationLoss(smaller, count=2)
    with pytest.raises(UserError, match=r"wanted latents of the run's size, 4 x \d+ x \d+, found 4 x"):
        trainer.task.check_evaluation(trainer.student, Kept(None))
    trainer.task.evaluation = ValidationLoss(held_out)
    with pytest.raises(UserError, match=r"wanted 512 samples or more in task.evaluation.data, found \d+; set count="):
        trainer.task.check_evaluation(trainer.student, Kept(None))
    trainer.task.evaluation = ValidationLoss(held_out, count=2)
    with pytest.raises(UserError, match=r"its latents are those of .*, and the run's of "):
        trainer.task.check_evaluation(trainer.student, Kept(None))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sd3", {"side": 7}, "takes latents whose sides are multiples of 2, those of task.side are 7 x 7"),
        ("sd3", {"side": 64}, r"has positions for latents of at most \d+ a side, those of task.side are 64"),
        ("hunyuan_dit", {"text_tokens": 5}, "task.text_tokens: a HunyuanDiT2DModel takes 333, found 5; leave it out"),
    ],
)
def test_sizes_that_a_model_does_not_take_are_refused_where_there_are_no_data(kind, options, message):
    """They were errors of shapes, from the inside of diffusers."""
    with pytest.raises(UserError, match=message):
        TextToImage(**options).example(KINDS[kind]().transformer, 1, torch.device("meta"))


@pytest.mark.parametrize("by", ["scaling", "weights"])
def test_a_teacher_of_other_latents_is_refused(one, tmp_path, by):
    """A scale of 0.8 of the pipeline's passes all that is measured of its noise."""
    own = loading.load(str(one[0]))
    task = TextToImage()
    task.use(DATASETS.build(Plugin("text_latents", {"path": str(one[1])})), own)
    (finding,) = task.check_teacher(own, 0, torch.device("cpu"), measure=False)
    assert finding.fault is None
    pipeline = shutil.copytree(one[0], tmp_path / "pipeline")
    if by == "scaling":
        file = pipeline / "vae" / "config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "scaling_factor": 0.8 * settings["scaling_factor"]}))
    else:
        file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: 1.1 * x for name, x in load_file(file).items()}, file, {"format": "pt"})
    (finding,) = task.check_teacher(loading.load(str(pipeline)), 0, torch.device("cpu"), measure=False)
    reason = {"scaling": "scales them otherwise", "weights": "encoder has other weights"}[by]
    assert reason in finding.fault and str(pipeline / "vae") in finding.fault


@pytest.mark.parametrize(
    ("kind", "scheduler", "message"),
    [
        ("pixart", {"prediction_type": "v_prediction"}, "says prediction_type: v_prediction, and .*, epsilon; encode"),
        ("pixart", {"beta_end": 0.03}, r"scheduler_config.json says beta_end: 0.03, and the data's .*, 0.02; encode"),
        ("pixart", {"num_train_timesteps": 500}, "says num_train_timesteps: 500, and the data's .*, 1000; encode"),
        ("pixart", {"trained_betas": [0.1, 0.2]}, r"says trained_betas: \[0.1, 0.2\], and the data's .*, None; encode"),
        ("sd3", {"_class_name": "DDIMScheduler"}, "has a scheduler of DDPM, and the data's pipeline, .*, one of flow"),
        ("pixart", {"_class_name": "PNDMScheduler", "steps_offset": 1}, None),
        ("sd3", {"shift": 1.0}, None),
    ],
)
def test_a_teacher_that_learned_another_noise_than_the_data_s_is_refused(tmp_path, kind, scheduler, message):
    data = encode(tmp_path, write_pipeline(kind, tmp_path / "encoder"))
    place = write_pipeline(kind, tmp_path / "pipeline")
    file = place / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))
    teacher, task = loading.load(str(place)), TextToImage()
    task.use(DATASETS.build(Plugin("text_latents", {"path": str(data)})), teacher)
    with nullcontext() if message is None else pytest.raises(UserError, match=f"^teacher: .*{message}"):
        task.check("teacher", teacher)


def test_a_dry_run_has_the_sizes_of_data_that_are_there(one, tmp_path):
    dataset = DATASETS.build(Plugin("text_latents", {"path": str(one[1])}))
    tokens, (y, x) = dataset.text(np.zeros(1, dtype=int)).tokens, dataset.shape[-2:]
    changes = {"task": {"name": "text_to_image", "side": 2, "text_tokens": 99}, "estimate": {"measure": False}}
    config = make(TrainConfig, {**values("sd3", *one, tmp_path / "run", **changes), "dry_run": True})
    run = dry_run(config)
    (batch,) = run.task.example(run.student, 1, torch.device("meta"))
    assert batch.x_t.shape[-2:] == (y, x) and batch.text.shape[1] == tokens != 99
    text = dry_run_text(run)
    assert "sampling in 28 guided steps, two forwards each; decoding and evaluation not counted" in text
    model, _, *facts = text.splitlines()[1].split()
    assert (model, facts[0]) == ("teacher", "3")  # two blocks, one of which has two layers; text rows are not counted


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"min_snr_gamma": 5.0},
            "sd3",
            r"task\.min_snr_gamma: of DDPM; a SD3Tran\w* is of flow; leave it out",
        ),
        ({"weighting": "cosmap", "timestep_density": {"name": "uniform"}}, "pixart", r"weighting and .* is of DDPM"),
        ({"min_snr_gamma": -5.0}, "pixart", r"task\.min_snr_gamma: wanted a number above 0 .*, found -5"),
        ({"min_snr_gamma": 0.0}, "pixart", r"task\.min_snr_gamma: wanted a number above 0 .*, found 0"),
        ({"embedded_guidance": -3.0}, "flux", r"task\.embedded_guidance: wanted 0 or more, found -3"),
        ({"side": 0}, "sd3", r"task\.side: wanted 1 or more, found 0"),
    ],
)
def test_keys_that_do_nothing_or_harm_are_refused(options, kind, message):
    def example():
        task = TASKS.build(Plugin("text_to_image", options), "task")
        return task.example({**KINDS, **OTHERS}[kind]().transformer, 1, torch.device("meta"))

    with pytest.raises(UserError, match=message):
        example()


def test_what_is_not_said_of_the_density_is_the_tasks_own():
    task = TASKS.build(Plugin("text_to_image", {"timestep_density": {"shift": 2.0, "std": 0.5}}), "task")
    assert task.density == TimestepDensity(name="logit_normal", shift=2.0, std=0.5)


def test_the_adapter_that_the_data_were_encoded_with_is_their_models_too(one, tmp_path, monkeypatch):
    latents = shutil.copytree(one[1], tmp_path / "latents")
    file = latents / "text" / "text.json"
    values_of_file = json.loads(file.read_text())
    values_of_file["pipeline"]["adapter"] = "mine.Mine"
    file.write_text(json.dumps(values_of_file))
    monkeypatch.setitem(sys.modules, "mine", module := ModuleType("mine"))
    module.Mine = type("Mine", (SD3,), {"__module__": "mine"})
    monkeypatch.setattr(plugins, "_trusted", {"mine"})
    monkeypatch.setattr(adapters, "by_class", dict)
    config = make(TrainConfig, values("sd3", one[0], latents, tmp_path / "run"))
    assert Trainer.from_config(config).task.process.kind == "flow"
    config = make(TrainConfig, {**values("sd3", one[0], latents, tmp_path / "dry"), "estimate": {"measure": False}})
    assert dry_run(config).teachers


def test_layers_of_cross_attention_are_named(tmp_path, one):
    layers = {"transformer_blocks.0.attn9": "transformer_blocks.0.attn"}
    losses = [{"name": "shd", "layers": layers}]
    with pytest.raises(UserError, match=r"no layer fits 'transformer_blocks.0.attn9'. Layers: transformer_blocks"):
        Trainer.from_config(make(TrainConfig, values("sd3", *one, tmp_path / "run", losses=losses)))


def test_bad_input(one, tmp_path, caplog):
    other = write_pipeline("sd3", tmp_path / "other", seed=1)
    config = make(TrainConfig, {**values("sd3", *one, tmp_path / "run"), "teacher": str(other)})
    with pytest.raises(
        UserError, match=r"teacher: .* has learned other text encoders .* encode the captions with its own"
    ):
        Trainer.from_config(config)
    learned = shutil.copytree(one[0] / "transformer", tmp_path / "learned")
    record = DATASETS.build(config.data).record
    replace(record, text_tokens=9).write(learned)
    with pytest.raises(UserError, match=r"teacher: .* has learned prompts of 9 tokens, and the data's are of \d+; enc"):
        Trainer.from_config(replace(config, teacher=str(learned)))
    alone = {key: value for key, value in values("sd3", *one, tmp_path / "run").items() if key != "student"}
    without = make(TrainConfig, {**alone, "initialisation": {}, "estimate": {"measure": False}})
    for tried in (Trainer.from_config, dry_run):
        with pytest.raises(
            UserError, match=r"^MDTv2: is no text-to-image model, .*student= is left out .*like: teacher"
        ):
            tried(without)
    guided = {"task": {"name": "text_to_image", "embedded_guidance": 3.0}}
    with pytest.raises(
        UserError, match=r"embedded_guidance: .*, found the student \(SD3Tr\w+\) and the teacher \(SD3T"
    ):
        Trainer.from_config(make(TrainConfig, values("sd3", *one, tmp_path / "run", **guided)))
    wide = {"like": "teacher", "num_attention_heads": 8}
    with pytest.raises(UserError, match=r"student\.num_attention_heads: wanted at most the teacher's 4, found 8"):
        Trainer.from_config(make(TrainConfig, values("sd3", *one, tmp_path / "run", student=wide)))
    assert not (tmp_path / "run").exists()
    long = "a thin seven with a zero and a nine " * 9
    encode(tmp_path, one[0], captions={"a": long, "b": "a nine", "c": None}, text_tokens=8)
    assert "captions: 1 are longer than the text encoders take, and were cut" in caplog.text
    assert "left out: 1 images without a caption (c.png)" in caplog.text
