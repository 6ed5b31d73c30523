"""CLIP of random weights against transformers' own forward, and the CLIP score of it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import photos
from PIL import Image
from tiny_text_encoders import tiny_clip
from transformers import CLIPImageProcessor

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256
from dit_shd.core.plugins import Plugin
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.features.clip import CLIP, cut
from dit_shd.evaluation.metrics.clip_score import clip_scores
from dit_shd.evaluation.network_weights import weights_folder

PROMPTS = ["a thin seven", "two digits", "a nine", "four and a zero"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_score_is_the_cosine_of_transformers_own_forward(folder):
    from transformers import AutoTokenizer, CLIPModel

    network = CLIP(folder)
    images = photos(4, 24, 24, 3)
    found = clip_scores(network.extract(images).pooled, network.embed(PROMPTS)[0])
    model = CLIPModel.from_pretrained(folder).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        whole = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    cosines = (whole.logits_per_image / model.logit_scale.exp()).diagonal()
    torch.testing.assert_close(found, 100 * cosines.clamp(min=0).double(), rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1


def test_prompts_that_are_cut_are_told(folder, caplog):
    assert CLIP(folder).embed([*PROMPTS, "a thin seven with a zero " * 9])[1] == 1
    assert re.search(r"prompts: 1 of 5 are longer than clip-\w+ reads, and are scored by their beginning", caplog.text)


def test_weights_that_are_stored_in_half_precision_compute_in_float32(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    half = tmp_path / "half"
    shutil.copytree(folder, half)
    stored = {name: tensor.half() for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(stored, half / "model.safetensors", {"format": "pt"})
    (half / "config.json").write_text(
        json.dumps({**json.loads((half / "config.json").read_text()), "dtype": "float16"})
    )
    network = CLIP(half)
    assert {parameter.dtype for parameter in network.network.parameters()} == {torch.float32}
    images = photos(4, 24, 24, 3)
    expected = CLIP(folder)
    expected.network.load_state_dict(network.network.state_dict())
    torch.testing.assert_close(network.extract(images).pooled, expected.extract(images).pooled, rtol=0, atol=0)
    torch.testing.assert_close(network.embed(PROMPTS), expected.embed(PROMPTS), rtol=0, atol=0)


def test_pictures_are_cut_in_the_middle(folder):
    network = CLIP(folder)
    wide = photos(2, 24, 40, 3)
    torch.testing.assert_close(network.extract(wide).pooled, network.extract(wide[:, :, 8:32]).pooled)


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (24, 40), (7, 1000), (224, 224)])
def test_pictures_are_prepared_as_by_transformers(folder, size):
    """Before the mean and deviation; one level of 255 is the rounding of Pillow's weights."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    stripes = (127 + 80 * torch.sin(x / 3.1) + 40 * torch.cos(y / 4.7)).to(torch.uint8)[..., None].expand(-1, -1, 3)
    processor = CLIPImageProcessor(do_normalize=False, do_rescale=False)
    expected = processor(Image.fromarray(stripes.numpy()), return_tensors="pt").pixel_values[0].float()
    found = cut(stripes[None], 224)[0]
    assert (found - expected).abs().max() <= 1


def prepared(folder, out, **changes):
    """The same model with a preprocessor_config.json, as transformers writes it."""
    shutil.copytree(folder, out)
    side = json.loads((folder / "config.json").read_text())["vision_config"]["image_size"]
    given = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, **changes}
    CLIPImageProcessor(**given).save_pretrained(out)
    return out


