"""The scale of floats whose autoencoder is not known."""

import numpy as np
import pytest

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_scale import check_scale


def dataset(folder, values):
    np.savez(folder / "x.npz", values, np.arange(len(values)) % 2)
    return DATASETS.build(Plugin("npz", {"path": str(folder / "x.npz")}))


@pytest.mark.parametrize(("scale", "found"), [(5.5, "5.5"), (0.18, "0.18"), (1.0, None), (0.4, None), (2.9, None)])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_latents_of_another_scale_are_told(tmp_path, scale, found, shift):
    noise = np.random.default_rng(0).standard_normal((200, 4, 8, 8), dtype=np.float32)
    line = check_scale(dataset(tmp_path, noise * scale + shift), pixels=False)
    wanted = "data: wanted latents as the diffusion model sees them, (z - shift) factor, whose deviation is near 1"
    assert line == (None if found is None else f"{wanted}; found {found}")


def test_pixels_are_from_minus_one_to_one(tmp_path):
    pixels = np.linspace(-1.001, 1.001, 4 * 3 * 64, dtype=np.float32).reshape(4, 3, 8, 8)
    assert check_scale(dataset(tmp_path, pixels), pixels=True) is None
    assert check_scale(dataset(tmp_path, pixels * 0), pixels=True) is None
    with pytest.raises(UserError, match=r"^vae: pixels: wanted values .*, found -0\.128 to 255; scale"):
        check_scale(dataset(tmp_path, pixels * 127.5 + 127.5), pixels=True)
    for unusual, words in ((pixels * 1.2, "-1.2 to 1.2"), (np.abs(pixels), "0.00131 to 1")):
        line = check_scale(dataset(tmp_path, unusual), pixels=True)
        assert line == (
            f"vae: pixels: wanted values from -1 to 1, found {words}: what is drawn is taken for values from -1 to 1"
        )


def test_pixels_of_a_dataset_of_ones_own_are_looked_at(tmp_path):
    """It says nothing of their origin: they may be no pixels at all."""
    data = dataset(tmp_path, np.linspace(0, 255, 4 * 3 * 64, dtype=np.float32).reshape(4, 3, 8, 8))
    data.origin = None
    assert check_scale(data, pixels=True).startswith("vae: pixels: wanted values from -1 to 1, found 0 to 255")


def test_a_bounded_part_of_a_large_file_is_looked_at_and_images_are_not(tmp_path, monkeypatch):
    data = dataset(tmp_path, np.random.default_rng(0).standard_normal((1000, 4, 2, 2), dtype=np.float32))
    seen, batch = [], type(data).batch

    def watched(self, indices, draws):
        seen.extend(indices)
        return batch(self, indices, draws)

    monkeypatch.setattr(type(data), "batch", watched)
    assert check_scale(data, pixels=False) is None
    assert len(seen) == 64 and seen[0] == 0 and seen[-1] > 980
    del seen[:]
    images = dataset(tmp_path, np.zeros((4, 8, 8, 3), np.uint8))
    assert check_scale(images, pixels=True) is None and not seen
