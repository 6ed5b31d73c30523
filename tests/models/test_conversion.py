"""`dit-shd convert`: what it reads, round trips bit for bit, and what it refuses."""

import argparse
import pathlib

import pytest
import torch
from diffusers import DiTTransformer2DModel
from huggingface_hub import constants
from safetensors.torch import load_file
from small_families import FAMILIES, build, diffusers_dit, same, to

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.models import export, loading, provenance
from dit_shd.models.families.dit import DiT


def inputs(channels=1):
    r = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, 8, 8, generator=r), torch.tensor([0, 437, 999]), torch.tensor([0, 2, 3])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", FAMILIES)
def test_file_to_folder_and_back_bit_for_bit(tmp_path, name, suffix):
    model = build(name)
    state = {k: v.clone() for k, v in model.to_public().items()}
    torch.save(state, tmp_path / "public.pt")
    heads = {"heads": 2} if name == "dit" else {}
    lines = to(tmp_path / "public.pt", tmp_path / "folder", **heads).lines
    assert "4 blocks of 2 heads, width 8, 16 tokens of patch 2 (latents 1x8x8), 3 classes" in lines[0]
    again = loading.load(tmp_path / "folder")
    assert torch.equal(again(*inputs()).sample, model(*inputs()).sample)
    to(tmp_path / "folder", tmp_path / f"back{suffix}")
    back = tmp_path / f"back{suffix}"
    assert same(load_file(back) if suffix != ".pt" else torch.load(back, weights_only=True), state)


def test_a_training_checkpoint_of_dit(tmp_path):
    """model, ema, opt and args, as the public script saves them: the average unless the other is asked for."""
    raw, average = build("dit", 1).to_public(), build("dit", 2).to_public()
    args = argparse.Namespace(model="DiT-XL/2", epochs=1400, results_dir="results", ckpt=None)
    torch.save(
        {"model": raw, "ema": average, "opt": {"state": {}, "param_groups": []}, "args": args}, tmp_path / "c.pt"
    )
    for weights, wanted in ((None, average), ("ema", average), ("model", raw)):
        to(tmp_path / "c.pt", tmp_path / str(weights), weights=weights, heads=2)
        assert same(loading.load(tmp_path / str(weights)).to_public(), wanted)


def test_training_checkpoints_of_mdt_are_plain(tmp_path):
    """Weights and averages lie in files of their own (model000010.pt, ema_0.9999_000010.pt)."""
    file = tmp_path / "ema_0.9999_000010.pt"
    torch.save(build("mdt").to_public(), file)
    assert same(loading.load(file).to_public(), build("mdt").to_public())
    with pytest.raises(UserError, match="wanted weights=ema, and it holds one set of weights; leave weights out"):
        to(file, tmp_path / "x", weights="ema")


def test_a_folder_in_diffusers_layout(tmp_path):
    """The result equals diffusers' own blocks once their frequencies and epsilon are the public ones."""
    theirs = diffusers_dit()
    theirs.save_pretrained(tmp_path / "theirs" / "transformer")
    lines = to(tmp_path / "theirs", tmp_path / "ours").lines
    assert any("outputs are the public DiT's and not diffusers'" in line for line in lines)
    ours = loading.load(tmp_path / "ours")
    assert type(ours) is DiT
    x, t, y = inputs()
    assert (ours(x, t, y).sample - theirs(x, t, class_labels=y).sample).abs().max() > 1e-3
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm3.eps = 1e-6
    torch.testing.assert_close(ours(x, t, y).sample, theirs(x, t, class_labels=y).sample, rtol=1e-4, atol=1e-5)


