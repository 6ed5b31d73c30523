"""Images of prompts, by a student in its pipeline: those of the pipeline itself, on after a stop, or refused."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from prompt_students import PROMPTS, prompt_file, prompt_student
from tiny_pipelines import KINDS, LIKE_FLUX, OTHERS, write_pipeline

from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import read_autoencoder
from dit_shd.data.latent_origin import Origin, keep_copy, write_record
from dit_shd.data.pipeline_record import read_record
from dit_shd.diffusion import assembly, prompt_generation
from dit_shd.diffusion.assembly import assemble
from dit_shd.diffusion.pipelines import open_pipeline
from dit_shd.diffusion.prompt_generation import sample_prompts
from dit_shd.diffusion.sample_config import SampleConfig


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline("sd3", tmp_path_factory.mktemp("p") / "pipeline")


@pytest.fixture(scope="module")
def student(pipeline, tmp_path_factory):
    return prompt_student(pipeline, tmp_path_factory.mktemp("students"))


@pytest.fixture
def prompts(tmp_path):
    return prompt_file(tmp_path)


def config(run, prompts, out, **options):
    values = {"run": str(run), "prompts": str(prompts), "out": str(out), "steps": 2, "batch_size": 2, **options}
    return make(SampleConfig, values, "sample")


def test_images_are_those_of_the_pipeline_itself(student, pipeline, prompts, tmp_path):
    out = sample_prompts(config(student, prompts, tmp_path / "x.npz", guidance=3))
    with np.load(out) as file:
        images, numbers = file["arr_0"], file["arr_1"]
    assert images.shape == (3, 16, 16, 3)
    assert numbers.tolist() == [0, 1, 2]
    whole, _ = assemble(str(student), None)
    seed = int(prompt_generation.rng.stream(0, "sample prompt", 0, 1).integers(2**62))
    alone = whole(
        PROMPTS[1],
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=3.0,
        max_sequence_length=8,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images[0]
    assert np.abs(images[1].astype(int) - np.round(alone * 255)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flux", *LIKE_FLUX])
def test_images_are_those_of_the_pipeline_itself_of_other_kinds(kind, prompts, tmp_path):
    place = write_pipeline(kind, tmp_path / "pipeline")
    size = {"height": 16, "width": 24} | ({} if kind == "longcat_image" else {"max_sequence_length": 24})
    with np.load(sample_prompts(config(place, prompts, tmp_path / "x.npz", call=size, guidance=3))) as file:
        images = file["arr_0"]
    whole = open_pipeline(place)
    seed = int(prompt_generation.rng.stream(0, "sample prompt", 0, 1).integers(2**62))
    options = {**size, "num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    options |= {"enable_prompt_rewrite": False} if kind == "longcat_image" else {}
    alone = whole(PROMPTS[1], generator=torch.Generator().manual_seed(seed), **options).images[0]
    assert np.abs(images[1].astype(int) - np.round(alone * 255)).max() <= 1


def test_a_student_that_learned_guidance_is_not_guided_once_more_without_a_word(student, prompts, tmp_path, caplog):
    """By the scale that is given, or by the pipeline's own, which is SD3's 7."""
    run = shutil.copytree(student, tmp_path / "run")
    (run / "config.yaml").write_text("losses: [{name: output, guidance: 4.0}]")
    for given, words in (
        ({"guidance": 3}, "and 3 guides it once more"),
        ({}, "and 7 guides it"),
        ({"guidance": 1}, ""),
    ):
        caplog.clear()
        sample_prompts(config(run, prompts, tmp_path / f"{len(given)}{words[4:5]}.npz", count=1, **given))
        assert ("guidance: the run taught" in caplog.text) == bool(words) and words in caplog.text


def test_a_guidance_distilled_student_is_given_the_scale_that_it_learned(prompts, tmp_path, caplog, capsys):
    """FLUX's pipeline would give it 3.5, FLUX.2's 4."""
    folder = write_pipeline("flux", tmp_path / "pipeline")
    student = prompt_student(folder, tmp_path / "run") / "student"
    replace(read_record(student), guidance=1.5).write(student)
    caplog.clear()
    plain = sample_prompts(config(student, prompts, tmp_path / "plain.npz", count=1))
    assert json.loads(plain.with_suffix(".json").read_text())["call"]["guidance_scale"] == 1.5
    assert "guidance" not in caplog.text
    for number, given in enumerate(({"guidance": 4}, {"call": {"guidance_scale": 4.0}})):
        caplog.clear()
        other = sample_prompts(config(student, prompts, tmp_path / f"{number}.npz", count=1, **given))
        assert json.loads(other.with_suffix(".json").read_text())["call"]["guidance_scale"] == 4
        assert "guidance: the student was given the scale 1.5 in training, and is given 4" in caplog.text
    assert main(["pipeline", str(student.parent), str(tmp_path / "whole")]) == 0
    assert "guidance_scale=1.5" in capsys.readouterr().out
    assert read_record(tmp_path / "whole" / "transformer").guidance == 1.5


def test_it_goes_on_where_it_was_stopped(student, prompts, tmp_path, monkeypatch):
    whole = sample_prompts(config(student, prompts, tmp_path / "whole.npz"))
    real, calls = prompt_generation.draw, []

    def stopped(*args):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(prompt_generation, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        sample_prompts(config(student, prompts, tmp_path / "two.npz"))
    monkeypatch.setattr(prompt_generation, "draw", real)
    two = sample_prompts(config(student, prompts, tmp_path / "two.npz"))
    assert np.array_equal(np.load(whole)["arr_0"], np.load(two)["arr_0"])


def test_a_student_in_bfloat16_keeps_what_its_class_keeps_in_float32(tmp_path):
    folder = write_pipeline("wan", tmp_path / "pipeline")
    student = assembly._student(folder / "transformer", torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in student.named_parameters()}
    assert dtypes["scale_shift_table"] == torch.float32
    assert dtypes["proj_out.weight"] == torch.bfloat16


def test_a_folder_that_diffusers_opens(student, prompts, tmp_path):
    assert main(["pipeline", str(student), str(tmp_path / "made")]) == 0
    opened = DiffusionPipeline.from_pretrained(tmp_path / "made")
    assert opened.transformer.config.num_attention_heads == 2
    out = sample_prompts(config(tmp_path / "made", prompts, tmp_path / "y.npz", call={"height": 16, "width": 16}))
    assert np.load(out)["arr_0"].shape == (3, 16, 16, 3)
    assert main(["pipeline", str(student), str(tmp_path / "made")]) == 2


def test_prompts_that_are_cut_are_counted(student, tmp_path, caplog):
    (tmp_path / "long.txt").write_text("a nine\n" + "a thin seven with a zero and a nine " * 9)
    sample_prompts(config(student, tmp_path / "long.txt", tmp_path / "cut.npz", steps=1))
    assert "prompts: 1 of 2 are longer than the text encoders take, and are cut" in caplog.text


def test_bad_input(student, pipeline, prompts, tmp_path):
    out = tmp_path / "z.npz"
    with pytest.raises(UserError, match=r"call.num_steps: is no argument of StableDiffusion3Pipeline's call"):
        sample_prompts(config(student, prompts, out, call={"num_steps": 3}))
    with pytest.raises(UserError, match="solver: is for class-conditional models"):
        config(student, prompts, out, solver="euler")
    with pytest.raises(UserError, match=r"StableDiffusion3Pipeline fails \(tuple index out of range\)"):
        sample_prompts(config(student, prompts, out, call={"clip_skip": 9}))
    with pytest.raises(UserError, match=r"StableDiffusion3Pipeline fails \(.int. object has no attribute"):
        sample_prompts(config(student, prompts, out, call={"latents": 5}))
    with pytest.raises(UserError, match="call: wanted keys and values, found 5"):
        config(student, prompts, out, call=5)
    with pytest.raises(UserError, match="steps: wanted 1 or more, found 0"):
        sample_prompts(config(student, prompts, out, steps=0))
    with pytest.raises(UserError, match=r"guidance: is given by call\.guidance_scale, too; leave one of them out"):
        config(student, prompts, out, guidance=2.0, call={"guidance_scale": 5.0})
    with pytest.raises(UserError, match=r"steps: is given by call\.num_inference_steps, too"):
        config(student, prompts, out, steps=2, call={"num_inference_steps": 3})
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="wanted a prompt a line, found none"):
        sample_prompts(config(student, tmp_path / "empty.txt", out))
    other = write_pipeline("sd3", tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"has other text encoders .* than the student has learned"):
        sample_prompts(config(student, prompts, out, pipeline=str(other)))
    assert read_record(student / "student").pipeline == str(pipeline)


def test_the_mark_that_windows_puts_before_a_text_is_in_no_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("a nine\na zero\n", encoding="utf-8-sig")
    assert prompt_generation.read_prompts(tmp_path / "prompts.txt") == ["a nine", "a zero"]


def test_a_prompt_may_hold_what_unicode_calls_ends_of_lines(tmp_path):
    """Cut there, it would be two, of which each has a picture of its own."""
    prompts = ["a cat\u2028on a mat", "a dog\u0085sleeps", "a fox\x0cruns"]
    (tmp_path / "prompts.txt").write_bytes("\r\n".join([*prompts, "", "one\rtwo"]).encode())
    assert prompt_generation.read_prompts(tmp_path / "prompts.txt") == [*prompts, "one", "two"]


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_student_is_what_is_drawn_from(kind, tmp_path):
    """Of Wan, whose pipeline calls its transformer optional, all images were the teacher's."""
    place = write_pipeline(kind, tmp_path / "pipeline")
    transformer = open_pipeline(place).transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(1.0)
    transformer.save_pretrained(tmp_path / "student")
    whole, _ = assemble(str(tmp_path / "student"), str(place))
    wanted = dict(transformer.named_parameters())
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in whole.transformer.named_parameters())


