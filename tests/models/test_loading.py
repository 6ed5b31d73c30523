"""Checkpoint files and model folders as others write them: read as what they hold, or refused in words."""

import argparse
import zipfile

import diffusers
import numpy as np
import pytest
import torch
from runs import run
from safetensors.torch import save_file
from small_families import build, diffusers_dit, same, to

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import NPZ, PICKLE, SAFETENSORS, TORCH, file_kind
from dit_shd.diffusion import sampler
from dit_shd.models import loading

TABLE = "y_embedder.embedding_table.weight"


@pytest.fixture(scope="module")
def state():
    return {k: v.clone() for k, v in build("mdt").to_public().items()}


def other(state):
    """Weights that are not those that are meant."""
    return {k: v + 1 if v.is_floating_point() else v.clone() for k, v in state.items()}


WRAPPED = {
    "compiled inside": lambda s: {k.replace(".attn.", "._orig_mod.attn."): v for k, v in s.items()},
    "both at any depth": lambda s: {f"module._orig_mod.{k}".replace("mlp.", "module.mlp."): v for k, v in s.items()},
    "AveragedModel": lambda s: {**{f"module.{k}": v for k, v in s.items()}, "n_averaged": torch.tensor(100)},
    "an average of another name": lambda s: {"model": other(s), "model_ema": s},
    "Lightning's average beside": lambda s: {"state_dict": other(s), "state_dict_ema": s, "ema_config": {"decay": 0.9}},
    "an empty average": lambda s: {"ema": {}, "model": s},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 1},
    "Lightning and more": lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()} | {"vae.x": torch.ones(2)}},
    "Lightning's average": lambda s: {
        "state_dict": {**{f"model.{k}": v for k, v in other(s).items()}, **{f"ema_model.{k}": v for k, v in s.items()}}
    },
}  # fmt: skip


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_are_found_whatever_is_around_them(tmp_path, state, how):
    torch.save(WRAPPED[how](state), tmp_path / "x.pt")
    assert same(loading.load(tmp_path / "x.pt").to_public(), state)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_model_is_put_on_the_device_that_is_named(tmp_path, state, precision):
    torch.save(state, tmp_path / "x.pt")
    model = loading.load(tmp_path / "x.pt", precision, device="meta")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    with pytest.raises(UserError, match=r"^device: wanted auto or a device of this machine, found 'nowhere'"):
        loading.load(tmp_path / "no such file", precision, device="nowhere")


def test_which_weights_of_lightning_may_be_said(tmp_path, state):
    torch.save(WRAPPED["Lightning's average"](state), tmp_path / "x.ckpt")
    for weights, wanted in (("ema", state), ("model", other(state))):
        to(tmp_path / "x.ckpt", tmp_path / weights, weights=weights)
        assert same(loading.load(tmp_path / weights).to_public(), wanted)
    torch.save({"model": other(state), "model_ema": state}, tmp_path / "y.pt")
    for weights, wanted in (("ema", state), ("model", other(state))):
        to(tmp_path / "y.pt", tmp_path / f"y_{weights}", weights=weights)
        assert same(loading.load(tmp_path / f"y_{weights}").to_public(), wanted)
    torch.save({"model": state, "ema_1": state, "ema_2": state}, tmp_path / "averages.pt")
    with pytest.raises(UserError, match="wanted one average of the weights, or weights=model, found ema_1, ema_2"):
        loading.load(tmp_path / "averages.pt")
    two = {f"{name}.{k}": v for name in ("student", "teacher") for k, v in state.items()}
    torch.save({"state_dict": two}, tmp_path / "two.ckpt")
    with pytest.raises(UserError, match="found the models student, teacher"):
        loading.load(tmp_path / "two.ckpt")


def test_two_tensors_of_one_name_are_refused(tmp_path, state):
    torch.save({**state, "module.x_embedder.proj.bias": state["x_embedder.proj.bias"]}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"two of its tensors are x_embedder\.proj\.bias"):
        loading.load(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["x.safetensors", "x.SAFETENSORS", "x.sft", "x.pt", "x"])
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path, state, name):
    file = tmp_path / name
    save_file({k: v.clone() for k, v in state.items()}, file)
    assert same(loading.load(file).to_public(), state)
    torch.save(state, file)
    assert same(loading.load(file).to_public(), state)


