"""Names of latents in commands that are printed."""

import shlex
from pathlib import Path

import pytest

from dit_shd.core.yaml_files import override
from dit_shd.data.latent_shards import data_argument


@pytest.mark.parametrize("name", ["lat", "lat \u00fc", "\u5b57/l", "a: b", "it's"])
def test_the_argument_is_read_back_and_can_be_read(name):
    (word,) = shlex.split(f"data={data_argument('latents', Path(name))}")
    assert override({}, [word]) == {"data": {"name": "latents", "path": name}}
    assert name in word.replace("''", "'")
