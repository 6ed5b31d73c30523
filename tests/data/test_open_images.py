"""Images by a name: what is no set of images says what to name in its place."""

import os

import numpy as np
import pytest
from evaluating import pictures, refused
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data.open_images import open_images
from dit_shd.data.sources.detect import open_source


@pytest.fixture
def run_folder(tmp_path):
    """A run as it is read from outside, with two grids of samples."""
    folder = tmp_path / "a run"
    (folder / "student").mkdir(parents=True)
    (folder / "config.yaml").write_text("steps: 1\n")
    for name in ("samples_4_seed0.png", "samples_4_seed1.png"):
        Image.fromarray(pictures(1, 0)[0, ..., 0]).save(folder / name)
    return folder


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("which", ["samples", "reference"])
def test_grids_of_a_run_are_no_samples(files, run_folder, which, crop):
    """A run of two grids of one size would be scored as two images of that size."""
    assert "a run is a run; make samples first: dit-shd sample '" in refused(
        files, **{which: str(run_folder)}, crop=crop
    )
    for time, seed in enumerate((1, 0)):
        np.savez(run_folder / f"samples_4_seed{seed}.npz", pictures(4, seed))
        os.utime(run_folder / f"samples_4_seed{seed}.npz", (time, time))
    newest = run_folder / "samples_4_seed0.npz"
    assert f"{which}: {run_folder} is a run; give its samples, {newest}" in refused(
        files, **{which: str(run_folder)}, crop=crop
    )


def test_a_folder_of_images_beside_a_config_is_one(run_folder):
    (run_folder / "student").rmdir()
    assert open_images(str(run_folder), "samples").shape == (2, 28, 28, 1)
    (run_folder / "student").mkdir()
    with pytest.raises(UserError, match="is a run"):
        open_images(str(run_folder), "samples")


def test_a_run_is_not_encoded(run_folder):
    with pytest.raises(UserError, match=r"^images: .*a run is a run; make samples first"):
        open_source(str(run_folder))