@pytest.mark.parametrize("mean", [None, [0.5, 0.4, 0.3]])
def test_pictures_are_normalised_as_their_folder_says(mean, folder, tmp_path):
    """Of one set of weights with another mean the score was that of OpenAI's."""
    given = prepared(
        folder, tmp_path / "clip", **({} if mean is None else {"image_mean": mean, "image_std": [0.5] * 3})
    )
    network, images = CLIP(given), photos(4, 24, 24, 3)  # no resizing: that has a test of its own
    pixels = CLIPImageProcessor.from_pretrained(given)(list(images.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        hidden = network._clip.vision_model(pixel_values=pixels).pooler_output
        expected = network._clip.visual_projection(hidden)
    torch.testing.assert_close(network.extract(images).pooled.float(), expected, rtol=1e-4, atol=1e-4)
    assert (network.identity == CLIP(folder).identity) is (mean is None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 2}, "resample: 2 is not followed by features clip, wanted 3"),
        ({"do_center_crop": False}, "do_center_crop: False is not followed"),
        ({"size": {"height": 24, "width": 24}}, "size: .*'height': 24.* is not followed .* wanted .'shortest_edge': "),
        ({"image_std": [0.5, 0.0, 0.5]}, "wanted 3 means and 3 positive deviations"),
    ],
)
def test_another_preparation_is_refused(changes, message, folder, tmp_path):
    given = prepared(folder, tmp_path / "clip")
    file = given / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        CLIP(given)
    file.write_text("[]")
    with pytest.raises(UserError, match="is no preparation of pictures"):
        CLIP(given)


