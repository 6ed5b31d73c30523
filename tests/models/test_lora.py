"""Low-rank adapters: trained, resumed, merged into the student that is exported."""

import pytest
import small_families
import torch
from language import GPT2, causal_lm
from runs import run, weights
from safetensors.torch import load_file
from tiny_pipelines import sd3

from dit_shd import capture
from dit_shd.cli.run_header import run_header
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.lora import Lora, add_lora, check_lora, idle_maps, linear_maps, merge_lora, remark
from dit_shd.profiling import meta
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.trainer import Trainer

LORA = {
    "initialisation": {"weights": "teacher", "calibration": 0},
    "lora": {"rank": 2, "alpha": 4},
    "losses": [{"name": "output"}],
}


def test_they_are_trained_resumed_and_merged(values, tmp_path):
    config, whole = run(values, **LORA, steps=3, checkpoint_every=2, ema=0.5)
    folder = tmp_path / "two"
    _, first = run(values, **LORA, steps=2, ema=0.5, run=str(folder))
    begun = load_file(folder / "checkpoints" / "step_00000002" / "distiller.safetensors")
    _, last = run(values, **LORA, steps=3, ema=0.5, run=str(folder))
    assert [m["loss"] for m in whole] == [m["loss"] for m in (*first, *last)]
    state = load_file(folder / "checkpoints" / "step_00000003" / "distiller.safetensors")
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, begun[name])}
    assert moved
    assert not [name for name in moved if name.startswith("student.") and ".lora_" not in name]
    average = load_file(folder / "checkpoints" / "step_00000003" / "ema_0.5.safetensors")
    base = next(name.removesuffix(".base_layer.weight") for name in average if name.endswith(".base_layer.weight"))
    a, b = (average[f"{base}.lora_{side}.default.weight"] for side in "AB")
    assert b.abs().max() > 0
    expected = average[f"{base}.base_layer.weight"] + 4 / 2 * b @ a
    torch.testing.assert_close(weights(config.run)[f"{base}.weight"], expected)
    student = loading.load(config.run)
    assert not [name for name, _ in student.named_modules() if "lora" in name]


def test_a_merged_model_is_of_its_class_and_gives_the_same():
    torch.manual_seed(0)
    model = sd3().transformer.eval()
    inputs = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([300.0, 700.0])}
    inputs |= {"encoder_hidden_states": torch.randn(2, 5, 32), "pooled_projections": torch.randn(2, 24)}
    names, before = list(model.state_dict()), model(**inputs).sample
    add_lora(model, Lora(rank=2, targets=["to_q", "to_out.0"]))
    torch.testing.assert_close(model(**inputs).sample, before)
    spec = meta.ModelSpec.of(model).skeleton()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [name for name, p in spec.named_parameters() if p.requires_grad]
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    with_adapters = model(**inputs).sample
    assert (with_adapters - before).abs().max() > 1e-3
    merge_lora(model)
    torch.testing.assert_close(model(**inputs).sample, with_adapters, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())


def test_every_linear_map_of_the_blocks(teacher):
    model = loading.load(teacher)
    add_lora(model, Lora(rank=1))
    adapted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert adapted == set(linear_maps(loading.load(teacher)))


def test_targets_are_ends_of_names_of_linear_maps_in_blocks():
    """`proj` fits the patches' embedding, and `1` the adaLN's activation, where peft ended in a traceback."""
    for target, maps in (("proj", "attn.proj"), ("1", "adaLN_modulation.1"), ("blocks.2.attn.qkv", "attn.qkv")):
        model = small_families.build("dit")
        before = linear_maps(model)
        add_lora(model, Lora(rank=1, targets=[target]))
        adapted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
        wanted = [target] if target in before else [name for name in before if name.endswith(maps)]
        assert sorted(adapted) == sorted(wanted) != []


def test_gpt2s_maps_are_linear_maps(recwarn):
    model, tokens = causal_lm(GPT2), torch.tensor([[1, 2, 3, 4]])
    check_lora(model, Lora(rank=2))
    before = model(input_ids=tokens).logits
    add_lora(model, Lora(rank=2))
    assert not recwarn.list
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 4  # maps A and B, blocks, c_attn, c_proj, c_fc and c_proj
    spec = meta.ModelSpec.of(model).skeleton()
    assert trained == [name for name, p in spec.named_parameters() if p.requires_grad]
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    adapted = model(input_ids=tokens).logits
    assert (adapted - before).abs().max() > 1e-3
    merge_lora(model)
    torch.testing.assert_close(model(input_ids=tokens).logits, adapted, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == causal_lm(GPT2).state_dict().keys()


def test_random_weights_are_not_frozen(values, tmp_path):
    """A last layer of zeros would give no gradient for ever."""
    with pytest.raises(UserError, match=r"lora\.rank: freezes the student's weights, which are random; wanted init"):
        run(values, **{**LORA, "initialisation": {"weights": "random"}}, run=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    run(values, run=str(tmp_path / "first"), steps=1)
    wider = {**values["student"], "num_classes": values["student"].get("num_classes", 3) + 4}
    changes = {**LORA, "initialisation": {"weights": "random"}, "from": str(tmp_path / "first"), "student": wider}
    with pytest.raises(UserError, match=r"lora\.rank: .* of which from=.*first lacks .*; they would stay random"):
        run(values, **changes, run=str(tmp_path / "x"))


def test_the_header_says_what_is_trained(values):
    trainer = Trainer.from_config(make(TrainConfig, {**values, **LORA}))
    maps = {name.partition(".lora_A")[0] for name, _ in trainer.student.named_parameters() if ".lora_A" in name}
    trained = sum(p.numel() for p in trainer.student.parameters() if p.requires_grad)
    assert f"rank 2 on {len(maps)} linear maps, {trained / 1e6:.2f} M parameters trained" in run_header(trainer)


def test_bad_input(teacher, values):
    with pytest.raises(UserError, match=r"lora.targets: no linear map of the student's blocks ends in foo; there are"):
        check_lora(loading.load(teacher), Lora(rank=2, targets=["foo"]))
    with pytest.raises(UserError, match=r"lora\.rank: a Sequential has no linear maps in blocks"):
        check_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), Lora(rank=2))
    with pytest.raises(UserError, match=r"lora\.rank: wanted"):
        run(values, lora={"rank": -1})