@pytest.mark.parametrize("kind", [kind for kind in [*KINDS, *OTHERS] if kind != "sd3"])
def test_every_pipeline_draws(kind, tmp_path, prompts):
    folder = write_pipeline(kind, tmp_path / "pipeline")
    size = 32 if kind in ("lumina2", "sana", "hunyuan_dit") else 16
    call = {"height": size, "width": size, "num_inference_steps": 2}
    call |= {"use_resolution_binning": False} if kind in ("pixart", "sana", "hunyuan_dit", "prx") else {}
    out = sample_prompts(make(SampleConfig, {"run": str(folder), "prompts": str(prompts), "call": call, "count": 2}))
    assert np.load(out)["arr_0"].shape[0] == 2


def test_the_pipeline_that_was_used_is_recorded(student, pipeline, prompts, tmp_path):
    """Not the one that the student was encoded by: another scheduler draws other pictures."""
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "shift": 9.0}))
    made = [sample_prompts(config(student, prompts, tmp_path / "a.npz"))]
    made.append(sample_prompts(config(student, prompts, tmp_path / "b.npz", pipeline=str(other))))
    first, second = (json.loads(out.with_suffix(".json").read_text()) for out in made)
    assert (first["pipeline"], second["pipeline"]) == (str(pipeline.resolve()), str(other))
    assert (first["scheduler"]["shift"], second["scheduler"]["shift"]) == (3.0, 9.0)
    assert first["vae_sha256"] == second["vae_sha256"]
    images = [np.load(out)["arr_0"] for out in made]
    assert not np.array_equal(*images)


