"""Encoding images: the crop, every kind of source, posteriors, resuming after anything, processes."""

import fcntl
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from encoded import KILLED, LABELS, QUICK, config, contents, encode, pictures, tensors, tiny_vae, write_folder
from two_process_jobs import said

from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data import encoding
from dit_shd.data.decoder import Decoder
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoder import Encoder
from dit_shd.data.encoding import encode_to_shards
from dit_shd.data.latent_shards import read_index, shard_file, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images of 8 x 8 in three class folders."""
    return write_folder(tmp_path_factory.mktemp("images") / "set", pictures(20), LABELS)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    tiny_vae().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def straight(images, vae, one_thread, tmp_path_factory):
    """The twenty images encoded without any trouble: shards of 8, 8 and 4."""
    return encode(images, tmp_path_factory.mktemp("straight") / "latents", vae=str(vae))


def test_posteriors_are_the_autoencoders(images, vae, straight):
    """Mean and deviation as diffusers gives them, scaled so that the Decoder is the inverse."""
    posterior, labels = tensors(straight)
    x = torch.from_numpy(pictures(20)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        wanted = tiny_vae().encode(x).latent_dist
        decoded = tiny_vae().decode(wanted.mean).sample
    mean, deviation = torch.from_numpy(posterior[:, 0]).unbind(1)
    torch.testing.assert_close(mean, (wanted.mean - 0.25) * 0.5)
    torch.testing.assert_close(deviation, wanted.std * 0.5)
    assert float(deviation.min()) > 0
    torch.testing.assert_close(Decoder.load(str(vae), 2, torch.device("cpu"))(mean), decoded)
    np.testing.assert_array_equal(labels, LABELS)
    told = read_index(straight)
    assert told.classes == ("class0", "class1", "class2")
    assert (told.shape, len(told), told.dtype) == ((2, 4, 4), 20, "F32")
    assert told.about["vae"] == str(vae)
    assert told.about["vae_sha256"] == Encoder.load(str(vae), "no", torch.device("cpu")).digest


def test_a_folder_of_several_names_is_encoded_into_by_one_at_a_time(images, vae, tmp_path):
    (tmp_path / "store" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "store" / "out")
    with (tmp_path / "store" / ".out.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for out in (tmp_path / "store" / "out", tmp_path / "link"):
            with pytest.raises(UserError, match=r"out\.lock"):
                encode(images, out, vae=str(vae))
    assert len(read_index(encode(images, tmp_path / "link", vae=str(vae)))) == 20
    assert not list(tmp_path.rglob("*.lock"))


def test_a_flip_is_the_mirrored_image_encoded(vae, straight, tmp_path):
    mirrored = write_folder(tmp_path / "mirrored", pictures(20)[:, :, ::-1], LABELS)
    posterior, _ = tensors(encode(mirrored, tmp_path / "m", vae=str(vae)))
    wanted, _ = tensors(straight)
    np.testing.assert_array_equal(posterior[:, 0], wanted[:, 1])
    np.testing.assert_array_equal(posterior[:, 1], wanted[:, 0])
    assert np.abs(wanted[:, 1] - wanted[:, 0, ..., ::-1]).max() > 0.01, "and not the mirrored latent"


def test_without_an_autoencoder_pixels_are_the_latents(images, tmp_path):
    posterior, _ = tensors(encode(images, tmp_path / "l", flips=False))
    x = pictures(20).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    assert posterior.shape == (20, 1, 1, 3, 8, 8)
    np.testing.assert_array_equal(posterior[:, 0, 0], x)


def test_half_precision_on_disk(images, vae, straight, tmp_path):
    posterior, _ = tensors(encode(images, tmp_path / "l", vae=str(vae), dtype="float16"))
    assert posterior.dtype == np.float16
    np.testing.assert_array_equal(posterior, tensors(straight)[0].astype(np.float16))
    bf16, _ = tensors(encode(images, tmp_path / "b", vae=str(vae), precision="bf16"))
    np.testing.assert_allclose(bf16, tensors(straight)[0], atol=0.05)


@pytest.mark.parametrize("kind", ["npz", "parquet", "parquet folder", "saved", "saved as tensors", "saved splits"])
def test_every_source_gives_the_same(images, tmp_path, kind):
    labels, names = LABELS.tolist(), ["class0", "class1", "class2"]
    if kind == "npz":
        source, names = tmp_path / "set.npz", ["0", "1", "2"]
        np.savez(source, pictures(20), LABELS)
    else:
        datasets = pytest.importorskip("datasets")
        encoded = [file.read_bytes() for file in sorted(images.glob("*/*.png"))]
        table = {"image": [{"bytes": data, "path": None} for data in encoded], "label": labels}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        data = datasets.Dataset.from_dict(table, features=features)
        source = tmp_path / "set"
        if kind == "parquet":
            source = tmp_path / "set.parquet"
            data.to_parquet(source, batch_size=6)
        elif kind == "parquet folder":
            (source / "data").mkdir(parents=True)
            data.select(range(9)).to_parquet(source / "data" / "train-00000-of-00002.parquet", batch_size=4)
            data.select(range(9, 20)).to_parquet(source / "data" / "train-00001-of-00002.parquet", batch_size=4)
            data.select(range(3)).to_parquet(source / "data" / "test-00000-of-00001.parquet")
        elif kind.startswith("saved") and kind != "saved splits":
            (data.with_format("torch") if kind == "saved as tensors" else data).save_to_disk(source)
        else:
            datasets.DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(source)
    for name, wanted in zip(("posterior", "labels"), tensors(encode(images, tmp_path / "folder"))):
        found = dict(zip(("posterior", "labels"), tensors(encode(source, tmp_path / "l"))))[name]
        np.testing.assert_array_equal(found, wanted)
    assert list(read_index(tmp_path / "l").classes) == names


def test_a_folder_that_a_kill_left_with_the_beginning_of_its_settings_goes_on(images, tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / ".settings.json.9.dit_shd.part").write_text("{")
    assert len(read_index(encode(images, tmp_path / "l"))) == 20
    assert not list((tmp_path / "l").glob(".*.dit_shd.part"))


def begin(values, shards, monkeypatch):
    """Encode as far as some finished shards, then be interrupted."""
    real, made = encoding.encode_shard, []

    def dies(*arguments):
        if len(made) == shards:
            raise KeyboardInterrupt
        made.append(arguments)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            encode_to_shards(values)


@pytest.mark.parametrize("damage", ["none", "half", "empty", "flipped", "short", "foreign"])
def test_a_damaged_shard_is_told_and_made_anew(images, vae, straight, tmp_path, monkeypatch, caplog, damage):
    values = config(images, tmp_path / "l", vae=str(vae))
    begin(values, 2, monkeypatch)
    shard = shard_file(tmp_path / "l", 8)
    data = bytearray(shard.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    elif damage == "short":
        write_shard(shard, np.zeros((3, 2, 2, 2, 4, 4), np.float32), np.zeros(3, np.int64), [])
        data = shard.read_bytes()
    shard.write_bytes({"half": data[: len(data) // 2], "empty": b"", "foreign": b"x" * 200}.get(damage, data))
    made, real = [], encoding.encode_shard
    monkeypatch.setattr(encoding, "encode_shard", lambda *given: made.append(given[1].start) or real(*given))
    encode_to_shards(values)
    assert made == ([16] if damage == "none" else [8, 16])
    told = [r.getMessage() for r in caplog.records if "000000008.safetensors: a damaged shard" in r.getMessage()]
    assert len(told) == (damage != "none")
    assert contents(tmp_path / "l") == contents(straight)


def test_damage_in_a_finished_set_is_found_by_the_same_command(images, vae, straight, tmp_path, caplog):
    encode(images, tmp_path / "l", vae=str(vae))
    shard = shard_file(tmp_path / "l", 0)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 64
    shard.write_bytes(data)
    encode(images, tmp_path / "l", vae=str(vae))
    assert "its checksum is another" in caplog.text
    assert contents(tmp_path / "l") == contents(straight)


def run(command, root):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_killed_again_and_again_it_ends_as_if_never(vae, tmp_path, root):
    source = write_folder(tmp_path / "set", pictures(24), np.arange(24) // 8)
    (source / "class1" / "0012.png").write_text("broken")
    options = dict(vae=str(vae), shard_size=3, batch_size=1)
    straight = encode(source, tmp_path / "straight", **options)
    keys = [f"{key}={value}" for key, value in {**QUICK, **options, "images": source, "out": tmp_path / "l"}.items()]
    done = run(["-c", KILLED, *keys], root)
    kills = int(done.stderr.splitlines()[-1].split(" kills, exit code 0")[0])
    assert kills >= 3
    assert contents(tmp_path / "l") == contents(straight)


@pytest.mark.two_processes("encoding")
def test_two_processes_encode_what_one_does(by_two):
    (first, said_first), (second, said_second) = said(by_two)
    assert (first, second) == (0, 0)
    assert (said_first + said_second).count("done: ") == 1, "one of two processes reports: there was one world of two"
    assert contents(by_two / "two") == contents(by_two / "one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "size: wanted a number from 1 to 8192, found 0"),
        ({"shard_size": 0}, "shard_size: wanted 1 or more, found 0"),
        ({"images": "nowhere.npz"}, r"in class folders, or with captions\), tars, .* found nothing at 'nowhere\.npz'"),
        ({"images": "no/dataset"}, "found nothing at 'no/dataset' .* is named hub:no/dataset"),
        ({"images": __file__}, "found text .* at "),
        ({"vae": "no/such/vae"}, "vae: wanted .* found nothing at 'no/such/vae'"),
        ({"vae": "VAE", "size": 9}, "vae: encodes images of 3 channels and sizes that are multiples of 2"),
        ({"caption_column": "blip"}, "caption_column: is of captions, which are encoded by a pipeline; give pipeline="),
        ({"text_tokens": 5}, "text_tokens: is of captions"),
        ({"text_dtype": "bfloat16"}, "text_dtype: is of captions"),
        ({"out": __file__}, "out: wanted a folder, found a file"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(images, vae, tmp_path, changes, message):
    given = {"vae": str(vae)} if changes.get("vae") == "VAE" else {}
    with pytest.raises(UserError, match=message) as error:
        encode_to_shards(config(**{"images": images, "out": tmp_path / "l", **changes, **given}))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_other_settings_and_files_of_others_are_refused(images, tmp_path):
    encode(images, tmp_path / "l")
    with pytest.raises(UserError, match=r"holds shards of other settings \(size: "):
        encode(images, tmp_path / "l", size=4)
    changed = write_folder(tmp_path / "changed", pictures(19), LABELS[:19])
    with pytest.raises(UserError, match=r"was made of other images: what is there has changed since \(images_sha256: "):
        encode(changed, tmp_path / "l")
    with pytest.raises(UserError, match="was not made by encode"):
        encode(images, changed)


def test_a_folder_without_a_shard_is_begun_again_with_other_settings(images, vae, straight, tmp_path, monkeypatch):
    """As after running out of memory: the smaller batch was refused, for want of the shards of the larger one."""
    begin(config(images, tmp_path / "l", vae=None, batch_size=20), 0, monkeypatch)
    begin(config(images, tmp_path / "l", vae=str(vae), batch_size=20), 0, monkeypatch)
    (tmp_path / "l" / ".000000000.safetensors.9.dit_shd.part").write_bytes(b"")
    assert contents(encode(images, tmp_path / "l", vae=str(vae))) == contents(straight)
    begin(config(images, tmp_path / "m"), 1, monkeypatch)
    with pytest.raises(UserError, match=r"holds shards of other settings \(batch_size: 4 there, 2 here\)"):
        encode(images, tmp_path / "m", batch_size=2)


def test_other_pixels_of_the_same_sizes_are_another_source(tmp_path):
    """An npz written anew, whose shape and labels are what they were."""
    file, out = tmp_path / "images.npz", tmp_path / "latents"
    np.savez(file, pictures(20), LABELS)
    encode(file, out)
    encode(file, out)
    for first in (0, 10):  # all, and those alone that come late
        other = pictures(20)
        other[first:] = 255 - other[first:]
        np.savez(file, other, LABELS)
        with pytest.raises(UserError, match=r"was made of other images: what is there has changed since"):
            encode(file, out)


def test_a_vae_that_overflows_is_told(images, tmp_path, monkeypatch):
    monkeypatch.setattr(Encoder, "__call__", lambda self, x: x[:, None] * float("inf"))
    with pytest.raises(UserError, match=r"images 0\.\.3 are not finite"):
        encode(images, tmp_path / "l")


def test_the_command(images, tmp_path, capsys):
    keys = [f"images={images}", f"out={tmp_path / 'l'}", "vae=null", "size=8"]
    assert main(["encode", *keys]) == 0
    shown = capsys.readouterr()
    assert "20/20 images" in shown.err and "images/s" in shown.err and "left" in shown.err
    assert "20 images in 3 classes, latents of shape [3, 8, 8]" in shown.out
    assert shown.out.splitlines()[-1] == f"next: dit-shd train CONFIG data='{{name: latents, path: {tmp_path / 'l'}}}'"
    assert main(["encode", "out=x"]) == 2
    assert "encode.images: a value is needed" in capsys.readouterr().err


def test_pixels_have_one_name_in_every_command(images, tmp_path, capsys):
    """`vae=pixels` is what training and sampling call it; the set is that of `vae=null`, which goes on with either."""
    assert main(["encode", f"images={images}", f"out={tmp_path / 'l'}", "vae=pixels", "size=8"]) == 0
    wanted = contents(encode(images, tmp_path / "null", size=8, batch_size=32, shard_size=1024))
    assert contents(tmp_path / "l") == wanted
    assert main(["encode", f"images={images}", f"out={tmp_path / 'l'}", "vae=null", "size=8"]) == 0
    assert main(["encode", f"images={images}", f"out={tmp_path / 'm'}", "vae=pixel", "size=8"]) == 2
    assert "vae: wanted a folder with a diffusers autoencoder, found nothing at 'pixel'" in capsys.readouterr().err


def test_where_the_usual_autoencoder_cannot_be_had_others_are_named(images, tmp_path):
    """The tests ask no hub; of one that was named nothing else is proposed."""
    keys = {"images": str(images), "out": str(tmp_path / "l")}
    with pytest.raises(
        UserError, match=r"sd-vae-ft-mse: .*; vae=FOLDER takes another, vae=pixels the pixels as they a"
    ):
        encode_to_shards(make(EncodeConfig, keys))
    with pytest.raises(UserError, match=r"vae: hub:somebody/silent: .*not in the local cache$"):
        encode_to_shards(make(EncodeConfig, {**keys, "vae": "hub:somebody/silent"}))
    assert not (tmp_path / "l").exists()
