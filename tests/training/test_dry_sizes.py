"""Classes and tokens of a dry run's student, which training takes from the data."""

import numpy as np
import pytest
from language import GPT2, causal_lm, lines
from PIL import Image

from dit_shd.core.config import make
from dit_shd.models.families.timm import TimmModel
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run

SIZES = {"model": "deit_tiny_patch16_224", "img_size": 28, "mean": [0.1] * 3, "std": [0.3] * 3}
SIZES |= {"options": {"patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2}}


@pytest.fixture
def classifier(tmp_path):
    """The config of a student of a teacher of three classes, whose own number is left to the data."""
    TimmModel(**SIZES, num_classes=3).save_pretrained(tmp_path / "teacher")
    return {
        "run": str(tmp_path / "run"),
        "task": "classification",
        "data": {"name": "images", "path": str(tmp_path / "pictures")},
        "student": {"name": "timm", **SIZES},
        "teacher": str(tmp_path / "teacher"),
        "losses": [{"name": "nkd"}],
        "dry_run": True,
    }


def outcome(values):
    run = dry_run(make(TrainConfig, values))
    return run, dry_run_text(run)


def test_classes_are_those_of_a_folder_that_is_here(classifier, tmp_path):
    for name in "abc":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "pictures" / name / "1.png")
    run, text = outcome(classifier)
    assert run.student.config.num_classes == 3 and run.measured is not None
    assert "The student has 3 classes, as the data have." in text


def test_classes_are_the_teachers_where_the_data_are_not_here(classifier):
    run, text = outcome(classifier)
    assert run.student.config.num_classes == 3 and run.measured is not None
    assert "The data are not here; the student was given the 3 classes of the teacher." in text
    classifier["student"]["num_classes"] = 3
    assert "The data are not here" not in outcome(classifier)[1]


def test_a_number_that_nothing_says_is_said_to_be_the_familys(classifier):
    run, text = outcome({**classifier, "teacher": None, "losses": [], "estimate": {"measure": False}})
    assert run.student.config.num_classes == 1000
    assert "The data are not here; num_classes of the student is the default of its family." in text


@pytest.mark.parametrize(
    ("data", "tokens", "words"),
    [
        ({"tokenizer": "bpe.json", "vocabulary": 300}, 300, "The student has 300 tokens, as the data have."),
        ({}, 257, "The student has 257 tokens, as the data have."),
        ({"tokenizer": "nowhere.json"}, GPT2["vocab_size"], "was given the 257 tokens of the teacher"),
    ],
)
@pytest.mark.parametrize("here", [True, False])
def test_tokens_are_those_of_the_vocabulary(data, tokens, words, here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    causal_lm(GPT2).save_pretrained(tmp_path / "teacher")
    text = lines(tmp_path) if here else str(tmp_path / "nothing.txt")
    values = {
        "run": str(tmp_path / "run"),
        "task": "language_modeling",
        "data": {"name": "text", "path": text, "length": 16, **data},
        "teacher": str(tmp_path / "teacher"),
        "student": {"name": "transformers", "config": {k: v for k, v in GPT2.items() if k != "vocab_size"}},
        "losses": [{"name": "shd"}],
        "dry_run": True,
        "estimate": {"measure": False},
    }
    run, printed = outcome(values)
    assert run.student.network.config.vocab_size == tokens
    assert words in printed
    assert not (tmp_path / "bpe.json").exists(), "no tokenizer is trained for it"