def test_latents_are_decoded_by_the_autoencoder_that_made_them(student, pipeline, prompts, tmp_path, caplog):
    """A pipeline that scales its latents otherwise would draw other pictures without a word."""
    kept = read_autoencoder(str(pipeline / "vae"))
    run = shutil.copytree(student, tmp_path / "run")
    keep_copy(kept, run / "vae")
    write_record(Origin.of_autoencoder("somewhere/else", kept), run / "student")
    own = sample_prompts(config(run, prompts, tmp_path / "a.npz"))
    assert "autoencoder" not in caplog.text
    other = shutil.copytree(pipeline, tmp_path / "other")
    file = other / "vae" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "scaling_factor": 0.5 * settings["scaling_factor"]}))
    decoded = sample_prompts(config(run, prompts, tmp_path / "b.npz", pipeline=str(other)))
    assert "scales its latents otherwise, by its config.json; decoding with the one of the latents" in caplog.text
    assert np.array_equal(np.load(own)["arr_0"], np.load(decoded)["arr_0"])
    bare = sample_prompts(config(student, prompts, tmp_path / "c.npz", pipeline=str(other)))  # has no record
    assert not np.array_equal(np.load(own)["arr_0"], np.load(bare)["arr_0"])
    shutil.rmtree(run / "vae")
    with pytest.raises(UserError, match=r"vae: the latents are those of 'somewhere/else' .* which cannot be loaded"):
        sample_prompts(config(run, prompts, tmp_path / "d.npz", pipeline=str(other)))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_no_list_of_prompts(suffix, tmp_path):
    """Each row had been a prompt, the headings too."""
    file = tmp_path / f"prompts.{suffix}"
    file.write_text("Prompt\tCategory\nbond\tAbstract\n")
    with pytest.raises(UserError, match=r"prompts: wanted a text file with a prompt a line, found the table"):
        prompt_generation.read_prompts(file)


def unmade(name):
    """A pipeline of a class of diffusers, without its parts."""
    return object.__new__(getattr(diffusers, name))


@pytest.mark.parametrize(
    ("name", "key"),
    [("WanPipeline", "num_frames"), ("LattePipeline", "video_length"), ("SanaVideoPipeline", "frames")],
)
def test_of_a_video_pipeline_one_frame_is_drawn_and_no_more_are_taken(name, key):
    """Of nine the first had been kept, and the record said nine."""
    if not hasattr(diffusers, name):
        pytest.skip("this diffusers is too old")
    record = SimpleNamespace(text_tokens=None, size=None, adapter=None, transformer_class="")
    assert prompt_generation.call_arguments(unmade(name), record, {})[key] == 1
    assert prompt_generation.call_arguments(unmade(name), record, {key: 1})[key] == 1
    with pytest.raises(UserError, match=rf"call\.{key}: wanted 1, found 9: one frame is an image, videos are not"):
        prompt_generation.call_arguments(unmade(name), record, {key: 9})


def test_a_pipeline_of_sound_is_refused_before_it_draws():
    record = SimpleNamespace(text_tokens=None, size=None, adapter=None, transformer_class="")
    with pytest.raises(UserError, match="StableAudioPipeline makes sound where images are wanted; videos and sound"):
        prompt_generation.call_arguments(unmade("StableAudioPipeline"), record, {})


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            SimpleNamespace(frames=np.zeros((1, 3, 4, 4, 3))),
            r"^function makes videos of shape \[1, 3, 4, 4, 3\], not of one frame",
        ),
        (SimpleNamespace(audios=np.zeros((1, 2, 9))), "^function makes a SimpleNamespace where images are wanted"),
    ],
)
def test_what_is_no_image_is_never_cut_to_one(output, words):
    with pytest.raises(UserError, match=words):
        prompt_generation.draw(lambda **_: output, ["a nine"], 0, range(1), {})
