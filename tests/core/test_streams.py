"""Commands whose output nobody reads."""

import os
import subprocess
import sys

import pytest
import yaml


def command(root, words, **options):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-m", "dit_shd", *words], env=environment, timeout=120, **options)


@pytest.mark.parametrize("closed", [pytest.param((2,), marks=pytest.mark.slow), (0, 1, 2)])
def test_a_run_needs_no_standard_streams(values, tmp_path, root, closed):
    """As a service has none: it had ended before it began, without a word."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**values, "steps": 1}))
    done = command(root, ["train", str(file)], preexec_fn=lambda: [os.close(stream) for stream in closed])
    assert done.returncode == 0
    assert (tmp_path / "run" / "student").is_dir()


def test_a_reader_that_has_ended_is_no_error(root):
    reader, writer = os.pipe()
    os.close(reader)
    done = command(root, ["configs"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
