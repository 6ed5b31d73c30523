"""Embeddings of captions by the command: killed, by two processes, and read again."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from encoded import KILLED
from encoded_text import encode
from tiny_pipelines import write_images, write_pipeline
from two_process_jobs import said

from dit_shd.core.errors import UserError
from dit_shd.data.datasets.text_latents import TextLatents
from dit_shd.data.text_condition import TextCondition
from dit_shd.data.text_encoding import gathered
from dit_shd.data.text_shards import verify
from dit_shd.diffusion.prompt_generation import read_prompts

CAPTIONS = {f"{number:02d}": ("a seven", "two digits thin four and a nine", "")[number % 3] for number in range(14)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, its images with captions and their latents."""
    folder = tmp_path_factory.mktemp("text")
    write_pipeline("sd3", folder / "pipeline")
    write_images(folder / "images", CAPTIONS)
    return folder, encode(folder, folder / "pipeline", images=folder / "images")


def test_parts_of_several_lengths_are_gathered_as_if_padded():
    lengths, first = (2, 5, 3, 5, 7), 0
    parts = [TextCondition.of(torch.rand(i + 1, n, 4), torch.rand(i + 1, n) < 0.5) for i, n in enumerate(lengths)]
    whole = gathered(iter(parts), 15)
    assert whole.pooled is None and whole.tokens == 7
    for part in parts:
        rows, first = slice(first, first + len(part.mask)), first + len(part.mask)
        padded = part.padded(7)
        assert torch.equal(whole.embeddings[rows], padded.embeddings) and torch.equal(whole.mask[rows], padded.mask)


def contents(folder):
    """Of all that training reads, by name."""
    files = [*folder.glob("*.safetensors"), folder / "latents.json", *folder.glob("text/*")]
    return {file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def test_sizes_that_the_pipeline_s_transformer_does_not_take_are_refused_before_anything_is_encoded(made, tmp_path):
    images = made[0] / "images"
    with pytest.raises(UserError, match=r"^size: the pipeline's SD3Trans\w+: takes .* multiples of 2, .* are 9 x 9$"):
        encode(tmp_path, made[0] / "pipeline", images=images, size=18)
    pipeline = shutil.copytree(made[0] / "pipeline", tmp_path / "pipeline")
    file = pipeline / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pos_embed_max_size": 3}))
    with pytest.raises(UserError, match=r"has positions for latents of at most 6 a side, .* are 8 x 8$"):
        encode(tmp_path, pipeline, images=images)
    assert not (tmp_path / "latents").exists()
    file.unlink()
    assert (encode(tmp_path, pipeline, images=images) / "latents.json").is_file()


def test_a_picture_beside_class_folders_is_encoded_with_the_others(made, tmp_path):
    write_images(tmp_path / "images", {"0": "a nine"})
    write_images(tmp_path / "images" / "class", {"0": "a seven"})
    folder = encode(tmp_path, made[0] / "pipeline", images=tmp_path / "images")
    assert len(TextLatents(folder)) == 2


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_never(made, tmp_path, root):
    folder, straight = made
    words = [f"images={folder / 'images'}", f"pipeline={folder / 'pipeline'}", f"out={tmp_path / 'l'}"]
    command = [sys.executable, "-c", KILLED, *words, "size=16", "shard_size=2", "workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    kills = int(done.stderr.splitlines()[-1].split(" kills, exit code 0")[0])
    assert kills >= 3
    assert contents(tmp_path / "l") == contents(straight)


@pytest.mark.two_processes("text_encoding")
def test_two_processes_encode_what_one_does(by_two):
    (first, said_first), (second, said_second) = said(by_two)
    assert (first, second) == (0, 0)
    assert (said_first + said_second).count("text_latents") == 1
    two, one = by_two / "two", by_two / "one" / "latents"
    files = sorted(file.name for file in one.glob("text/0*.safetensors"))
    assert files == sorted(file.name for file in two.glob("text/0*.safetensors")) and len(files) > 4
    for name in files:
        found, wanted = verify(two / "text" / name), verify(one / "text" / name)
        assert found.captions == wanted.captions and found.rows.tolist() == wanted.rows.tolist()
        torch.testing.assert_close(vars(found.condition), vars(wanted.condition), rtol=1e-5, atol=1e-6)
    latents = [{file.name: file.read_bytes() for file in folder.glob("0*")} for folder in (one, two)]
    assert latents[0] == latents[1]


def test_flips_that_were_not_encoded_are_not_drawn_in_silence(made):
    with pytest.raises(UserError, match=r"data.flip: .* holds no mirrored images .*encode with flips=true"):
        TextLatents(made[1], flip=True)


def test_a_batch_has_the_rows_of_its_samples_in_their_order(made):
    data = TextLatents(made[1])
    indices = np.array([9, 0, 7, 7, 2, 8])
    batch = data.text(indices)
    for row, index in enumerate(indices):
        alone = data.text(np.array([index]))
        torch.testing.assert_close(batch.embeddings[row, : alone.tokens], alone.embeddings[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.pooled[row], alone.pooled[0], rtol=0, atol=0)
        assert batch.mask[row].sum() == alone.mask.sum()
    captions = [caption for caption in CAPTIONS.values() if caption]  # images without one are left out
    assert data.captions() == read_prompts(made[1]) == captions
    assert [data.caption(int(index)) for index in indices] == [captions[index] for index in indices]