def test_diffusers_models_that_no_dit_equals_are_refused(tmp_path):
    drifted = diffusers_dit()
    with torch.no_grad():
        drifted.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[0, 0] += 1
    for model, message in (
        (drifted, "class_embedders of their own"),
        (diffusers_dit(activation_fn="gelu"), "activation_fn='gelu'; the public DiT has 'gelu-approximate'"),
        (diffusers_dit(attention_bias=False), "attention_bias=False"),
    ):
        model.save_pretrained(tmp_path / "theirs")
        with pytest.raises(UserError, match=message):
            to(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def hub(cache, name, make_files):
    """A snapshot in a local cache of the hub, as a download leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef" * 2 + "01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    make_files(repository / "snapshots" / commit)


def test_a_model_of_the_hub_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub(tmp_path / "hub", "facebook/DiT-XL-2-256", lambda p: diffusers_dit().save_pretrained(p / "transformer"))
    hub(
        tmp_path / "hub",
        "somebody/mdt",
        lambda p: export.write(build("mdt"), p, "---\nlicense: cc-by-nc-sa-4.0\n---\n"),
    )
    assert type(loading.load("hub:facebook/DiT-XL-2-256")) is DiTTransformer2DModel
    assert same(loading.load("hub:somebody/mdt").to_public(), build("mdt").to_public())
    to("hub:facebook/DiT-XL-2-256", tmp_path / "dit")
    head = provenance.front_matter(tmp_path / "dit" / "README.md")
    assert head["license"] == "cc-by-nc-4.0"
    assert head["base_model"] == ["facebook/DiT-XL-2-256"]
    assert provenance.provenance("hub:somebody/mdt").license == "cc-by-nc-sa-4.0"
    with pytest.raises(UserError, match=r"found nothing at 'somebody/mdt' .* is named hub:somebody/mdt"):
        loading.load("somebody/mdt")


def test_a_folder_whose_weights_are_a_pytorch_file(tmp_path):
    """As older folders of the hub have them; diffusers reads them by weights_only."""
    build("dit").save_pretrained(tmp_path / "m", safe_serialization=False)
    assert [p.suffix for p in (tmp_path / "m").iterdir() if "model" in p.name] == [".bin"]
    assert same(loading.load(tmp_path / "m").to_public(), build("dit").to_public())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=3), r"c\.pt: heads: wanted a divisor of the width 8, found 3"),
        ({}, "8 is none of the public widths"),
        (dict(heads=2, weights="model"), "wanted weights=model, and it holds one set of weights"),
        (dict(heads=2, format="public"), r"OUT: wanted a file named \.safetensors, \.pt"),
    ],
)
def test_what_cannot_be_converted_writes_nothing(tmp_path, options, message):
    torch.save(build("dit").to_public(), tmp_path / "c.pt")
    with pytest.raises(UserError, match=message):
        to(tmp_path / "c.pt", tmp_path / "out", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    state = build("dit").to_public()
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt: its weights are not finite .* blocks\.1\.mlp\.fc1\.bias"):
        to(tmp_path / "c.pt", tmp_path / "out", heads=2)


def test_other_models_and_contradictions_are_refused(tmp_path):
    build("mdt").save_pretrained(tmp_path / "mdt")
    with pytest.raises(UserError, match="weights: only of checkpoint files"):
        to(tmp_path / "mdt", tmp_path / "x", weights="ema")
    with pytest.raises(UserError, match=r"heads: its config.json says 2, found heads=4"):
        to(tmp_path / "mdt", tmp_path / "x", heads=4)
    torch.save(build("mdt").to_public(), tmp_path / "mdt.pt")
    with pytest.raises(UserError, match="this MDTv2 has 2 by its tensors; found heads=4"):
        to(tmp_path / "mdt.pt", tmp_path / "x", heads=4)


def test_nothing_is_overwritten_without_force_nor_anything_else_with_it(tmp_path):
    build("mdt").save_pretrained(tmp_path / "mdt")
    out, file, folder = tmp_path / "out", tmp_path / "out.pt", tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    for target in (out, file):
        to(tmp_path / "mdt", target)
        with pytest.raises(UserError, match=r"out(\.pt)?: is there already; choose another OUT, or force=true"):
            to(tmp_path / "mdt", target)
        to(tmp_path / "mdt", target, force=True)
    with pytest.raises(UserError, match=r"holds thesis\.tex, so it is not replaced"):
        to(tmp_path / "mdt", folder, force=True)
    with pytest.raises(UserError, match="is a folder, so it is not replaced"):
        to(tmp_path / "mdt", out.rename(tmp_path / "folder.pt"), force=True)
    with pytest.raises(UserError, match="is a file; choose another OUT, or format=public"):
        to(tmp_path / "mdt", file, force=True, format="diffusers")
    assert (folder / "thesis.tex").read_text() == "x"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("notes")
    (mine / "config.json").write_text('{"mine": 1}')
    with pytest.raises(
        UserError, match=r"mine: holds neither weights nor a config\.json of a model, so it is not repl"
    ):
        to(tmp_path / "mdt", mine, force=True)
    assert (mine / "README.md").read_text() == "notes"


def test_code_is_never_run_and_named(tmp_path):
    """argparse.Namespace alone is let through; another class, or more than its attributes, is not."""
    state = build("dit").to_public()
    torch.save({"ema": state, "args": argparse.Namespace(path=pathlib.Path("x"))}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"refused, because loading it would execute code \(pathlib\.[\w.]+\)"):
        loading.load(tmp_path / "c.pt")


def test_tensors_that_only_seem_large_are_refused(tmp_path):
    """A view of one number fills a whole model; the file is small, the model would not be."""
    torch.save({k: torch.zeros(1).expand(v.shape) for k, v in build("dit").to_public().items()}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="tensors share their memory"):
        to(tmp_path / "c.pt", tmp_path / "out", heads=2)


def test_the_command_line(tmp_path, capsys):
    torch.save(build("mdt").to_public(), tmp_path / "m.pt")
    assert main(["convert", str(tmp_path / "m.pt"), str(tmp_path / "out"), "license=mit"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [str(tmp_path / "m.pt"), "licence", "done", "next", "or"]
    assert main(["convert", str(tmp_path / "m.pt"), "force=true"]) == 2
    assert "wanted FILE and OUT (a checkpoint file" in capsys.readouterr().err


@pytest.mark.parametrize("prediction", ["velocity_sit", "velocity_repa"])
def test_a_file_of_flow_matching_becomes_a_folder_that_says_so(tmp_path, prediction):
    """By its name, args, projectors and untrained variance half it is refused as a model of noise."""
    model = build("dit")
    with torch.no_grad():
        for p in (model.final_layer.linear.weight, model.final_layer.linear.bias):
            p.unflatten(0, (4, 2, 1))[:, 1] = 0
    state = {k: v.clone() for k, v in model.to_public().items()}
    args = argparse.Namespace(model="SiT-XL/2", path_type="Linear", prediction="velocity")
    torch.save({"ema": {**state, "projectors.0.0.weight": torch.ones(2, 8)}, "args": args}, tmp_path / "SiT.pt")
    with pytest.raises(
        UserError, match=r"for flow matching make .*convert FILE OUT prediction=velocity_sit \(REPA: vel"
    ):
        to(tmp_path / "SiT.pt", tmp_path / "no", heads=2)
    done = to(tmp_path / "SiT.pt", tmp_path / "folder", heads=2, prediction=prediction)
    assert not any("cc-by-nc" in line for line in done.lines)
    again = loading.load(tmp_path / "folder")
    assert again.config.prediction == prediction
    assert torch.equal(again(*inputs()).sample, model(*inputs()).sample)
    with pytest.raises(UserError, match=rf"a \.pt file does not say that its model predicts {prediction}"):
        to(tmp_path / "folder", tmp_path / "back.pt")
    to(tmp_path / "folder", tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), state)
    for other in {"noise", "velocity_sit", "velocity_repa"} - {prediction}:
        with pytest.raises(UserError, match=f"its metadata says prediction={prediction}, found prediction={other}"):
            to(tmp_path / "back.safetensors", tmp_path / "no", heads=2, prediction=other)
    to(tmp_path / "back.safetensors", tmp_path / "twice", heads=2)
    assert loading.load(tmp_path / "twice").config.prediction == prediction
    assert same(loading.load(tmp_path / "twice").state_dict(), again.state_dict())


def test_a_file_keeps_the_heads_and_the_names_of_the_classes(tmp_path):
    """A DiT of fewer heads than its width usually has, as students of SHD are, was read with the usual number."""
    sizes = dict(sample_size=4, in_channels=1, num_layers=1, num_attention_heads=3, attention_head_dim=128)
    names = ["one", None, "three"]
    DiT(**sizes, num_classes=3, mlp_ratio=0.25, class_names=names).save_pretrained(tmp_path / "student")
    to(tmp_path / "student", tmp_path / "s.safetensors")
    again = loading.load(tmp_path / "s.safetensors")
    assert (again.config.num_attention_heads, again.blocks[0].attn.heads) == (3, 3)
    assert list(again.config.class_names) == names
    to(tmp_path / "s.safetensors", tmp_path / "back", heads=3)
    configs = [{**loading.load(tmp_path / name).config, "_name_or_path": ""} for name in ("back", "student")]
    assert configs[0] == configs[1]
    with pytest.raises(UserError, match="its metadata says heads=3, found heads=6; leave it out"):
        to(tmp_path / "s.safetensors", tmp_path / "no", heads=6)
    with pytest.raises(UserError, match=r"a \.pt file does not say that its model has 3 heads, where .* 384 has 6;"):
        to(tmp_path / "student", tmp_path / "s.pt")
    assert not (tmp_path / "s.pt").exists()
    for name in FAMILIES:  # MDTv2's tensors say its heads
        model = build(name)
        model.register_to_config(class_names=names)
        model.save_pretrained(tmp_path / name)
        lines = to(tmp_path / name, tmp_path / f"{name}.pt").lines
        assert any("names are not in a .pt file" in line for line in lines)
        assert any("must say heads=2" in line for line in lines) == (name == "dit")


def test_a_folder_says_itself_what_it_predicts(tmp_path):
    build("mdt").save_pretrained(tmp_path / "folder")
    with pytest.raises(UserError, match=r"^prediction: only of checkpoint files, a folder's config\.json says it"):
        to(tmp_path / "folder", tmp_path / "out", prediction="velocity_sit")


def test_a_student_keeps_its_schedule_its_licence_and_its_classes(tmp_path):
    """Also where its weights are named by their file, as the advice about several variants has it."""
    model, student = build("mdt"), tmp_path / "student"
    model.register_to_config(class_names=["one", None, "three"])
    card = "---\nlicense: cc-by-nc-4.0\n---\n# A model\n"
    schedule = {"timesteps": 200}
    export.write(model, student, card, training={"step": 3, "task": schedule})
    for i, source in enumerate((student, student / "diffusion_pytorch_model.safetensors")):
        out = tmp_path / f"out{i}"
        for force in (False, True):  # its own files may be replaced
            lines = to(source, out, force=force).lines
        assert any(line.startswith("licence: cc-by-nc-4.0") for line in lines)
        for place in (source, out):
            assert export.exported_values(str(place)) == export.run_values(str(place)) == {"task": schedule}
        assert provenance.provenance(out).noncommercial
        assert "2 of 3 were trained: 0 one, 2 three" in (out / "README.md").read_text()
        assert list(loading.load(out).config.class_names) == ["one", None, "three"]
        lines = to(source, tmp_path / f"public{i}.safetensors").lines
        assert "what its run says of sampling is not in the file, so say it then: diffusion_steps=200" in lines
        assert f"next: dit-shd sample {tmp_path}/public{i}.safetensors count=16 diffusion_steps=200" in lines


def test_a_licence_is_known_in_any_case(tmp_path):
    export.write(build("mdt"), tmp_path / "model", "# A model\n")
    to(tmp_path / "model", tmp_path / "out", license="CC-BY-NC-ND-4.0")
    found = provenance.provenance(tmp_path / "out")
    assert (found.license, found.forbids_derivatives) == ("cc-by-nc-nd-4.0", True)
