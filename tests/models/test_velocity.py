"""Files with a DiT's tensors that predict velocity or x_0 are refused by whatever tells them; a DiT is not."""

import argparse

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.models import loading, provenance, velocity
from dit_shd.models.conversion import ConvertConfig, convert
from dit_shd.models.families.dit import DiT

SIZES = dict(sample_size=8, patch_size=4, in_channels=3, num_layers=1, num_attention_heads=6, attention_head_dim=64)


def state(zero_half=False, **changes):
    torch.manual_seed(0)
    model = DiT(**{**SIZES, "num_classes": 3, **changes})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.02)
    found = {k: v.detach().clone() for k, v in model.to_public().items()}
    if zero_half:  # rows of the last layer are (y, x, channel), the variance's are each pixel's last three
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            found[name].view(16, 6, -1)[:, 3:] = 0
    return found


def refused(path, out):
    config = make(ConvertConfig, {"source": str(path), "out": str(out)})
    for act in (lambda: loading.load(path), lambda: convert(config)):
        with pytest.raises(UserError, match="predict velocity") as error:
            act()
        assert "\n" not in str(error.value)
        assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("x.pt", {"args": argparse.Namespace(model="SiT-XL/2", lr=1e-4)}, "model=SiT-XL/2"),
        ("x.pt", {"args": argparse.Namespace(prediction="velocity")}, "prediction=velocity"),
        ("x.pt", {"args": {"prediction": "v"}}, "prediction=v"),
        ("x.pt", {"args": argparse.Namespace(path_type="Linear", prediction="noise")}, "path_type=Linear"),
        ("x.pt", {"hyper_parameters": {"diffusion": {"predict_xstart": True}}}, "predict_xstart=True"),
        ("x.pt", {"config": {"model": {"_target_": "models.sit.SiT_B_2"}}}, "_target_=models.sit"),
        ("x.pt", {"config": {"prediction_type": "v_prediction"}}, "prediction_type=v_prediction"),
        ("x.pt", {"config": {"model_mean_type": "ModelMeanType.START_X"}}, "START_X"),
        ("SiT-XL-2-256x256.pt", {}, "'SiT'"),
        ("lightningdit-xl.ckpt", {}, "'lightningdit'"),
        ("my_flow_matching.pth", {}, "'flow_matching'"),
    ],
)
def test_what_is_said_of_the_training_and_the_name_tell(tmp_path, name, changes, said):
    torch.save({"ema": state(), "model": state(), **changes}, tmp_path / name)
    assert said in refused(tmp_path / name, tmp_path / "out")


WRAPS = [lambda s: s, lambda s: {"ema": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_variance_that_was_never_trained_tells(tmp_path, wrap):
    torch.save(wrap(state(zero_half=True)), tmp_path / "x.pt")
    assert "variance half" in refused(tmp_path / "x.pt", tmp_path / "out")


def test_the_sizes_give_no_licence_to_such_a_file(tmp_path, monkeypatch):
    """Sizes made a public DiT's: with a trained variance the licence follows from them, without one nothing does."""
    guessed = provenance.PUBLIC["DiT-XL-2-256x256"]
    monkeypatch.setitem(DiT.SIZES, "XL/2", {key: SIZES[key] for key in ("num_layers", "num_attention_heads")})
    monkeypatch.setitem(provenance.PUBLIC, "DiT-XL-2-64x64", guessed)
    for name, half in (("trained", False), ("untrained", True)):
        torch.save(state(zero_half=half, num_classes=1000), tmp_path / f"{name}.pt")
    found = convert(make(ConvertConfig, {"source": str(tmp_path / "trained.pt"), "out": str(tmp_path / "trained")}))
    assert any(f"licence: {guessed.license}, taken for the public DiT-XL-2-64x64" in line for line in found.lines)
    said = refused(tmp_path / "untrained.pt", tmp_path / "out").replace(str(tmp_path), "")
    assert "variance half" in said and guessed.license not in said and "licence" not in said


def test_projectors_tell(tmp_path):
    repa = {**state(), "projectors.0.0.weight": torch.zeros(3, 384)}
    for saved in (repa, {"ema": repa}, {"ema": state(), "model": repa}, {f"module.{k}": v for k, v in repa.items()}):
        torch.save(saved, tmp_path / "x.pt")
        assert "REPA's projectors" in refused(tmp_path / "x.pt", tmp_path / "out")


def test_a_safetensors_file_by_its_metadata_and_weights(tmp_path):
    save_file(state(), tmp_path / "a.safetensors", {"model": "SiT-B/2"})
    assert "model=SiT-B/2" in refused(tmp_path / "a.safetensors", tmp_path / "out")
    save_file({**state(), "projectors.0.0.weight": torch.zeros(3, 384)}, tmp_path / "p.safetensors")
    assert "REPA's projectors" in refused(tmp_path / "p.safetensors", tmp_path / "out")
    save_file(state(zero_half=True), tmp_path / "b.safetensors")
    assert "variance half" in refused(tmp_path / "b.safetensors", tmp_path / "out")


def test_folders_of_both_layouts_by_their_weights(tmp_path):
    ours = DiT(**SIZES, num_classes=3)
    ours.load_state_dict(state(zero_half=True))
    ours.save_pretrained(tmp_path / "ours")
    theirs = DiTTransformer2DModel(
        **{**SIZES, "out_channels": 6, "num_embeds_ada_norm": 3, "num_attention_heads": 1, "attention_head_dim": 8}
    )
    with torch.no_grad():
        theirs.proj_out_2.weight.view(16, 6, -1)[:, 3:] = 0
        theirs.proj_out_2.bias.view(16, 6)[:, 3:] = 0
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("ours", "theirs"):
        assert "variance half" in refused(tmp_path / name, tmp_path / "out")


def test_a_dit_is_taken(tmp_path):
    """With the args of its trainer, without a variance, and untrained (zero all over)."""
    args = argparse.Namespace(model="DiT-XL/2", results_dir="flow/results", epochs=1, vae="ema", objective="epsilon")
    for name, tensors in (("website.pt", state()), ("fixed.pt", state(learn_sigma=False))):
        torch.save({"ema": tensors, "args": args}, tmp_path / name)
        loaded = loading.load(tmp_path / name)
        assert torch.equal(loaded.final_layer.linear.weight, tensors["final_layer.linear.weight"])
    zero = {k: torch.zeros_like(v) if k.startswith("final_layer.linear") else v for k, v in state().items()}
    torch.save(zero, tmp_path / "fresh.pt")
    loading.load(tmp_path / "fresh.pt")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SiT-XL-2-256x256", True), ("sit_b", True), ("REPA-e", True), ("dit-rf", True), ("edm2-img512", True),
        ("DiT-XL-2-256x256", False), ("mdt_xl2_v2_ckpt", False), ("transit", False), ("best_fid=3", False),
        ("overflow", False), ("TinyDiT-D14", False), ("ema_0.9999_000010", False), ("benefit", False),
    ],
)  # fmt: skip
def test_names(name, told):
    assert bool(velocity.NAMES.search(name)) == told
