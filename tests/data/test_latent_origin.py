"""Runs on latents keep the autoencoder of these, and sampling decodes with it, keeps latents on purpose, or refuses."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDENT
from encoded import encode, pictures, tiny_vae, write_folder
from runs import run, weights

from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.latent_origin import read_record
from dit_shd.data.model_origin import of_source
from dit_shd.data.open_images import open_images
from dit_shd.data.pixels import to_uint8
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampler import sample
from dit_shd.models.loading import load

QUICK = dict(steps=3, batch_size=4, labels="balanced", guidance=1.0)
KEYS = ["count=5", *(f"{key}={value}" for key, value in QUICK.items())]


def latent_set(root: Path, **changes) -> Path:
    """Ten images of 8 x 8 as 2 x 4 x 4 latents, and beside them the autoencoder that made them."""
    tiny_vae(**changes).save_pretrained(root / "vae")
    write_folder(root / "set", pictures(10), np.arange(10) // 4)
    return encode(root / "set", root / "l", vae=str(root / "vae"), shard_size=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return latent_set(tmp_path_factory.mktemp("origin")).parent


@pytest.fixture
def root(made, tmp_path):
    """A set of our own: root/vae, root/l, to be moved and damaged; latents.json names root/vae."""
    shutil.copytree(made, tmp_path / "w")
    file = tmp_path / "w" / "l" / "latents.json"
    file.write_text(file.read_text().replace(str(made), str(tmp_path / "w")))
    return tmp_path / "w"


def values(root, **changes):
    """A training run of two steps on the set."""
    student = {**STUDENT, "in_channels": 2, "sample_size": 4}
    own = {"run": str(root / "run"), "data": {"name": "latents", "path": str(root / "l")}, "student": student}
    return {**own, "batch_size": 4, "steps": 2, "checkpoint_every": 1, "ema": 0.5, **changes}


@pytest.fixture
def trained(root):
    run(values(root))
    return root / "run"


def drawn(run_folder, **changes):
    """arr_0 of five samples."""
    config = make(SampleConfig, {**QUICK, "run": str(run_folder), "count": 5, **changes})
    with np.load(sample_to_file(config)) as file:
        return file["arr_0"]


def by_hand(latents, vae=None):
    """Images of latents, by diffusers alone."""
    with torch.no_grad():
        pixels = (vae or tiny_vae()).decode(torch.from_numpy(latents) / 0.5 + 0.25).sample
    return to_uint8(pixels)


def close(found, wanted):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= 1


# Sampling by the run alone


def test_a_run_is_all_that_sampling_needs(trained, root, tmp_path):
    """The autoencoder and the latents are gone, the run has moved; by the run, from Python, by the student's folder."""
    shutil.move(trained, tmp_path / "moved")
    shutil.rmtree(root)
    latents, _ = sample(load(tmp_path / "moved"), 5, vae=None, **QUICK)
    assert latents.dtype == np.float32 and latents.shape == (5, 2, 4, 4)
    wanted = by_hand(latents)
    assert wanted.shape == (5, 8, 8, 3)
    close(drawn(tmp_path / "moved"), wanted)
    close(sample(load(tmp_path / "moved"), 5, **QUICK)[0], wanted)
    close(drawn(tmp_path / "moved" / "student", out=str(tmp_path / "s.npz")), wanted)
    told = json.loads((tmp_path / "moved" / "samples_5_seed0.json").read_text())
    assert told["vae_name"] == str(root / "vae")
    assert told["vae_sha256"] == read_record(tmp_path / "moved").vae_sha256


