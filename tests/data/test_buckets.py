"""Aspect-ratio buckets: encoded, resumed, trained on."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoded_text import encode
from PIL import Image
from tiny_pipelines import write_pipeline

from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.buckets import bucket_shapes, encode_buckets, nearest
from dit_shd.data.datasets import DATASETS
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoder import Encoder
from dit_shd.data.latent_origin import Kept
from dit_shd.data.latent_shards import read_index
from dit_shd.data.pipeline_record import read_record
from dit_shd.data.preprocessing import centre_crop
from dit_shd.data.sources.base import NO_LABELS
from dit_shd.diffusion.pipelines import Prompts
from dit_shd.diffusion.prompt_generation import read_prompts
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer

SIDES = {"a": (16, 16), "b": (40, 24), "c": (24, 40), "d": (50, 30), "e": (33, 32)}
"""Height and width of images by name."""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline("sd3", tmp_path_factory.mktemp("p") / "pipeline")


@pytest.fixture(scope="module")
def made(pipeline, tmp_path_factory):
    """Images, the folder of their buckets, and what encoding says again."""
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "images").mkdir()
    for number, (name, sides) in enumerate(SIDES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        (folder / "images" / f"{name}.txt").write_text(f"a {name}")
    values = {"images": str(folder / "images"), "out": folder / "latents", "size": 16, "workers": 1, "buckets": True}
    config = make(EncodeConfig, {**values, "pipeline": str(pipeline)}, "encode")
    counts = [encode_buckets(config, Prompts.load(str(pipeline), torch.device("cpu"))) for _ in range(2)]
    assert counts[0] == counts[1]
    return folder, counts[0]


@pytest.mark.parametrize("size", [256, 384, 512, 640])
def test_shapes_lie_and_stand(size):
    """A picture that is turned by 90 degrees is cropped to the turned shape."""
    shapes = bucket_shapes(size, 16)
    assert {(width, height) for height, width in shapes} == {*shapes} and len({*shapes}) == len(shapes)


def test_held_out_loss_is_of_all_shapes(made):
    """The first samples are all of the widest bucket."""
    data = DATASETS.build(Plugin("text_buckets", {"path": str(made[0] / "latents")}))
    of_three = [data.of_one_shape(data.first(3)), data.of_one_shape(np.arange(3))]
    assert [len(groups) for groups in of_three] == [3, 2]
    assert data.first(len(data)).tolist() == [*range(len(data))]


def test_a_student_of_buckets_learned_all_their_sizes(made, pipeline, tmp_path, caplog):
    """Two of them have two images each: the square one is drawn where none is named."""
    data = DATASETS.build(Plugin("text_buckets", {"path": str(made[0] / "latents")}))
    assert (data.record.size, data.shape[1:]) == ((16, 16), (8, 8))
    assert data.record.sizes == ((12, 20), (16, 16), (20, 12))
    run = tmp_path / "run"
    list(Trainer.from_config(make(TrainConfig, values(made, pipeline, run, steps=1, validate_every=1))).run_steps())
    assert read_record(run / "student") == data.record
    card = " ".join((run / "student" / "README.md").read_text().split())
    assert "It learned images of 12 x 20, 16 x 16 and 20 x 12 pixels (height, width): plain" in card
    (tmp_path / "prompts.txt").write_text("a nine\n")
    words = ["sample", str(run), f"prompts={tmp_path / 'prompts.txt'}", "steps=1"]
    for number, call in enumerate(([], ["call={height: 12, width: 20}"])):
        caplog.clear()
        assert main([*words, *call, f"out={tmp_path / str(number)}.npz"]) == 0
        assert (
            "learned images of 12 x 20, 16 x 16 and 20 x 12 pixels (height, width); drawing 16 x 16" in caplog.text
        ) == (not call)
    assert np.load(tmp_path / "0.npz")["arr_0"].shape == (1, 16, 16, 3)


def test_a_bucket_is_drawn_as_often_as_it_has_images(made):
    data = DATASETS.build(Plugin("text_buckets", {"path": str(made[0] / "latents")}))
    drawn = [data.indices(Draws(0, step, [0], 1))[0] for step in range(1000)]
    np.testing.assert_allclose(np.bincount(drawn) / 1000, 1 / len(data), atol=0.05)


def test_the_nearest_shape_is_that_of_the_nearest_logarithm():
    assert nearest([(1, 1), (2, 1)], (145, 100)) == nearest([(2, 1), (1, 1)], (100, 100)) == 1
    assert nearest([(1, 2), (1, 1)], (100, 145)) == 0


def test_prompts_are_those_of_all_buckets(made):
    assert sorted(read_prompts(made[0] / "latents")) == ["a a", "a b", "a c", "a d", "a e"]


def test_shapes_have_about_one_area_and_their_ratios_are_between_a_half_and_two():
    shapes = bucket_shapes(1024, 16)
    assert (1024, 1024) in shapes
    assert len(shapes) > 10
    for height, width in shapes:
        assert height % 64 == width % 64 == 0
        assert 0.9 < height * width / 1024**2 < 1.1
        assert 0.5 <= height / width <= 2
        assert shapes[nearest(shapes, (2 * height, 2 * width))] == (height, width)
    assert {(width, height) for height, width in shapes} == {*shapes}
    assert shapes[nearest(shapes, (9000, 100))] == max(shapes, key=lambda shape: shape[0] / shape[1])


def test_a_bucket_of_broken_images_is_left_out(made, pipeline, tmp_path, caplog):
    """It is the square one, for want of a size; the others are made."""
    for name in "bc":
        for end in ("png", "txt"):
            shutil.copy(made[0] / "images" / f"{name}.{end}", tmp_path)
    (tmp_path / "z.png").write_bytes(b"no image")
    (tmp_path / "z.txt").write_text("a z")
    values = {"images": str(tmp_path), "out": tmp_path / "latents", "size": 16, "workers": 1, "buckets": True}
    config = make(EncodeConfig, {**values, "pipeline": str(pipeline)}, "encode")
    prompts = Prompts.load(str(pipeline), torch.device("cpu"))
    assert encode_buckets(config, prompts) == {"12x20": 1, "20x12": 1}
    assert "16x16 has no image that can be read" in caplog.text
    for name in "bc":
        (tmp_path / f"{name}.png").write_bytes(b"none either")
    with pytest.raises(UserError, match=r"none of .* could be read"):
        encode_buckets(replace(config, out=tmp_path / "other"), prompts)


def test_an_image_is_in_the_bucket_of_its_shape(made, pipeline):
    folder, counts = made
    assert counts == {"12x20": 1, "16x16": 2, "20x12": 2}
    assert json.loads((folder / "latents" / "buckets.json").read_text()) == {"buckets": counts}
    data = DATASETS.build(Plugin("text_latents", {"path": str(folder / "latents" / "20x12")}))
    assert [data.caption(0), data.caption(1)] == ["a b", "a d"]
    assert data.shape == (4, 10, 6)
    assert data.record.size == (20, 12)
    crop = centre_crop(Image.open(folder / "images" / "b.png"), (20, 12))
    assert crop.shape == (20, 12, 3)
    encoder = Encoder.load(str(pipeline), "no", torch.device("cpu"))
    mean = encoder(torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1)[0, 0]
    drawn = torch.stack([data.batch(np.array([0]), Draws(0, step, [0], 1))["latents"][0] for step in range(64)])
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.5, rtol=0)


def test_rows_of_a_table_are_in_the_buckets_of_their_shapes_by_several_threads(pipeline, tmp_path):
    """A table is read in order: threads that read it together would take each other's rows."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng, rows = np.random.default_rng(0), []
    shapes = [(16, 16), (40, 24), (24, 40)] * 40
    for sides in rng.permutation(shapes):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8)).save(stream, "png")
        rows.append(stream.getvalue())
    table = pa.table({"image": [*rows, None], "text": ["a text"] * (len(rows) + 1)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    values = {"images": str(tmp_path / "a.parquet"), "out": tmp_path / "l", "size": 16, "workers": 4, "buckets": True}
    config = make(EncodeConfig, {**values, "pipeline": str(pipeline)}, "encode")
    counts = encode_buckets(config, Prompts.load(str(pipeline), torch.device("cpu")))
    assert counts == {"12x20": 40, "16x16": 40, "20x12": 40}
    skipped = (tmp_path / "l" / "16x16" / "skipped.jsonl").read_text()
    assert "a.parquet[120]" in skipped and len(skipped.splitlines()) == 1
    assert NO_LABELS in read_index(tmp_path / "l" / "20x12").about["notes"], "what encoding said of the images is kept"


def values(made, pipeline, run, **changes):
    data = {"name": "text_buckets", "path": str(made[0] / "latents")}
    return {
        "run": str(run),
        "task": {"name": "text_to_image", "evaluation": {"data": dict(data), "count": 5}},
        "data": data,
        "teacher": str(pipeline),
        "student": {"like": "teacher", "num_attention_heads": 2},
        "check_teacher": "warn",
        "losses": [{"name": "output"}, {"name": "shd"}],
        "steps": 4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "log_every": 1,
        "validate_every": 4,
        "ema": 0.5,
        **changes,
    }


def test_each_step_is_of_one_shape_and_a_run_resumes(made, pipeline, tmp_path):
    config = make(TrainConfig, values(made, pipeline, tmp_path / "run"))
    trainer = Trainer.from_config(config)
    shapes = [trainer.task.draw(Draws(0, step, range(4), 4))[0].x_0.shape[1:] for step in range(40)]
    assert {tuple(shape) for shape in shapes} == {(4, 8, 8), (4, 6, 10), (4, 10, 6)}
    whole = [step.metrics["loss"] for step in trainer.run_steps()]
    two = replace(config, run=tmp_path / "two", steps=2)
    first = [step.metrics["loss"] for step in Trainer.from_config(two).run_steps()]
    last = [step.metrics["loss"] for step in Trainer.from_config(replace(two, steps=4)).run_steps()]
    assert whole == [*first, *last]
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert np.isfinite(rows[0]["validation_loss"])


def test_held_out_buckets_may_have_another_most_frequent_shape(made, pipeline, tmp_path):
    for name in "bd":  # of the widest bucket alone
        for end in ("png", "txt"):
            shutil.copy(made[0] / "images" / f"{name}.{end}", tmp_path)
    options = {"images": str(tmp_path), "out": tmp_path / "latents", "size": 16, "workers": 1, "buckets": True}
    config = make(EncodeConfig, {**options, "pipeline": str(pipeline)}, "encode")
    encode_buckets(config, Prompts.load(str(pipeline), torch.device("cpu")))
    held_out = {"data": {"name": "text_buckets", "path": str(tmp_path / "latents")}, "count": 2}
    changed = values(made, pipeline, tmp_path / "run", task={"name": "text_to_image", "evaluation": held_out})
    trainer = Trainer.from_config(make(TrainConfig, changed))
    assert trainer.task.dataset.shape != trainer.task.evaluation.open().shape
    trainer.student.register_to_config(pos_embed_max_size=4)  # of latents of eight a side
    with pytest.raises(UserError, match=r"^task\.evaluation\.data: the student: has positions .*one's are 10 x 6"):
        trainer.task.check_evaluation(trainer.student, Kept(None))
    with pytest.raises(UserError, match=r"^student: has positions for latents of at most 8 a side, .* 6 x 10"):
        trainer.task.check("student", trainer.student)


def test_a_folder_is_of_buckets_or_of_one_size(made, pipeline, tmp_path):
    """Both kinds of data had opened it."""
    latents = encode(tmp_path, pipeline, images=made[0] / "images")
    options = {"images": str(made[0] / "images"), "size": 16, "workers": 1, "pipeline": str(pipeline)}
    config = make(EncodeConfig, {**options, "out": latents, "buckets": True}, "encode")
    with pytest.raises(UserError, match=r"latents: was made for images of one size, without buckets; remove it or ch"):
        encode_buckets(config, Prompts.load(str(pipeline), torch.device("cpu")))
    assert not (latents / "buckets.json").exists()
    with pytest.raises(UserError, match=r"latents: exists and was not made by encode; remove it or choose another out"):
        encode(made[0], pipeline, images=made[0] / "images")


def test_bad_input(made, pipeline, tmp_path):
    with pytest.raises(UserError, match=r"wanted latents of one size, found buckets; say data.name=text_buckets"):
        DATASETS.build(Plugin("text_latents", {"path": str(made[0] / "latents")}))
    with pytest.raises(UserError, match=r"wanted buckets, found no buckets.json"):
        DATASETS.build(Plugin("text_buckets", {"path": str(encode(tmp_path, pipeline))}))
    values = {
        "images": str(made[0] / "images"),
        "out": str(tmp_path / "odd"),
        "pipeline": str(pipeline),
        "buckets": True,
        "size": 18,
    }
    with pytest.raises(UserError, match="size: wanted a multiple of 4 for buckets"):
        encode_buckets(make(EncodeConfig, values), Prompts.load(str(pipeline), torch.device("cpu")))
    small = shutil.copytree(pipeline, tmp_path / "small")
    file = small / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pos_embed_max_size": 4}))
    config = make(EncodeConfig, {**values, "size": 16, "pipeline": str(small)}, "encode")
    with pytest.raises(
        UserError, match=r"^size: the pipeline's SD3\w+: .* of at most 8 a side, the images' are \d+ x \d+"
    ):
        encode_buckets(config, Prompts.load(str(small), torch.device("cpu")))
    assert not (tmp_path / "odd").exists()
    with pytest.raises(UserError, match="buckets: are for text-to-image models"):
        make(EncodeConfig, {"images": "x", "out": str(tmp_path / "o"), "buckets": True}, "encode").check()
