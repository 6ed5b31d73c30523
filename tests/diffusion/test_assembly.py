import shutil
from dataclasses import replace

import numpy as np
import pytest
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline
from encoded_text import encode
from prompt_students import prompt_file, prompt_student
from small_families import diffusers_dit
from tiny_pipelines import KINDS, write_pipeline

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.data import text_shards
from dit_shd.data.pipeline_record import read_record
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.assembly import write_pipeline as write_whole
from dit_shd.diffusion.pipelines import open_pipeline, record_of
from dit_shd.diffusion.prompt_generation import draw
from dit_shd.diffusion.text_models import text_differs, tokens_differ
from dit_shd.models import cards, loading
from dit_shd.models.provenance import Provenance


def sampled(run, prompts, out, *more):
    assert main(["sample", str(run), f"prompts={prompts}", "steps=2", "guidance=2", f"out={out}", *more]) == 0
    with np.load(out) as file:
        return file["arr_0"]


def test_a_pipeline_with_a_student_in_it_draws_what_the_run_draws(tmp_path, capsys):
    """Of text and images as the student has learned them, here and by plain diffusers; whatever became of the rest."""
    pipeline, run, prompts = write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run", prompt_file(tmp_path)
    student = loading.load(prompt_student(pipeline, run))
    (run / "student" / "README.md").write_text(cards.converted(student, "x", "0", Provenance("mit")))
    of_run = sampled(run, prompts, tmp_path / "run.npz")
    assert main(["pipeline", str(run), str(tmp_path / "whole")]) == 0
    card = (tmp_path / "whole" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\nlicense: mit\n")
    assert (
        'Load: `DiffusionPipeline.from_pretrained("this folder")`; `dit_shd.load("this folder")` gives its tr' in card
    )
    call = "(prompt, max_sequence_length=8, height=16, width=16)"
    assert f"from_pretrained('{tmp_path / 'whole'}'){call}" in capsys.readouterr().out
    pipeline.rename(tmp_path / "elsewhere")
    (tmp_path / "whole").rename(tmp_path / "moved")
    assert np.array_equal(sampled(tmp_path / "moved", prompts, tmp_path / "moved.npz"), of_run)
    record = read_record(tmp_path / "moved" / "transformer")
    assert record is not None and (record.text_tokens, record.size) == (8, (16, 16))
    plain = DiffusionPipeline.from_pretrained(tmp_path / "moved")
    plain.set_progress_bar_config(disable=True)
    given = dict(num_inference_steps=2, guidance_scale=2.0, max_sequence_length=8, height=16, width=16)
    assert np.array_equal(draw(plain, ["a nine"], 0, range(2, 3), given)[0], of_run[2])


def test_a_student_without_a_record_is_told_of(tmp_path, caplog):
    pipeline, run, prompts = write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run", prompt_file(tmp_path)
    prompt_student(pipeline, run)
    told = "does not record how it was trained (no pipeline.json)"
    of_run = sampled(run, prompts, tmp_path / "run.npz", f"pipeline={pipeline}")
    assert told not in caplog.text
    (run / "student" / "pipeline.json").unlink()
    alone = sampled(run, prompts, tmp_path / "alone.npz", f"pipeline={pipeline}")
    assert told in caplog.text
    assert not np.array_equal(of_run, alone), "fewer tokens would make no difference"
    assert main(["pipeline", str(run), str(tmp_path / "whole"), f"pipeline={pipeline}"]) == 0
    assert read_record(tmp_path / "whole" / "transformer") is None


def test_a_pipeline_of_classes(tmp_path, capsys, caplog):
    """A DiTPipeline takes a student of its class; one that diffusers could not open again is not written."""
    autoencoder = AutoencoderKL(block_out_channels=(4,), latent_channels=1, norm_num_groups=2)
    DiTPipeline(diffusers_dit(), autoencoder, DDIMScheduler()).save_pretrained(tmp_path / "pipeline")
    diffusers_dit(num_layers=1).save_pretrained(tmp_path / "run" / "student")
    command = ["pipeline", str(tmp_path / "run"), str(tmp_path / "whole")]
    assert main(command) == 2
    assert "of a class-conditional student of diffusers a DiTPipeline" in capsys.readouterr().err
    assert main([*command, f"pipeline={tmp_path / 'pipeline'}"]) == 0
    said = f"from_pretrained('{tmp_path / 'whole'}')(class_labels=[0, 1], guidance_scale=1)\n"
    assert capsys.readouterr().out.endswith(said), "three classes: the pipeline would guide by label 1000"
    assert "prompts" not in caplog.text
    whole = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert whole.transformer.config.num_layers == 1
    assert len(whole(class_labels=[0, 1], guidance_scale=1, num_inference_steps=1).images) == 2
    assert main(["pipeline", "asset:digits_teacher", str(tmp_path / "mdt"), f"pipeline={tmp_path / 'pipeline'}"]) == 2
    assert "holds MDTv2, which is no class of diffusers" in capsys.readouterr().err
    assert not (tmp_path / "mdt").exists()


def test_what_is_encoded_with_a_student_s_pipeline_has_the_tokens_that_it_learned(tmp_path, caplog, monkeypatch):
    """As a teacher it would see other padding with more of them, and predict something else."""
    pipeline, run = (
        write_pipeline("sd3", tmp_path / "pipeline"),
        prompt_student(tmp_path / "pipeline", tmp_path / "run"),
    )
    assert main(["pipeline", str(run), str(tmp_path / "whole")]) == 0
    latents = encode(tmp_path, tmp_path / "whole")
    assert text_shards.read_index(latents).record.text_tokens == 8
    assert "text_tokens: 8, as " in caplog.text
    with pytest.raises(UserError, match="text_tokens: 8 there, 16 here"):
        encode(tmp_path, tmp_path / "whole", text_tokens=16)
    plain = text_shards.read_index(encode(run, pipeline, out=str(run / "plain"))).record
    for place in (run, tmp_path / "whole"):
        model = loading.load(str(place))
        assert tokens_differ(model, text_shards.read_index(latents).record) is None
        assert "learned prompts of 8 tokens, and the data's are of 256; encode the captions with text_tokens=8" in (
            tokens_differ(model, plain) or ""
        )
    assert tokens_differ(loading.load(str(pipeline)), plain) is None
    monkeypatch.chdir(run / "student")
    assert tokens_differ(KINDS["sd3"]().transformer, plain) is None, "of no folder, and so not of the working folder"
    replace(plain, text_tokens=256).write(run / "student")
    assert tokens_differ(loading.load(str(run)), plain) is None, "the default, written out"


def test_the_same_text_encoders_are_known_as_the_same(tmp_path):
    """Half precision, exported again; a variant beside the plain weights; a transformer without its encoders."""
    made = KINDS["sd3"]()
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        getattr(made, name).half()
    made.save_pretrained(folder := tmp_path / "half")
    record = record_of(str(folder), folder)
    write_whole(*assemble(str(folder), None), str(folder), tmp_path / "exported")
    assert text_differs(loading.load(tmp_path / "exported" / "transformer"), record) is None
    assert open_pipeline(tmp_path / "exported").text_encoder_3 is not None
    alone = tmp_path / "alone"
    shutil.copytree(folder / "transformer", alone / "transformer")
    shutil.copyfile(folder / "model_index.json", alone / "model_index.json")
    assert text_differs(loading.load(alone), record) is None
    (alone / "tokenizer").mkdir()
    assert text_differs(loading.load(alone), record) is None
    made.text_encoder.float().save_pretrained(folder / "text_encoder", variant="fp32")
    assert record_of(str(folder), folder).text_sha256 == record.text_sha256
