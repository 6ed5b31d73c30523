"""Learning rates and optimizers."""

import pytest
import small_families
import timm
import torch
from runs import run
from safetensors.torch import load_file

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.models.families import FAMILIES
from dit_shd.training.optim import OptimizerConfig, build, jump, learning_rate, remarks, set_learning_rate


def test_warm_up_then_decay():
    cosine = OptimizerConfig(lr=2.0, warmup_steps=4, decay="cosine")
    assert [learning_rate(cosine, i, 104) for i in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(cosine, 4, 104) == 2.0
    assert learning_rate(cosine, 54, 104) == pytest.approx(1.0)
    assert learning_rate(cosine, 104, 104) == pytest.approx(0.0)
    linear = OptimizerConfig(lr=2.0, decay="linear")
    assert [learning_rate(linear, i, 4) for i in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert learning_rate(OptimizerConfig(lr=2.0), 99, 100) == 2.0


def test_optimizers_get_what_the_config_says():
    weights = [("scale", torch.nn.Parameter(torch.ones(2)))]
    adan = build(OptimizerConfig(lr=0.1, weight_decay=0.2), weights).param_groups[0]
    assert (adan["lr"], adan["weight_decay"], tuple(adan["betas"])) == (0.1, 0.2, (0.98, 0.92, 0.99))
    adamw = build(OptimizerConfig(name="adamw", betas=[0.8, 0.9], eps=1e-3), weights)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["betas"], adamw.param_groups[0]["eps"]) == ((0.8, 0.9), 1e-3)


def test_decay_ends_where_it_is_told_to():
    cosine = OptimizerConfig(lr=2.0, decay="cosine", final_lr=0.5)
    assert learning_rate(cosine, 0, 100) == 2.0
    assert learning_rate(cosine, 50, 100) == pytest.approx(1.25)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_beyond_the_end_a_decay_stays_where_it_ended(decay):
    assert learning_rate(OptimizerConfig(lr=2.0, decay=decay, final_lr=0.5), 150, 100) == pytest.approx(0.5)


def test_every_parameter_has_the_rate_of_the_step():
    """Also those that are not decayed, which are a group of their own."""
    weights = [("map.weight", torch.nn.Parameter(torch.ones(2, 2))), ("map.bias", torch.nn.Parameter(torch.ones(2)))]
    config = OptimizerConfig(name="adamw", lr=2.0, decay="cosine", decayed="matrices", weight_decay=0.1)
    optimizer = build(config, weights)
    set_learning_rate(optimizer, config, 50, 100)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1.0)] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_a_decay_over_other_steps_is_said(values, caplog):
    """Raised steps raise the learning rate again; without decay, or at the same number, nothing changes."""
    cosine = OptimizerConfig(lr=2.0, decay="cosine")
    assert jump(OptimizerConfig(lr=2.0, warmup_steps=3), 2, 4, 8) is None
    assert jump(cosine, 4, 8, 8) is None
    assert jump(cosine, 4, 4, 4) is None
    assert "steps=8 in place of 4 the learning rate goes on at 1 and not at 0" in str(jump(cosine, 4, 4, 8))
    assert "steps=6 in place of 8 the learning rate goes on at 0.5 and not at 1" in str(jump(cosine, 4, 8, 6))
    values["optimizer"] = {"lr": 1e-2, "decay": "cosine"}
    run(values, steps=2)
    assert "learning rate" not in caplog.text
    run(values, steps=4)
    assert "optimizer.decay: cosine is over all steps: with steps=4 in place of 2" in caplog.text


def test_a_warm_up_that_does_not_end_is_said_and_a_rate_that_would_rise_refused(values, caplog):
    values["optimizer"] = {"lr": 1e-2, "warmup_steps": 2, "decay": "cosine", "final_lr": 1e-3}
    run(values, steps=2)
    assert "optimizer.warmup_steps: 2 of 2 steps: the learning rate only rises, to 0.01" in caplog.text
    assert not remarks(OptimizerConfig(warmup_steps=2, decay="cosine", final_lr=1e-5), 3)
    assert remarks(OptimizerConfig(final_lr=1e-5), 3) == ["optimizer.final_lr: 1e-05 is not read with decay: constant"]
    with pytest.raises(UserError, match=r"final_lr: wanted at most lr, 0\.01, found 0\.1; the rate would rise"):
        run({**values, "optimizer": {"lr": 1e-2, "final_lr": 0.1, "decay": "linear"}}, steps=2)