def test_latents_are_kept_on_purpose_and_never_scored(trained, capsys):
    latents, _ = sample(load(trained), 5, vae=None, **QUICK)
    assert np.abs(latents).max() > 1, "nothing is clipped"
    assert main(["sample", str(trained), "vae=null", *KEYS]) == 0
    shown = capsys.readouterr().out
    out = trained / "samples_5_seed0.npz"
    assert "latents as the model makes them (arr_0 float32 [n,c,y,x]), not images" in shown and "next" not in shown
    with np.load(out) as file:
        np.testing.assert_allclose(file["arr_0"], latents, atol=1e-5)
        assert file["arr_1"].tolist() == [0, 1, 2, 0, 1]
    assert not out.with_suffix(".png").exists()
    for command in (["evaluate", str(out), f"reference={out}"], ["statistics", str(out), "out=x.npz"]):
        assert main([*command, "features=digits"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert "wanted images uint8 [n,y,x,c]" in lines[-1] and "float32 [5, 2, 4, 4]" in lines[-1]


def test_shards_of_latents_are_no_images_either(trained, tmp_path, monkeypatch):
    from dit_shd.diffusion import generation

    with monkeypatch.context() as patch:
        patch.setattr(generation, "_finish", lambda *_: None)
        config = make(SampleConfig, {**QUICK, "run": str(trained), "count": 5, "vae": None, "out": str(tmp_path / "s")})
        sample_to_file(config)
    with pytest.raises(UserError, match=r"s\.npz\.parts: wanted images uint8 .*float32 \[5, 2, 4, 4\]; decode latents"):
        open_images(str(tmp_path / "s.npz.parts"), "samples")


def test_the_export_says_which(trained, root, tmp_path):
    card = (trained / "student" / "README.md").read_text()
    record = read_record(trained)
    assert f"It makes latents of {root / 'vae'}; the sha256 of its tensors is {record.vae_sha256}" in card
    assert read_record(trained / "student") == record
    assert main(["convert", str(trained), str(tmp_path / "out")]) == 0
    assert read_record(tmp_path / "out") == record
    close(drawn(tmp_path / "out"), drawn(trained))
    shutil.rmtree(root / "vae")
    with pytest.raises(UserError, match=r"which cannot be loaded: nothing is at '.*/w/vae'; say where it is: vae="):
        drawn(tmp_path / "out", seed=1)
    assert not list((tmp_path / "out").glob("samples_5_seed1*"))


def test_evaluation_on_the_way_decodes(root):
    sampling = {"every": 1, "count": 4, "steps": 2, "keep": True}
    run(values(root, evaluation=sampling))
    with np.load(root / "run" / "evaluations" / "step_00000002.npz") as file:
        assert file["arr_0"].shape == (4, 8, 8, 3) and file["arr_0"].dtype == np.uint8
    with pytest.raises(UserError, match=r"evaluation\.sample\.vae: null keeps latents"):
        run(values(root, run=str(root / "no"), evaluation={**sampling, "sample": {"vae": None}}))
    assert not (root / "no").exists()


# Before the first step


def refused(root, message, **changes):
    with pytest.raises(UserError, match=message) as error:
        run(values(root, **changes))
    assert "\n" not in str(error.value)
    assert not (root / "run").exists()


def test_a_hub_name_needs_no_network_where_encode_kept_a_copy(root):
    file = root / "l" / "latents.json"
    file.write_text(file.read_text().replace(str(root / "vae"), "no/such-vae"))
    shutil.rmtree(root / "vae")
    run(values(root))
    assert read_record(root / "run").vae == "no/such-vae"
    latents, _ = sample(load(root / "run"), 5, vae=None, **QUICK)
    close(drawn(root / "run"), by_hand(latents))


@pytest.mark.parametrize("how", ["gone", "other weights", "other scaling"])
def test_what_is_not_to_be_had_is_refused_before_anything_is_written(root, how, capsys):
    """The set has no copy, as those of before; vae=null trains all the same, and says what sampling needs."""
    shutil.rmtree(root / "l" / "vae")
    shutil.move(root / "vae", root / "moved")
    if how != "gone":
        other = tiny_vae(**({"scaling_factor": 0.25} if how == "other scaling" else {}))
        if how == "other weights":
            torch.nn.init.normal_(other.encoder.conv_in.weight)
        other.save_pretrained(root / "vae")
    words = {"gone": "nothing is at", "other weights": "has other weights", "other scaling": "scales its latents"}
    refused(
        root, rf"vae: the latents are those of '.*/w/vae' \(sha256 .*cannot be loaded: .*{words[how]}.* vae=null to do"
    )
    if how != "gone":
        refused(
            root, rf"vae: the latents are those of '.*/w/vae'.*{words[how]}.*; leave vae out", vae=str(root / "vae")
        )
    run(values(root, vae=None))
    assert not (root / "run" / "vae").exists()
    with pytest.raises(UserError, match=rf"cannot be loaded: .*{words[how]}.*vae=FOLDER"):
        drawn(root / "run")
    assert not list((root / "run").glob("samples*"))
    close(drawn(root / "run", vae=str(root / "moved")), by_hand(sample(load(root / "run"), 5, vae=None, **QUICK)[0]))
    run(values(root, vae=str(root / "moved"), steps=3))
    assert (root / "run" / "vae").is_dir(), "it may be named later"
    shutil.rmtree(root / "moved")
    drawn(root / "run", seed=1)


def test_another_decoder_of_the_same_encoder_is_taken(trained, root):
    """As sd-vae-ft-ema beside sd-vae-ft-mse; a tensor of the encoder, and it is refused before anything is drawn."""
    other = tiny_vae()
    torch.manual_seed(1)
    torch.nn.init.normal_(other.decoder.conv_out.weight)
    other.save_pretrained(root / "tuned")
    latents, _ = sample(load(trained), 5, vae=None, **QUICK)
    close(drawn(trained, vae=str(root / "tuned")), by_hand(latents, other))
    assert np.abs(by_hand(latents, other).astype(int) - by_hand(latents)).max() > 5
    torch.nn.init.normal_(other.encoder.conv_out.weight)
    other.save_pretrained(root / "stranger")
    with pytest.raises(UserError, match=r"stranger' has other weights .*; leave vae out"):
        drawn(trained, vae=str(root / "stranger"), seed=1)
    with pytest.raises(UserError, match="vae: pixels have 1 or 3 channels, the model's latents have 2"):
        drawn(trained, vae="pixels", seed=1)
    assert not list(trained.glob("samples_5_seed1*"))


def test_statistics_that_older_versions_ignored(tmp_path):
    latents = latent_set(tmp_path, shift_factor=None, latents_mean=[1.0, 2.0], latents_std=[2.0, 3.0])
    run(values(tmp_path))
    wanted = tiny_vae(shift_factor=None).decode(torch.zeros(1, 2, 4, 4) + torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
    decode = of_source(str(tmp_path / "run"), 2).find()
    torch.testing.assert_close(decode.decode(torch.zeros(1, 2, 4, 4)), wanted.sample)
    index = json.loads((latents / "latents.json").read_text())
    del index["about"]["vae_scaling"], index["about"]["encoder_sha256"]  # as it was written before
    (latents / "latents.json").write_text(json.dumps(index))
    shutil.rmtree(tmp_path / "run")
    refused(
        tmp_path, "latents_mean and latents_std, which the version that made the latents ignored; encode them again"
    )


def test_a_run_goes_on_with_its_own(trained, root):
    """Another autoencoder's latents at the same path are refused; a damaged copy is made anew."""
    (trained / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    run(values(root, steps=3))
    assert (trained / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size > 1000
    shutil.rmtree(root / "l")
    shutil.rmtree(root / "vae")
    other = tiny_vae()
    torch.nn.init.normal_(other.encoder.conv_in.weight)
    other.save_pretrained(root / "vae")
    encode(root / "set", root / "l", vae=str(root / "vae"), shard_size=4)
    before = weights(trained)
    with pytest.raises(UserError, match=r"the data's latents are those of .*, and the run's has other weights"):
        run(values(root, steps=4))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trained).items())


def test_a_teacher_of_latents_that_are_scaled_otherwise_is_refused(trained, root, tmp_path):
    """Of the same autoencoder and width; a student of the same set teaches."""
    again = values(
        root,
        run=str(tmp_path / "again"),
        teacher=str(trained),
        losses=[{"name": "output"}],
        steps=1,
        check_teacher="no",
    )
    run(again)
    shutil.rmtree(root / "l")
    file = root / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 0.9}))
    encode(root / "set", root / "l", vae=str(root / "vae"), shard_size=4)
    with pytest.raises(UserError, match=r"teacher: .* has learned latents of .* which scales them otherwise; check_te"):
        run({**again, "run": str(tmp_path / "other"), "check_teacher": "refuse"})
    assert not (tmp_path / "other").exists()