def test_a_class_embedding_without_a_row_for_no_class(tmp_path, caplog):
    """Where the file says how many classes there are it is refused; where the number is a usual one, it is said."""
    state = {k: v.clone() for k, v in build("dit").to_public().items()}
    args = argparse.Namespace(num_classes=len(state[TABLE]))
    torch.save({"ema": state, "args": args}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="its class embedding has 4 rows for 4 classes, and none for `no class`"):
        to(tmp_path / "x.pt", tmp_path / "out", heads=2)
    torch.save({"ema": state, "args": argparse.Namespace(num_classes=3)}, tmp_path / "x.pt")
    to(tmp_path / "x.pt", tmp_path / "out", heads=2)
    assert not caplog.records
    state[TABLE] = torch.randn(10, 8)
    torch.save(state, tmp_path / "ten.pt")
    to(tmp_path / "ten.pt", tmp_path / "ten", heads=2)
    assert "its class embedding has 10 rows, read as 9 classes and one row for no class" in caplog.text


def zipped(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "x")


def npz(file):
    with file.open("wb") as stream:
        np.savez(stream, np.ones(2))


def npy(file):
    with file.open("wb") as stream:
        np.save(stream, np.ones(2))


def cut(file):
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:-300])


def tensors(file):
    save_file({"a": torch.ones(2)}, file)


KINDS = {
    "text": (lambda f: f.write_text("run: x\nsteps: 3\n"), "text ('run: x steps: 3' ...)"),
    "page": (lambda f: f.write_text("<!DOCTYPE html><html>404</html>"), "a web page (a download that went wrong?)"),
    "pointer": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a Git LFS pointer (git lfs pull",
    ),
    "nothing": (lambda f: f.write_bytes(b""), "an empty file"),
    "noise": (lambda f: f.write_bytes(b"\xfe\xff\x00" * 400), "data of no kind that is known here"),
    "picture": (lambda f: f.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)), "a PNG image"),
    "zip": (zipped, "a zip file of other things (readme.txt)"),
    "npz": (npz, NPZ),
    "npy": (npy, "an npy file"),
    "cut": (cut, "a damaged zip file (cut short?)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, name):
    make, wanted = KINDS[name]
    make(tmp_path / "x.pt")
    assert file_kind(tmp_path / "x.pt").startswith(wanted)
    with pytest.raises(UserError) as error:
        loading.load(tmp_path / "x.pt")
    assert f"wanted a checkpoint: safetensors, or a file of torch.save (.pt, .pth, .ckpt), found {wanted}" in str(
        error.value
    )
    assert "execute" not in str(error.value)


def test_kinds_that_are_read(tmp_path):
    for make, wanted in (
        (lambda f: torch.save({}, f), TORCH),
        (tensors, SAFETENSORS),
        (lambda f: torch.save({}, f, _use_new_zipfile_serialization=False), PICKLE),
    ):
        make(tmp_path / "x")
        assert file_kind(tmp_path / "x") == wanted


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"shadow_params": [torch.ones(2)], "decay": 0.9}, r"found shadow_params \(list\), decay \(float\)"),
        ([torch.ones(2)], "found a list"),
        ({1: torch.ones(2)}, "found tensors without names"),
    ],
)
def test_what_a_file_holds_in_place_of_weights_is_said(tmp_path, held, told):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"wanted a state dict \(names to tensors\), {told}"):
        loading.load(tmp_path / "x.pt")


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("model", [build("mdt"), diffusers_dit()], ids=["ours", "diffusers"])
def test_a_folder_with_a_variant_only(tmp_path, caplog, model, safe):
    caplog.set_level("INFO")
    model.save_pretrained(tmp_path / "m", variant="fp16", safe_serialization=safe)
    assert same(loading.load(tmp_path / "m").state_dict(), model.state_dict())
    assert "its only weights are of variant fp16" in caplog.text
    assert ("read from a PyTorch file (.bin), without running code" in caplog.text) != safe


def test_of_several_variants_the_plain_one_is_read_or_one_must_be_named(tmp_path):
    for seed, variant in ((0, None), (1, "fp16"), (2, "ema")):
        build("mdt", seed).save_pretrained(tmp_path / "m", variant=variant, max_shard_size="5KB")
    assert same(loading.load(tmp_path / "m").to_public(), build("mdt").to_public())
    for file in (tmp_path / "m").glob("diffusion_pytorch_model*"):
        if "fp16" not in file.name and "ema" not in file.name:
            file.unlink()
    with pytest.raises(UserError, match=r"several variants \(ema, fp16\); name the file: .*/m/diffusion_pytorch_model"):
        loading.load(tmp_path / "m")
    (file,) = sorted((tmp_path / "m").glob("*ema*-00001-of-*")) or sorted((tmp_path / "m").glob("*00001-of*ema*"))
    assert same(loading.load(file).to_public(), build("mdt", 2).to_public())
    assert same(
        loading.load((tmp_path / "m").rename(tmp_path / "n") / file.name).to_public(), build("mdt", 2).to_public()
    )