def test_what_is_no_matrix_is_not_decayed():
    """DeiT's exemptions: biases and norms, class token and position embedding; the rest shrinks."""
    model = timm.create_model("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_classes=3)
    named = dict(model.named_parameters())
    optimizer = build(OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices"), named.items())
    spared = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    wanted = {name for name, p in named.items() if p.ndim == 1} | model.no_weight_decay()
    assert {name for name, p in named.items() if id(p) in spared} == wanted & named.keys()
    assert len(build(OptimizerConfig(name="adamw", weight_decay=0.1), named.items()).param_groups) == 1


def test_a_weight_of_one_row_is_a_matrix_and_a_token_is_none():
    """A head of one output, and the A of an adapter of rank 1; not a token."""
    shapes = {
        "head.weight": (1, 8),
        "q.lora_A.default.weight": (1, 8),
        "q.lora_B.default.weight": (8, 1),
        "token": (1, 8),
    }
    named = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    groups = build(OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices"), named.items()).param_groups
    assert [len(group["params"]) for group in groups] == [3, 1] and groups[1]["params"][0] is named["token"]


def test_position_embeddings_that_are_matrices_are_not_decayed():
    config = OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices")
    size = {"vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    gpt = FAMILIES.build(Plugin("transformers", {"config": {"model_type": "gpt2", **size}}), "student")
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=12, depths=(1,), num_heads=(2,), num_classes=3)
    for model, wanted in ((small_families.build("mdt"), "bias_table"), (gpt, "wpe.weight"), (swin, "bias_table")):
        named = dict(model.named_parameters())
        spared = {id(p) for p in build(config, named.items()).param_groups[1]["params"]}
        assert [name for name, p in named.items() if name.endswith(wanted) and id(p) in spared]
        assert not [name for name, p in named.items() if name.endswith(wanted) and id(p) not in spared]
        assert [name for name, p in named.items() if "mlp" in name and p.ndim == 2 and id(p) not in spared]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("vit_small_patch16_rope_mixed_224", {"embed_dim": 24, "depth": 1, "num_heads": 3}, "rope.freqs"),
        ("swinv2_tiny_window8_256", {"embed_dim": 8, "depths": (1,), "num_heads": (2,)}, "cpb_mlp.0.weight"),
        ("maxvit_rmlp_pico_rw_256", {}, "rel_pos.mlp.fc1.weight"),
        ("twins_svt_small", {"embed_dims": (16, 16, 32, 64), "depths": (1,) * 4}, "pos_block.0.proj.0.weight"),
    ],
)
def test_what_timm_spares_beside_vectors_is_not_decayed(name, options, wanted):
    """Frequencies of rope that learn, networks that make biases by position, convolutions that make positions."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3, **options)
    named = dict(model.named_parameters())
    groups = build(OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices"), named.items()).param_groups
    decayed = {name for name, p in named.items() if any(p is each for each in groups[0]["params"])}
    spared = tuple(model.no_weight_decay())
    if not any(name.endswith(wanted) and name.endswith(spared) for name in named):
        pytest.skip(f"timm {timm.__version__} decays {wanted}")  # 1.0.26 those of SwinV2
    assert decayed == {name for name, p in named.items() if p.ndim > 1 and not name.endswith(spared)}


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("levit_128s", {}, "attention_biases"),
        ("swinv2_tiny_window8_256", {"embed_dim": 8, "depths": (1,), "num_heads": (2,)}, "logit_scale"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "temperature"),
    ],
)
def test_biases_by_position_and_scales_of_heads_are_not_decayed(name, options, wanted):
    with torch.device("meta"):
        named = dict(timm.create_model(name, num_classes=3, **options).named_parameters())
    groups = build(OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices"), named.items()).param_groups
    decayed = {id(p) for p in groups[0]["params"]}
    assert any(name.endswith(wanted) for name in named)
    assert not [name for name, p in named.items() if name.endswith(wanted) and id(p) in decayed]
    assert all(id(p) in decayed for name, p in named.items() if name.endswith("weight") and p.ndim == 4)


@pytest.fixture
def eager():
    """Without torchao's compiler, which takes a minute."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def test_states_of_eight_bits_are_resumed(values, tmp_path, eager):
    options = {
        "optimizer": {"name": "adamw8bit", "lr": 1e-2},
        "losses": [{"name": "output"}],
        "student": {**values["student"], "num_attention_heads": 4},
    }
    _, whole = run(values, **options, steps=3)
    folder = tmp_path / "two"
    _, first = run(values, **options, steps=2, run=str(folder))
    states = load_file(folder / "checkpoints" / "step_00000002" / "optimizer.safetensors")
    coded = [name for name in states if name.endswith("exp_avg:codes")]
    assert coded
    assert all(states[name].dtype == torch.uint8 for name in coded)
    _, last = run(values, **options, steps=3, run=str(folder))
    assert [m["loss"] for m in whole] == [m["loss"] for m in (*first, *last)]


@pytest.mark.parametrize(
    "name",
    [
        "scale_shift_table",
        "transformer_blocks.0.scale_shift_table",
        "patch_embed.pos_emb_t",
        "pos_frequencies",
        "tokens.positions_embed.weight",
        "mixer.A_log",
        "gate_bias",
    ],
)
def test_what_only_has_the_shape_of_a_matrix_is_not_decayed(name):
    """The biases of adaLN's shift, scale and gate in PixArt, Sana and LTX, among others."""
    named = {name: torch.nn.Parameter(torch.ones(6, 8)), "proj.weight": torch.nn.Parameter(torch.ones(6, 8))}
    groups = build(OptimizerConfig(name="adamw", weight_decay=0.1, decayed="matrices"), named.items()).param_groups
    assert groups[0]["params"] == [named["proj.weight"]] and groups[1]["params"][0] is named[name]


def test_the_defaults_are_mdts_recipe():
    config = OptimizerConfig()
    assert (config.name, config.lr, config.weight_decay, config.clip) == ("adan", 5e-4, 0.0, 1.0)
