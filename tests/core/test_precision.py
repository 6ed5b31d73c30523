"""True float32, whichever of PyTorch's settings allows less; each in a process of its own, since they last."""

import subprocess
import sys

import pytest

CODE = """
import torch
from dit_shd.core.plugins import Plugin
from dit_shd.core.precision import true_float32
from dit_shd.evaluation.features import FEATURES
libraries = torch.backends
images, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)
digits = torch.randint(0, 256, (4, 28, 28, 1), dtype=torch.uint8)
network = FEATURES.build(Plugin("digits"))
def settings():
    places = libraries, libraries.cuda.matmul, libraries.cudnn, libraries.cudnn.conv, libraries.mkldnn.matmul
    return [place.fp32_precision for place in (*places, libraries.mkldnn.conv)]
def outputs():
    return images[0] @ images[0], torch.nn.functional.conv2d(images, weight)
exact, features = outputs(), network.extract(digits)
SETTING
before = settings()
with true_float32():
    assert all(map(torch.equal, outputs(), exact))
assert torch.equal(network.extract(digits).pooled, features.pooled)
assert settings() == before, (before, settings())
first, second = true_float32(), true_float32()  # of two threads, say
first.__enter__(), second.__enter__(), first.__exit__(None, None, None), second.__exit__(None, None, None)
assert settings() == before, (before, settings())
"""
FOLLOWING = """
import torch
from dit_shd.core.precision import true_float32
libraries = torch.backends
libraries.fp32_precision = "tf32"
with true_float32():
    pass
libraries.fp32_precision = "ieee"
places = libraries.cuda.matmul, libraries.cudnn.conv, libraries.mkldnn.matmul, libraries.mkldnn.conv
assert {place.fp32_precision for place in places} == {"ieee"}
"""


@pytest.mark.parametrize(
    "setting",
    [
        "libraries.fp32_precision = 'tf32'; libraries.mkldnn.conv.fp32_precision = 'bf16'",
        pytest.param("libraries.fp32_precision = 'ieee'", marks=pytest.mark.slow),
        pytest.param("libraries.cuda.matmul.fp32_precision = 'tf32'", marks=pytest.mark.slow),
        pytest.param("torch.set_float32_matmul_precision('medium')", marks=pytest.mark.slow),
    ],
)
def test_float32_is_true_under_any_setting_and_the_setting_stays(setting):
    """The older ones raise where the newer are used, as by transformers' TrainingArguments(tf32=True)."""
    run(CODE.replace("SETTING", setting))


def test_what_followed_the_setting_of_all_libraries_follows_it_afterwards():
    run(FOLLOWING)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