def test_keys_of_adapters_without_a_rank_are_said():
    student = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert remark(student, Lora(targets=["qkv"])) == (
        "lora.targets: is of adapters, and there are none: lora.rank=0 trains all weights"
    )
    assert remark(student, Lora(alpha=4.0)).startswith("lora.alpha: ")
    assert remark(student, Lora()) is None


def test_a_dry_run_refuses_what_training_does(values, tmp_path, caplog):
    estimate = {"estimate": {"measure": False}, "dry_run": True}
    with pytest.raises(UserError, match=r"lora\.rank: freezes the student's weights, which are random"):
        dry_run(make(TrainConfig, {**values, **estimate, **LORA, "initialisation": {"weights": "random"}}))
    dry_run(make(TrainConfig, {**values, **estimate, "from": str(tmp_path / "later")}))
    assert f"from: {tmp_path}/later is not here, and training wants it" in caplog.messages


@pytest.mark.parametrize("family", ["dit", "mdt"])
def test_our_own_models_use_their_adapters_with_and_without_a_graph(family):
    """The MLP's fused path on a CPU and W^O of a capture: the same as of the merged model."""
    model = small_families.build(family)
    add_lora(model, Lora(rank=2))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 1])

    def forward():
        with capture(model) as captures:
            output = model(*inputs).sample
        return output.detach(), [c.out for c in captures.values()]

    trained = forward()
    with torch.no_grad():
        applied = forward()
    merge_lora(model)
    with torch.no_grad():
        merged = forward()
    torch.testing.assert_close(applied, trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(applied, merged, rtol=1e-4, atol=1e-5)


def test_maps_whose_weights_are_read_by_themselves_have_idle_adapters():
    """BEiT calls F.linear with qkv.weight, by which an adapter is passed by: it never learned, without a word."""
    model = TimmModel(
        model="beit_base_patch16_224", img_size=32, num_classes=3, options={"embed_dim": 24, "depth": 1, "num_heads": 2}
    )
    with idle_maps(model, Lora(rank=2)) as idle:
        model(torch.zeros(1, 3, 32, 32))
    assert idle == ["network.blocks.0.attn.qkv"]
    with idle_maps(model, Lora()) as idle:
        model(torch.zeros(1, 3, 32, 32))
    assert idle == []


def test_a_run_in_which_no_adapter_would_learn_is_refused(tmp_path, caplog):
    student = {
        "name": "timm", "model": "beit_base_patch16_224", "in_chans": 1, "img_size": 28, "mean": [0.5], "std": [0.5],
        "options": {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 14},
    }  # fmt: skip
    values = {"run": str(tmp_path / "run"), "task": "classification", "data": {"name": "digits"}, "student": student}
    values |= {"batch_size": 4, "precision": "no", "steps": 1}
    run({**values, "run": str(tmp_path / "first")})
    begun = {"from": str(tmp_path / "first"), "lora": {"rank": 2}}
    with pytest.raises(UserError, match=r"lora: 1 linear maps, first network\.blocks\.0\.attn\.qkv, did not run"):
        run({**values, **begun, "lora": {"rank": 2, "targets": ["qkv"]}})
    assert not (tmp_path / "run").exists()
    run({**values, **begun})
    assert "attn.qkv, did not run by themselves, so that their adapters learn nothing" in caplog.text


def test_stacked_experts_without_adapters_are_told():
    sizes = {
        "model_type": "qwen3_moe", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9,
        "num_experts": 4, "num_key_value_heads": 1, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
    }  # fmt: skip
    model = CausalLM(config=sizes)
    line, stacked = remark(model, Lora(rank=2)), not any("experts" in name for name in linear_maps(model))
    assert linear_maps(model) and (line is not None) == stacked
    assert not stacked or "of the blocks' weights are in no linear map" in line
    assert remark(model, Lora()) is None
    assert remark(causal_lm(GPT2), Lora(rank=2)) is None


def test_a_seed_of_ones_own_gives_first_weights_of_ones_own():
    first = [causal_lm(GPT2) for _ in range(3)]
    for model, seed in zip(first, (1, 1, 2)):
        add_lora(model, Lora(rank=2), seed)
    one, same, other = ([p for p in model.parameters() if p.requires_grad] for model in first)
    assert all(map(torch.equal, one, same)) and not all(map(torch.equal, one, other))
