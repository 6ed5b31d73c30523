"""A new run from another's weights: what may be taken."""

import pytest
import torch
from language import GPT2, causal_lm, lines

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.models.families.dit import DiT
from dit_shd.models.provenance import Provenance
from dit_shd.tasks import TASKS
from dit_shd.training.warm_start import read_origin, take_weights

SIZES = {"sample_size": 8, "patch_size": 2, "in_channels": 1, "num_layers": 2, "num_classes": 3}


def test_weights_of_other_heads_are_refused_though_their_shapes_are_the_same(tmp_path):
    torch.manual_seed(0)
    DiT(**SIZES, num_attention_heads=4, attention_head_dim=4).save_pretrained(tmp_path)
    same = DiT(**SIZES, num_attention_heads=4, attention_head_dim=4)
    start = take_weights(same, str(tmp_path))
    assert start.taken == start.total
    other = DiT(**SIZES, num_attention_heads=2, attention_head_dim=8)
    before = {name: x.clone() for name, x in other.state_dict().items()}
    with pytest.raises(UserError, match=r"heads of blocks\.0\.attn is 4 in .* and 2 in the student"):
        take_weights(other, str(tmp_path))
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())


@pytest.mark.parametrize("prediction", ["noise", "velocity_sit"])
def test_weights_of_a_model_that_predicts_something_else_are_told(prediction, tmp_path, caplog):
    """Not refused: a model of noise may be taught velocity on purpose."""
    DiT(**SIZES, num_attention_heads=2, learn_sigma=False, prediction="velocity_repa").save_pretrained(tmp_path)
    assert take_weights(DiT(**SIZES, num_attention_heads=2, learn_sigma=False, prediction=prediction), str(tmp_path))
    assert f"the student predicts {prediction}, and {tmp_path} velocity_repa: it begins with weights" in caplog.text
    assert "student.prediction=velocity_repa goes on" in caplog.text


def use(name, data, student):
    """A task with its data."""
    task = TASKS.build(Plugin(name), "task")
    task.use(DATASETS.build(data, "data"), student)
    return task


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"origin": null}',
        '{"origin": {"license": null, "data": null}}',
        '{"origin": {"license": 5}}',
        '{"origin": {"license": "mit", "trained_on": [1]}}',
    ],
)
def test_a_damaged_record_of_the_first_weights_is_no_missing_one(content, tmp_path):
    """Or the student's card would name no licence."""
    assert read_origin(tmp_path) is None
    (tmp_path / "from.json").write_text('{"origin": {"license": "mit", "trained_on": ["a"]}}')
    assert read_origin(tmp_path) == Provenance("mit", trained_on=("a",))
    (tmp_path / "from.json").write_text(content)
    with pytest.raises(UserError, match=r"from\.json: wanted the origin of the weights"):
        read_origin(tmp_path)


def test_weights_of_other_tokens_are_refused(tmp_path):
    """Of two vocabularies of one size nothing else would tell."""
    sizes, options = {**GPT2, "vocab_size": 290}, {"vocabulary": 290, "length": 16, "document": "line"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "lines.txt").write_text("Quick brown foxes jump over lazy dogs every morning.\n" * 40)
    paths = lines(tmp_path), str(tmp_path / "b" / "lines.txt")
    data = [Plugin("text", {"path": path, "tokenizer": f"{path}.json", **options}) for path in paths]
    first = causal_lm(sizes)
    use("language_modeling", data[0], first).describe(first)
    first.save_pretrained(tmp_path / "m")
    student = causal_lm(sizes, seed=1)
    assert take_weights(student, str(tmp_path / "m"), use("language_modeling", data[0], student)).new == ()
    with pytest.raises(UserError, match=r"from: .*m: has a tokenizer of its own \(token \d+ is .*; wanted data\.tok"):
        take_weights(student, str(tmp_path / "m"), use("language_modeling", data[1], student))


@pytest.mark.parametrize(
    ("classes", "names", "warning"),
    [
        (10, list("0123456789"), None),
        (10, None, None),
        (10, list("1023456789"), "class 0 is '0', not '1'"),
        (10, list("abcdefghij"), "no name is in both, class 0 is '0', not 'a': classes are matched by place"),
        (10, [f"{i} " for i in range(10)], None),
        (11, list("abcdefghijk"), None),
    ],
)
def test_weights_of_other_classes_are_told(classes, names, warning, tmp_path, caplog):
    """Where their number is another, nothing of the classes is taken."""
    sizes = {**SIZES, "sample_size": 28, "patch_size": 4, "num_attention_heads": 4}
    DiT(**{**sizes, "num_classes": classes}, class_names=names).save_pretrained(tmp_path)
    student = DiT(**{**sizes, "num_classes": 10})
    take_weights(student, str(tmp_path), use("diffusion", Plugin("digits"), student))
    said = [record.getMessage() for record in caplog.records if "classes" in record.getMessage()]
    assert said == ([f"from: the data's classes are others than {tmp_path} knows: {warning}"] if warning else [])