def test_weights_of_another_name_are_said(tmp_path):
    build("mdt").save_pretrained(tmp_path / "m")
    next((tmp_path / "m").glob("*.safetensors")).rename(tmp_path / "m" / "model.safetensors")
    with pytest.raises(UserError, match=r"wanted diffusion_pytorch_model\.safetensors .*, found model\.safetensors"):
        loading.load(tmp_path / "m")


def test_a_transformer_under_the_name_that_the_hub_has_it(tmp_path):
    """facebook/DiT-XL-2-256 names the class Transformer2DModel, of which diffusers has since made others."""
    diffusers_dit().save_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    assert same(loading.load_conditional(tmp_path / "m").state_dict(), diffusers_dit().state_dict())


TEXT = dict(num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=1, sample_size=8, patch_size=4)
OTHERS = {
    "PixArtTransformer2DModel": {**TEXT, "cross_attention_dim": 16, "caption_channels": 8, "out_channels": 2},
    "SD3Transformer2DModel": {**TEXT, "joint_attention_dim": 16, "caption_projection_dim": 16,
                             "pooled_projection_dim": 16},
    "FluxTransformer2DModel": dict(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
    ),
    "UNet2DModel": dict(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=11,
    ),
    "AutoencoderKL": dict(block_out_channels=(8,), norm_num_groups=8),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_name_and_nothing_is_written(tmp_path, capsys, monkeypatch, values, name):
    monkeypatch.chdir(tmp_path)
    getattr(diffusers, name)(**OTHERS[name]).save_pretrained("pipe/transformer")
    (tmp_path / "c.yaml").write_text(
        f"data: {{name: npz, path: {values['data']['path']}}}\nlosses: [{{name: output}}]\n"
    )
    before = sorted(tmp_path.rglob("*"))
    commands = ["sample pipe count=2 steps=2 out=s.npz", "train c.yaml run=r teacher=pipe", "convert pipe out"]
    commands += ["train c.yaml run=r teacher=pipe dry_run=true"]
    commands += ["inspect pipe"] if name in ("UNet2DModel", "AutoencoderKL") else []
    for command in commands:
        assert main(command.split()) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"pipe: holds {name}" in line
        assert "DiTTransformer2DModel" in line or "wanted a transformer" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pipeline_without_a_transformer(tmp_path):
    diffusers.UNet2DModel(**OTHERS["UNet2DModel"]).save_pretrained(tmp_path / "pipe" / "unet")
    with pytest.raises(UserError, match=r"a pipeline with a transformer, found one with unet in it"):
        loading.load(tmp_path / "pipe")


def test_sample_takes_the_name_of_a_model(tmp_path):
    build("mdt").save_pretrained(tmp_path / "run" / "student")
    (tmp_path / "run" / "config.yaml").write_text("diffusion_steps: 100\n")
    options = dict(steps=2, guidance=1.0, diffusion_steps=100)
    wanted, labels = sampler.sample(build("mdt"), 3, **options)
    for name in (tmp_path / "run", str(tmp_path / "run")):
        found, theirs = sampler.sample(name, 3, steps=2, guidance=1.0)
        assert (found == wanted).all() and (theirs == labels).all()
    with pytest.raises(UserError, match="model: wanted a model or the name of one, found int"):
        sampler.sample(3, 3)
    with pytest.raises(UserError, match="model: holds UNet2DModel, whose forward takes sample"):
        sampler.sample(diffusers.UNet2DModel(**OTHERS["UNet2DModel"]), 3)
    with pytest.raises(UserError, match="found nothing at 'nowhere'"):
        sampler.sample("nowhere", 3)


def test_a_checkpoint_of_lightningdit_is_refused_by_name():
    state = {"blocks.0.mlp.w12.weight": torch.zeros(4, 2), "x_embedder.proj.weight": torch.zeros(2, 2, 1, 1)}
    with pytest.raises(UserError, match="of LightningDiT"):
        loading.of_public(state)


def test_statistics_are_to_be_finite_and_masks_need_not_be():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Identity())
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    model[1].register_buffer("table", torch.full((2,), torch.nan), persistent=False)
    loading.check_finite("x", model)
    for bad in (torch.nan, torch.inf):
        model[0].running_var[1] = bad
        with pytest.raises(UserError, match=r"x: its weights are not finite .*, first in 0.running_var"):
            loading.check_finite("x", model)


def test_a_checkpoint_of_a_run_is_no_file_of_a_public_code(values):
    """It was one, of the public width's number of heads, and of whatever else the run's config says otherwise."""
    config, _ = run(values, steps=1)
    file = next((config.run / "checkpoints").glob("step_*/ema_*.safetensors"))
    with pytest.raises(UserError, match=r"a checkpoint of \S+/run is what that run goes on from.* \S+/run/student"):
        loading.load(file)
    assert main(["convert", str(file), str(config.run.parent / "converted")]) == 2
