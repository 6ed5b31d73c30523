"""Latent shards as a dataset: what is drawn, and files that are not what they should be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDENT
from encoded import encode, pictures, tiny_vae, write_folder
from runs import run, weights

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.latent_shards import open_tensors, read_header, shard_files, verify_shard, write_shard

LABELS = np.arange(10) // 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten images of 8 x 8, 2 x 4 x 4 as latents, in three shards of 4, 4 and 2; the third image is broken."""
    root = tmp_path_factory.mktemp("latents")
    tiny_vae().save_pretrained(root / "vae")
    write_folder(root / "set", pictures(10), LABELS)
    (root / "set" / "class0" / "0002x.png").write_text("no image")
    return encode(root / "set", root / "l", vae=str(root / "vae"), shard_size=4)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "l"))


def posterior(folder):
    """Mean and deviation [n,flips,c,y,x]."""
    found = np.concatenate([open_tensors(file).get_tensor("posterior") for file in shard_files(folder)])
    return found[:, :, 0], found[:, :, 1]


# What is drawn


def drawn(data, indices, seed, step, positions):
    """Latents and labels."""
    sample = data.batch(indices, Draws(seed, step, positions, len(data)))
    assert sample.keys() == data.fields
    return sample["latents"], sample["labels"]


def test_the_set(whole):
    data = Latents(whole)
    assert (len(data), data.classes, data.shape) == (10, 3, (2, 4, 4))
    np.testing.assert_array_equal(data.labels(), LABELS)
    with pytest.raises(UserError, match="holds latents, not images"):
        data.images()
    assert DATASETS.build(Plugin("latents", {"path": str(whole)}))._path == whole


def test_draws_have_the_posteriors_mean_and_deviation(whole):
    """Over many steps, for the image and its mirror apart: both within five standard errors everywhere."""
    data, steps = Latents(whole), 600
    mean, deviation = posterior(whole)
    draws = torch.stack([drawn(data, np.arange(10), 0, step, range(10))[0] for step in range(steps)]).numpy()
    sides = np.abs(draws[:, :, None] - mean).reshape(steps, 10, 2, -1).sum(-1).argmin(2)
    assert abs(sides.mean() - 0.5) < 0.05
    for image in range(10):
        for side in range(2):
            own = draws[sides[:, image] == side, image]
            z = (own - mean[image, side]) / deviation[image, side]
            assert np.abs(z.mean(0)).max() < 5 / len(own) ** 0.5
            assert np.abs((z**2).mean(0) - 1).max() < 5 * (2 / len(own)) ** 0.5


def test_a_draw_is_a_function_of_seed_step_and_position(whole):
    """Whatever else is in the batch, and in whichever process."""
    data, again = Latents(whole), Latents(whole)
    indices, positions = np.array([9, 0, 3, 4, 4]), [7, 1, 0, 2, 3]
    x, labels = drawn(data, indices, 5, 11, positions)
    assert labels.tolist() == LABELS[indices].tolist()
    for row, index, position in zip(x, indices, positions):
        assert torch.equal(drawn(again, np.array([index]), 5, 11, [position])[0][0], row)
    assert not torch.equal(x[3], x[4]), "the same image at two positions of a step"
    for seed, step in ((6, 11), (5, 12)):
        assert not torch.isclose(drawn(data, indices, seed, step, positions)[0], x).flatten(1).all(1).any()


def test_flips_on_request(whole):
    mean, deviation = posterior(whole)
    x, _ = drawn(Latents(whole, flip=False), np.arange(10), 0, 0, range(10))
    assert np.abs((x.numpy() - mean[:, 0]) / deviation[:, 0]).max() < 5


def test_pixels_as_latents_are_exact(tmp_path):
    write_folder(tmp_path / "set", pictures(6), np.zeros(6, int))
    x = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2) / 127.5 - 1
    for dtype in ("float32", "float16"):
        data = Latents(encode(tmp_path / "set", tmp_path / dtype, dtype=dtype))
        found, _ = drawn(data, np.arange(6), 0, 0, range(6))
        assert found.dtype == torch.float32
        assert found.shape == x.shape
        for one, wanted in zip(found, x):
            assert any(
                torch.allclose(one, side, atol=0 if dtype == "float32" else 5e-4) for side in (wanted, wanted.flip(-1))
            )


def test_what_a_card_says_of_the_set(whole, tmp_path, monkeypatch):
    assert Latents.described(path=str(whole)).endswith(f"set encoded by {whole.parent / 'vae'}")
    write_folder(tmp_path / "set", pictures(4), np.zeros(4, int))
    encode(tmp_path / "set", tmp_path / "l")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Latents.described(path="~/l") == f"latents ~/l: {tmp_path / 'set'} kept as pixels"
    assert Latents.described(path=str(tmp_path / "gone")) == f"latents {tmp_path / 'gone'}"