# Where nothing tells


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_float_latents_of_no_known_autoencoder(tmp_path, capsys, channels):
    """They train; what the command says next works when it is pasted, and images are refused."""
    r = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", r.normal(size=(8, channels, 4, 4)).astype(np.float32), np.arange(8) % 3)
    student = {**STUDENT, "in_channels": channels, "sample_size": 4}
    given = values(tmp_path, data={"name": "npz", "path": str(tmp_path / "x.npz")}, student=student)
    (tmp_path / "c.yaml").write_text(json.dumps({**given, "run": str(tmp_path / "a run")}))
    assert main(["train", str(tmp_path / "c.yaml")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: dit-shd ")]
    assert main([*shlex.split(line)[2:], "steps=2"]) == 0
    with np.load(tmp_path / "a run" / "samples_100_seed0.npz") as file:
        assert file["arr_0"].shape == (100, channels, 4, 4) and file["arr_0"].dtype == np.float32
    assert main(["sample", str(tmp_path / "a run"), *KEYS]) == 2
    assert f"latents of {channels} channels of an unknown autoencoder" in capsys.readouterr().err
    with pytest.raises(UserError, match="an unknown autoencoder"):
        sample(load(tmp_path / "a run"), 2, **QUICK)
    evaluation = {"every": 1, "count": 4, "steps": 2}
    with pytest.raises(UserError, match=r"evaluation\.sample\.vae: the model makes latents"):
        run({**given, "run": str(tmp_path / "b"), "evaluation": evaluation})
    assert not (tmp_path / "b").exists()
    if channels == 3:
        run({**given, "run": str(tmp_path / "b"), "evaluation": evaluation, "vae": "pixels"})
        assert drawn(tmp_path / "b").dtype == np.uint8


def test_latents_of_another_scale_are_told_when_a_run_begins(tmp_path, caplog):
    latents = np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype(np.float32) * 5.5
    np.savez(tmp_path / "x.npz", latents, np.arange(8) % 3)
    student = {**STUDENT, "in_channels": 4, "sample_size": 4}
    given = values(tmp_path, data={"name": "npz", "path": str(tmp_path / "x.npz")}, student=student)
    for steps in (1, 2):
        run({**given, "steps": steps})
        assert sum("whose deviation is near 1; found 5." in line for line in caplog.messages) == 1


def test_a_record_that_is_none(trained):
    for text in ("", "[1]", "null", '{"vae": 3}', '{"vae": "x", "vae_scaling": {"shift": 1}}', "[" * 3000):
        (trained / "autoencoder.json").write_text(text)
        with pytest.raises(UserError, match=r"autoencoder\.json: not written by dit-shd train") as error:
            drawn(trained)
        assert "\n" not in str(error.value)
    assert not list(trained.glob("samples*"))
