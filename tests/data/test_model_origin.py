"""What a model's latents are, by its run alone: of an autoencoder, of an unknown one, or pixels."""

import json
import shutil

import numpy as np
import pytest
from conftest import STUDENT
from encoded import encode, pictures, write_folder
from runs import run

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.latent_origin import Origin, before_training, read_record
from dit_shd.data.model_origin import of_source
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig

QUICK = dict(steps=2, batch_size=4, labels="balanced", guidance=1.0, count=4)


def drawn(folder, **changes) -> np.ndarray:
    """arr_0 of four samples."""
    with np.load(sample_to_file(make(SampleConfig, {**QUICK, "run": str(folder), **changes}))) as file:
        return file["arr_0"]


def values(folder, data, **changes):
    """A run of one step, in folder/run."""
    student = {**STUDENT, "in_channels": 3, "sample_size": 8}
    return {"run": str(folder / "run"), "data": data, "student": student, "batch_size": 4, "steps": 1, **changes}


@pytest.fixture
def of_pixels(tmp_path, monkeypatch):
    """A run on latents that are pixels, named relative to a folder that is not the current one any more."""
    write_folder(tmp_path / "set", pictures(10), np.arange(10) // 4)
    encode(tmp_path / "set", tmp_path / "l", vae=None, shard_size=4)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        run(values(tmp_path, {"name": "latents", "path": "l"}))
    return tmp_path / "run"


def test_a_run_on_pixels_is_all_that_sampling_needs(of_pixels, tmp_path):
    shutil.rmtree(tmp_path / "l")
    wanted = drawn(of_pixels)
    assert wanted.shape == (4, 8, 8, 3) and wanted.dtype == np.uint8
    np.testing.assert_array_equal(drawn(of_pixels / "student", out=str(tmp_path / "s.npz")), wanted)
    assert "## Autoencoder" not in (of_pixels / "student" / "README.md").read_text()
    shutil.move(of_pixels / "student", tmp_path / "alone")
    np.testing.assert_array_equal(drawn(tmp_path / "alone"), wanted)


@pytest.mark.parametrize("there", [True, False])
def test_a_run_of_before_recorded_every_autoencoder_but_no_pixels(of_pixels, tmp_path, there):
    for folder in (of_pixels, of_pixels / "student"):
        (folder / "autoencoder.json").unlink()
    if not there:
        shutil.rmtree(tmp_path / "l")
    assert drawn(of_pixels).dtype == np.uint8
    assert of_source(str(of_pixels / "student"), 3) is None
    assert of_source(str(of_pixels), 4) == Origin(), "no pixels have four channels"


def test_floats_are_pixels_from_when_it_is_said(tmp_path):
    """A run on an npz that says nothing, taken up with vae=pixels; without a word it stays so."""
    floats = np.random.default_rng(0).uniform(-1, 1, size=(8, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", floats, np.arange(8) % 3)
    given = values(tmp_path, {"name": "npz", "path": str(tmp_path / "x.npz")})
    run(given)
    with pytest.raises(UserError, match="an unknown autoencoder"):
        drawn(tmp_path / "run")
    run({**given, "steps": 2, "vae": "pixels"})
    assert drawn(tmp_path / "run").dtype == np.uint8
    run({**given, "steps": 3})
    assert read_record(tmp_path / "run").pixels and read_record(tmp_path / "run" / "student").pixels
    assert drawn(tmp_path / "run", seed=1).dtype == np.uint8


def test_a_run_does_not_change_from_pixels_to_latents(of_pixels, tmp_path):
    """Encoded again at the same place."""
    latents = Origin("somewhere", "ab" * 32)
    with pytest.raises(UserError, match=r"the data's latents are those of 'somewhere'.*, and the run's are pixels"):
        before_training("auto", latents, 3, of_pixels)
    (of_pixels / "autoencoder.json").write_text(json.dumps(latents.record()))
    with pytest.raises(UserError, match=r"the data are pixels, and the run's latents are those of 'somewhere'"):
        before_training("auto", None, 3, of_pixels)
