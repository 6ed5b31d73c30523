"""Embeddings of captions by the command: killed, by two processes, and read again."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from encoded import KILLED
from encoded_text import encode
from tiny_pipelines import write_images, write_pipeline
from two_process_jobs import said

from dit_shd.data.datasets.text_latents import TextLatents
from dit_shd.diffusion.prompt_generation import read_prompts

CAPTIONS = {f"{number:02d}": ("a seven", "two digits thin four and a nine", "")[number % 3] for number in range(14)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A pipeline, its images with captions and their latents."""
    folder = tmp_path_factory.mktemp("text")
    write_pipeline("sd3", folder / "pipeline")
    write_images(folder / "images", CAPTIONS)
    return folder, encode(folder, folder / "pipeline", images=folder / "images")


def contents(folder):
    """Of all that training reads, by name."""
    files = [*folder.glob("*.safetensors"), folder / "latents.json", *folder.glob("text/*")]
    return {file.relative_to(folder): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


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
    assert contents(by_two / "two") == contents(by_two / "one" / "latents")


def test_a_batch_has_the_rows_of_its_samples_in_their_order(made):
    data = TextLatents(made[1])
    indices = np.array([13, 0, 7, 7, 2, 12])
    batch = data.text(indices)
    for row, index in enumerate(indices):
        alone = data.text(np.array([index]))
        torch.testing.assert_close(batch.embeddings[row, : alone.tokens], alone.embeddings[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.pooled[row], alone.pooled[0], rtol=0, atol=0)
        assert batch.mask[row].sum() == alone.mask.sum()
    assert data.captions() == [*CAPTIONS.values()]
    assert read_prompts(made[1]) == [caption for caption in CAPTIONS.values() if caption]
    assert [data.caption(int(index)) for index in indices] == [[*CAPTIONS.values()][index] for index in indices]
