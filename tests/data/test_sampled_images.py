"""Shards and folders of a sampling as sets to be compared, with its settings and prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluating import pictures, refused, run
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.data.image_folders import ShardImages
from dit_shd.data.open_images import open_images


def write_shards(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir()
    (folder / "settings.json").write_text('{"seed": 4, "rounding": "floor"}')
    files = []
    for start in range(0, len(images), 16):
        files.append(folder / f"{start:09d}.npz")
        np.savez(
            files[-1], arr_0=images[start : start + 16], arr_1=np.arange(start, start + 16)[: len(images) - start] % 10
        )
    return files


def test_shards_of_a_sampling_are_the_samples(files):
    folder, images = files["folder"] / "set.npz.parts", pictures(40, seed=1)
    write_shards(folder, images)
    found = open_images(str(folder), "samples")
    assert [len(batch) for batch in found.batches(10)] == [10, 10, 10, 10]
    np.testing.assert_array_equal(np.concatenate(list(found.batches(7))), images)
    from_shards = run(files, samples=str(folder), out=str(files["folder"] / "shards.json"))
    assert from_shards["figures"] == pytest.approx(run(files)["figures"], rel=1e-6)
    assert from_shards["samples"]["sidecar"] == {"seed": 4, "rounding": "floor"}
    assert from_shards["samples"]["labels"]["classes"] == 10


def test_the_settings_beside_a_folder_of_samples_are_the_sampler_s(files):
    folder = files["folder"] / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(40, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}_{i % 10}.png")
    beside, settings = files["folder"] / "pngs.json", {"seed": 4, "rounding": "floor", "model_sha256": "a"}
    beside.write_text(json.dumps({"images": [], "annotations": []}))
    assert open_images(str(folder), "samples").sidecar is None
    beside.write_text(json.dumps(settings))
    record = run(files, samples=f"{folder}/")
    assert record["samples"]["sidecar"] == settings
    assert not any("not recorded" in note for note in record["notes"])


def test_a_folder_of_samples_has_the_prompts_that_its_files_are_named_by(tmp_path):
    """The CLIP score was left out of them."""
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}_{i % 2}.png")
    settings = {"prompts": ["a nine", "a six"], "model_sha256": "a", "count": 5}
    (tmp_path / "pngs.json").write_text(json.dumps(settings))
    samples = open_images(str(folder), "samples")
    assert samples.prompts == ["a nine", "a six", "a nine", "a six", "a nine"] and samples.labels is None
    (folder / "00004_0.png").rename(folder / "x.png")
    assert open_images(str(folder), "samples").prompts is None


def test_a_sampling_that_goes_on_is_said_and_one_that_has_ended_is_named(files):
    folder, images = files["folder"] / "set.npz.parts", pictures(40, seed=1)
    shards = write_shards(folder, images)
    (folder / "settings.json").write_text(json.dumps({"count": 100}))
    found = ShardImages(folder, "x")
    assert found.notes == ["40 of 100 images, those that are drawn so far"]
    for file in shards:
        file.unlink()
    with pytest.raises(UserError, match=r"is no longer there; the sampling has ended and merged it: name its npz$"):
        next(found.batches(4))


def test_half_written_and_missing_shards_are_refused(files):
    folder = files["folder"] / "set.npz.parts"
    last = write_shards(folder, pictures(40, seed=1))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    assert "half-written" in refused(files, samples=str(folder))
    for file in folder.glob("*.npz"):
        file.unlink()
    assert "no shard is finished yet" in refused(files, samples=str(folder))


def test_jpeg_samples_are_noted(files):
    folder = files["folder"] / "jpegs"
    folder.mkdir()
    for i, image in enumerate(pictures(5, seed=1)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.jpg")
    assert any("JPEG" in reason for reason in run(files, samples=str(folder))["adm_comparable"]["why_not"])