def test_training_on_latents_resumes_exactly(whole, tmp_path):
    values = {
        "run": str(tmp_path / "straight"), "data": {"name": "latents", "path": str(whole)},
        "student": {**STUDENT, "in_channels": 2, "sample_size": 4}, "batch_size": 4, "steps": 4, "checkpoint_every": 2,
    }  # fmt: skip
    run(values)
    run(values, run=str(tmp_path / "resumed"), steps=2)
    run(values, run=str(tmp_path / "resumed"))
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    card = (tmp_path / "resumed" / "student" / "README.md").read_text()
    assert f"- latents {whole}: {whole.parent / 'set'} encoded by {whole.parent / 'vae'}" in card


# Files that are not what they should be


def test_every_cut_is_found_at_open(folder):
    file = shard_files(folder)[1]
    whole = file.read_bytes()
    for cut in [*range(0, 400, 13), *range(400, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"000000004\.safetensors: a damaged shard"):
            Latents(folder)
    file.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="a damaged shard"):
        Latents(folder)


def test_every_flipped_bit_is_found_by_verifying(folder):
    """Or it changed nothing: a space in the header."""
    file = shard_files(folder)[0]
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(0, header, 5), *range(header, len(whole), 41)]:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        with pytest.raises(UserError, match="a damaged shard"):
            Latents(folder, verify=True)
    file.write_bytes(whole)
    assert len(Latents(folder, verify=True)) == 10


def test_what_is_not_finite_is_refused_when_it_is_used(folder):
    file = shard_files(folder)[0]
    tensors = {name: open_tensors(file).get_tensor(name) for name in ("posterior", "label")}
    tensors["posterior"][1, :, 0, 0, 2, 2] = np.nan
    write_shard(file, tensors["posterior"], tensors["label"], read_header(file).skipped)
    index = json.loads((folder / "latents.json").read_text())
    index["shards"][0]["sha256"] = verify_shard(file).sha256
    (folder / "latents.json").write_text(json.dumps(index))
    data = Latents(folder)
    drawn(data, np.array([0, 2, 9]), 0, 0, range(3))
    with pytest.raises(UserError, match=r"000000000\.safetensors: holds latents that are not finite"):
        drawn(data, np.array([0, 1]), 0, 0, range(2))


def test_a_set_that_is_not_complete(folder):
    (folder / "latents.json").unlink()
    with pytest.raises(UserError, match="found 3 shards of a set that is not complete yet; make it by: dit-shd encode"):
        Latents(folder)
    with pytest.raises(UserError, match="wanted a folder of latents, found nothing"):
        Latents(folder / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("classes"), "KeyError: 'classes'"),
        (lambda index: index.update(format=2), "format 2, this version reads 1"),
        (lambda index: index.update(count=11), "count: 11, but the shards hold 10"),
        (lambda index: index.update(shape=[2, 4]), "wanted 3 whole numbers from 1"),
        (lambda index: index.update(shape=[2, 4, 8]), "latents.json lists another"),
        (lambda index: index.update(shape=[2**31, 4, 4]), "wanted a whole number from 1"),
        (lambda index: index.update(flips=1), "latents.json lists another"),
        (lambda index: index.update(classes=["one"]), "labels 0 to 1 of 1 classes"),
        (lambda index: index["shards"][0].update(file="../l/000000000.safetensors"), "a shard cannot have the name"),
        (lambda index: index["shards"][0].update(file="/etc/passwd"), "a shard cannot have the name"),
        (lambda index: index["shards"][0].update(file="000000004.safetensors"), "latents.json lists another"),
        (lambda index: index["shards"][0].update(count=-3), "count: wanted a whole number"),
        (lambda index: index["shards"][0].update(sha256="0"), "latents.json lists another"),
        (lambda index: index.update(shards=[]), "the shards hold 0"),
    ],
)
def test_an_index_that_lies(folder, change, message):
    index = json.loads((folder / "latents.json").read_text())
    change(index)
    (folder / "latents.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message) as error:
        Latents(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 3000, '{"format": 1}'])
def test_an_index_that_is_none(folder, text):
    (folder / "latents.json").write_text(text)
    with pytest.raises(UserError, match="not written by dit-shd encode"):
        Latents(folder)


def test_labels_are_of_the_images_that_could_be_read(tmp_path):
    """The broken one is the first of its shard, and of another class than the next but one."""
    write_folder(tmp_path / "set", pictures(6), np.array([0, 1, 1, 2, 2, 2]))
    (tmp_path / "set" / "class0" / "0000.png").write_text("no image")
    data = Latents(encode(tmp_path / "set", tmp_path / "l", shard_size=4))
    assert data.labels().tolist() == [1, 1, 2, 2, 2]