def test_evaluate_scores_samples_with_their_prompts(folder, tmp_path):
    images = photos(8, 24, 24, 3).numpy()
    np.savez(tmp_path / "samples.npz", images, np.arange(8) % 4)
    (tmp_path / "samples.json").write_text(json.dumps({"prompts": PROMPTS}))
    np.savez(tmp_path / "real.npz", 255 - images)
    values = {"samples": str(tmp_path / "samples.npz"), "reference": str(tmp_path / "real.npz"), "resamples": 10}
    features = {"name": "clip", "weights": str(folder)}
    config = make(EvaluateConfig, {**values, "features": features, "device": "cpu", "page": False})
    record = evaluate(config, say=lambda _: None)
    network = CLIP(folder)
    expected = clip_scores(network.extract(torch.from_numpy(images)).pooled, network.embed([*PROMPTS, *PROMPTS])[0])
    (name,) = [name for name in record["figures"] if name.startswith("CLIP score")]
    assert record["figures"][name] == pytest.approx(float(expected.mean()), rel=1e-6)
    (distance,) = [name for name in record["figures"] if name.startswith("CMMD")]
    pooled = (network.extract(torch.from_numpy(pictures)).pooled.double() for pictures in (images, 255 - images))
    x, y = (torch.nn.functional.normalize(rows, dim=1) for rows in pooled)
    kernels = [torch.exp(-(torch.cdist(a, b) ** 2) / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert record["figures"][distance] == pytest.approx(1000 * float(kernels[0] + kernels[1] - 2 * kernels[2]))
    assert any(note.startswith(f"{distance}: ") and "8 and 8 images" in note for note in record["notes"])
    interval = record["intervals"][name]
    assert interval["low"] < record["figures"][name] < interval["high"]
    assert any(note.startswith(f"{name}: 95% interval") for note in record["notes"])
    (tmp_path / "samples.json").unlink()
    only = {**values, "features": features, "device": "cpu", "metrics": ["clip_score"], "force": True}
    with pytest.raises(UserError, match=r"wanted the prompts of its images, one for each of the 8 .* in samples\.json"):
        evaluate(make(EvaluateConfig, only), say=lambda _: None)


@pytest.fixture
def scored(folder, tmp_path):
    """CLIP scores of pictures 0 to 7, evaluated with settings beside each of some files."""
    images = photos(8, 24, 24, 3).numpy()
    np.savez(tmp_path / "real.npz", images[::-1])
    network = {"name": "clip", "weights": str(folder)}
    values = {"reference": str(tmp_path / "real.npz"), "features": network, "device": "cpu", "page": False}

    def scored(*samples: Path, **more) -> dict:
        given = [str(path) for path in samples] if len(samples) > 1 else str(samples[0])
        metrics = {"metrics": ["clip_score"], **more}
        return evaluate(make(EvaluateConfig, {**values, "samples": given, **metrics}), say=lambda _: None)

    scored.images, scored.folder = images, tmp_path
    texts, _ = CLIP(folder).embed([*PROMPTS, *PROMPTS])
    scored.expected = float(clip_scores(CLIP(folder).extract(torch.from_numpy(images)).pooled, texts).mean())
    return scored


def value(record: dict) -> float:
    return next(value for name, value in record["figures"].items() if name.startswith("CLIP score"))


def test_pictures_from_elsewhere_have_their_prompts_in_order(scored):
    """In an npz with classes or with nothing, and in a folder, by the order of the names."""
    prompts = {"prompts": [*PROMPTS, *PROMPTS]}
    for name, labels in (("plain", []), ("classes", [np.arange(8) // 4])):
        np.savez(scored.folder / f"{name}.npz", scored.images, *labels)
        (scored.folder / f"{name}.json").write_text(json.dumps(prompts))
        assert value(scored(scored.folder / f"{name}.npz", force=True)) == pytest.approx(scored.expected, rel=1e-6)
    (scored.folder / "pictures").mkdir()
    for i, image in enumerate(scored.images):
        Image.fromarray(image).save(scored.folder / "pictures" / f"p{i}.png")
    (scored.folder / "pictures.json").write_text(json.dumps(prompts))
    by_name = {"prompts": {f"p{i}.png": (PROMPTS * 2)[i] for i in (3, 7, 0, 1, 2, 6, 5, 4)}}
    for settings in (prompts, by_name):
        (scored.folder / "pictures.json").write_text(json.dumps(settings))
        assert value(scored(scored.folder / "pictures", force=True)) == pytest.approx(scored.expected, rel=1e-6)
    (scored.folder / "pictures" / "p7.png").rename(scored.folder / "pictures" / "p10.png")
    (scored.folder / "pictures.json").write_text(json.dumps(prompts))
    with pytest.raises(UserError, match=r'by its name, in pictures\.json: \{"prompts": \{"p0\.png": "a cat"'):
        scored(scored.folder / "pictures", force=True)  # p10 stands after p1 there, and as the eighth in a list
    np.savez(scored.folder / "below.npz", scored.images, np.arange(8) - 1)
    (scored.folder / "below.json").write_text(json.dumps({"prompts": PROMPTS}))
    np.savez(scored.folder / "none.npz", scored.images)
    (scored.folder / "none.json").write_text(json.dumps({"prompts": [*PROMPTS, *PROMPTS[1:], None]}))
    for name in ("below", "none"):
        with pytest.raises(UserError, match=rf"{name}\.npz: wanted the prompts of its images"):
            scored(scored.folder / f"{name}.npz")


def test_files_whose_prompts_were_corrected_are_not_reused(scored):
    files = [scored.folder / f"p_{i}.npz" for i in range(2)]
    for file, images in zip(files, (scored.images, scored.images[::-1])):
        np.savez(file, images)
        file.with_suffix(".json").write_text(json.dumps({"prompts": [*PROMPTS, *PROMPTS]}))
    before = value(scored(*files))
    assert value(scored(*files)) == before
    files[0].with_suffix(".json").write_text(json.dumps({"prompts": [*PROMPTS[::-1], *PROMPTS]}))
    with pytest.raises(UserError, match="holds another result"):
        scored(*files)
    assert value(scored(*files, force=True)) != pytest.approx(before, rel=1e-3)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"features\.weights: a value is needed"):
        FEATURES.build(Plugin("clip"), "features")
    with pytest.raises(UserError, match=r"found nothing at .*hf download openai/clip-vit-large-patch14"):
        CLIP(tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="found a folder without them"):
        CLIP(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="holds no CLIP"):
        CLIP(tmp_path)


def test_all_weights_are_hashed(folder, tmp_path):
    """Of shards each; of a file that holds all of them that one, whatever is beside it."""
    file = tmp_path / "model-00001-of-00002.safetensors"
    second = tmp_path / "model-00002-of-00002.safetensors"
    (tmp_path / "config.json").write_text("{}")
    file.write_bytes(b"one")
    second.write_bytes(b"two")
    before = weights_folder(tmp_path, "config.json", "*.safetensors", "")[1]
    second.write_bytes(b"other")
    assert weights_folder(tmp_path, "config.json", "*.safetensors", "")[1] != before
    second.unlink()
    assert weights_folder(tmp_path, "config.json", "*.safetensors", "")[1] == sha256(file)
    (tmp_path / "model.safetensors").write_bytes(b"whole")
    (tmp_path / "adapter.safetensors").write_bytes(b"of something else")
    assert weights_folder(tmp_path, "config.json", "*.safetensors", "")[1] == sha256(tmp_path / "model.safetensors")
