"""Models of open_clip of random weights against the library's own encoders and transforms."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
from evaluating import Trap, photos
from tiny_text_encoders import tokenizer

from dit_shd.core import installation
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.features.open_clip import OpenCLIP
from dit_shd.evaluation.metrics.clip_score import clip_scores

open_clip = pytest.importorskip("open_clip")

PROMPTS = ["a thin seven", "Two digits!", "a_nine", "four and a zero"]
TEXT = {"context_length": 12, "width": 16, "heads": 2, "layers": 2}
MODELS = {
    "clip": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
        "text_cfg": {**TEXT, "vocab_size": 49408},
    },
    "siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
        "text_cfg": {
            **TEXT,
            "vocab_size": len(tokenizer()),
            "hf_tokenizer_name": "somebody/words",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "pool_type": "last",
        },
    },
}
HALVES = (0.5, 0.5, 0.5)
PREPARATIONS = {
    "clip": {},
    "siglip": {"mean": HALVES, "std": HALVES, "interpolation": "bilinear", "resize_mode": "squash"},
}


def write(kind, folder, **preparation):
    """A folder as open_clip writes it for the hub; the model that is in it."""
    from open_clip.push_to_hf_hub import save_for_hf

    torch.manual_seed(0)
    model_config = json.loads(json.dumps(MODELS[kind]))
    model = (open_clip.CustomTextCLIP if model_config.pop("custom_text", False) else open_clip.CLIP)(**model_config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    open_clip.model.set_model_preprocess_cfg(model, {"mean": None, "std": None, **PREPARATIONS[kind]})
    save_for_hf(model, tokenizer(), MODELS[kind], folder, safe_serialization=True)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**PREPARATIONS[kind], **preparation}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model.eval()


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_features_are_those_of_the_library(kind, tmp_path):
    """Its encoders, of pictures by its transform with the very values of preprocess_cfg, and of its tokens."""
    from PIL import Image

    model = write(kind, tmp_path)
    network = OpenCLIP(tmp_path)
    images = photos(3, 40, 56, 3)
    prepare = open_clip.image_transform(MODELS[kind]["vision_cfg"]["image_size"], False, **PREPARATIONS[kind])
    pixels = torch.stack([prepare(Image.fromarray(image)) for image in images.numpy()])
    found = network.extract(images).pooled
    torch.testing.assert_close(found, model.encode_image(pixels), rtol=1e-5, atol=1e-5)
    assert found.std(0).max() > 1e-2

    if kind == "clip":
        tokens = open_clip.tokenize(PROMPTS, 12)
    else:  # SigLIP's: small letters, no punctuation, padded to the whole length
        words = ["a thin seven", "two digits", "a nine", "four and a zero"]
        tokens = tokenizer()(words, padding="max_length", max_length=12, return_tensors="pt").input_ids
    texts, _ = network.embed(PROMPTS)
    torch.testing.assert_close(texts, model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert texts.std(0).max() > 1e-2
    assert network.title.startswith("open_clip-")
    assert network.longer(PROMPTS) == 0
    assert network.longer([*PROMPTS, " ".join(PROMPTS * 3)]) == 1


def test_the_clip_score_follows(tmp_path):
    model = write("siglip", tmp_path / "model")
    images = photos(8, 32, 32, 3)
    np.savez(tmp_path / "samples.npz", images.numpy(), np.arange(8) % 4)
    (tmp_path / "samples.json").write_text(json.dumps({"prompts": PROMPTS}))
    np.savez(tmp_path / "real.npz", images.numpy()[::-1])
    features = {"name": "open_clip", "weights": str(tmp_path / "model")}
    values = {"samples": str(tmp_path / "samples.npz"), "reference": str(tmp_path / "real.npz"), "features": features}
    record = evaluate(make(EvaluateConfig, {**values, "device": "cpu", "page": False}), say=lambda _: None)
    network = OpenCLIP(tmp_path / "model")
    with torch.no_grad():  # squash of 32 x 32 to 32 x 32 changes nothing
        pictures = model.encode_image(images.permute(0, 3, 1, 2) / 127.5 - 1)
    expected = clip_scores(pictures, network.embed([*PROMPTS, *PROMPTS])[0]).mean()
    title = network.title
    assert record["features"]["options"]["preprocess"] == json.loads(json.dumps(PREPARATIONS["siglip"]))
    assert record["figures"][f"CLIP score({title})"] == pytest.approx(float(expected), rel=1e-5)
    assert f"FD({title})" in record["figures"]


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path):
    write("clip", tmp_path)
    expected = OpenCLIP(tmp_path)
    images = photos(2, 24, 24, 3)
    weights, pickled = tmp_path / "open_clip_model.safetensors", tmp_path / "open_clip_pytorch_model.bin"
    state = {
        name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor
        for name, tensor in expected.network.state_dict().items()
    }
    torch.save(state, pickled)
    weights.unlink()
    with pytest.raises(UserError, match=r"found open_clip_pytorch_model\.bin, which could run code") as caught:
        OpenCLIP(tmp_path)
    exec(re.search(r'python -c "(.*)"$', str(caught.value))[1])
    assert weights.is_file()
    torch.testing.assert_close(OpenCLIP(tmp_path).extract(images).pooled, expected.extract(images).pooled)

    pickled.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    OpenCLIP(tmp_path)
    assert not (tmp_path / "mark").exists()


def refused(folder):
    with pytest.raises(UserError) as caught:
        OpenCLIP(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"features\.weights: a value is needed"):
        FEATURES.build(Plugin("open_clip"), "features")
    assert "found nothing at" in refused(tmp_path / "none")
    assert "hf download laion/" in refused(tmp_path / "none")
    config = tmp_path / "open_clip_config.json"
    (tmp_path / "config.json").write_text("{}")
    assert "found a folder without them" in refused(tmp_path)
    config.write_text(json.dumps({"model_cfg": MODELS["clip"]}))
    assert "found a folder without them" in refused(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"none")
    assert "holds no model of open_clip" in refused(tmp_path)
    config.write_text("{}")
    assert "is no config of open_clip" in refused(tmp_path)
    write("siglip", tmp_path / "other", crop_pct=0.9)
    assert "preprocess_cfg.crop_pct is not followed by open_clip; wanted size, mode, mean" in refused(
        tmp_path / "other"
    )
    write("siglip", tmp_path / "strange", resize_mode="stretch")
    assert "holds no model of open_clip" in refused(tmp_path / "strange")
    towers = {**MODELS["clip"], "text_cfg": {"hf_model_name": "somebody/roberta"}}
    config.write_text(json.dumps({"model_cfg": towers}))
    assert "takes a tower's shape from 'somebody/roberta' on the hub" in refused(tmp_path)
    monkeypatch.setattr(installation, "find_spec", lambda name: None if name == "open_clip" else name)
    assert "features open_clip needs the package open_clip; install with: pip install" in refused(tmp_path)
