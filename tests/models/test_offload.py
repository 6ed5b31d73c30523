import copy

import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from language import GPT2, LLAMA, causal_lm
from runs import run
from task_cases import classification, language_modeling
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.blocks import blocks
from dit_shd.models.families.timm import TimmModel
from dit_shd.models.offload import OFFLOADED, device_of, is_offloaded, moved, offload_blocks
from dit_shd.profiling import captures
from dit_shd.profiling.memory import held
from dit_shd.tasks.diffusion import Diffusion


@pytest.fixture
def offloads(teacher):
    """Skips where this diffusers offloads to GPUs alone."""
    try:
        offload_blocks(loading.load(teacher), torch.device("cpu"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("offloads")
def test_an_offloaded_teacher_teaches_the_same(values, tmp_path):
    _, whole = run(values)
    _, offloaded = run(values, teacher_offload="blocks", run=str(tmp_path / "blocks"))
    assert whole == offloaded


@pytest.mark.usefixtures("offloads")
@pytest.mark.parametrize("case", [classification, language_modeling])
def test_teachers_of_other_libraries_teach_the_same(case, tmp_path):
    values = {**case.values(tmp_path), "batch_size": 4, "steps": 2, "ema": 0.5}
    _, whole = run(values, run=str(tmp_path / "whole"))
    _, offloaded = run(values, teacher_offload="blocks", run=str(tmp_path / "blocks"))
    assert whole == offloaded


def watched(model, monkeypatch):
    """Lists that grow while a model runs: the tensors on its device, and names of modules that ran without theirs."""
    there, missing, peaks = set(), [], []
    bring, take = ModuleGroup.onload_, ModuleGroup.offload_

    def tensors(group):
        inside = [x for module in group.modules for x in (*module.parameters(), *module.buffers())]
        return {*inside, *group.parameters, *group.buffers}

    def brought(group):
        there.update(tensors(group))
        peaks.append(sum(x.numel() * x.element_size() for x in there))
        bring(group)

    def taken(group):
        there.difference_update(tensors(group))
        take(group)

    monkeypatch.setattr(ModuleGroup, "onload_", brought)
    monkeypatch.setattr(ModuleGroup, "offload_", taken)
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            needed = [*module.parameters(), *module.buffers()]
            module.register_forward_pre_hook(
                lambda *_, name=name, needed=needed: None if there.issuperset(needed) else missing.append(name)
            )
    return there, missing, peaks


def deit():
    torch.manual_seed(0)
    options = {"patch_size": 7, "embed_dim": 24, "depth": 4, "num_heads": 3}
    sizes = {"in_chans": 1, "img_size": 28, "mean": [0.5], "std": [0.5], "num_classes": 10}
    return TimmModel(model="deit_tiny_patch16_224", **sizes, options=options)


TIED = {"tie_word_embeddings": True}


@pytest.mark.usefixtures("offloads")
@pytest.mark.parametrize(
    "build",
    [
        deit,
        lambda: causal_lm({**GPT2, "n_layer": 4, **TIED}),
        lambda: causal_lm({**LLAMA, "num_hidden_layers": 4}),
        lambda: causal_lm({**LLAMA, "num_hidden_layers": 4, **TIED}),
    ],
    ids=["timm", "gpt2, tied", "llama", "llama, tied"],
)
def test_blocks_that_lie_deeper_come_one_by_one(build, monkeypatch):
    """Each module's weights are there when it runs, a head's that are the embedding's as well; as counted."""
    model = build().eval().requires_grad_(False)
    whole = copy.deepcopy(model)
    inputs = torch.randn(2, 1, 28, 28) if isinstance(model, TimmModel) else torch.randint(0, 257, (2, 8))
    sizes = [held(block) for block in blocks(model)]
    counted = held(model) - sum(sizes) + 2 * max(sizes)  # by the dry run (tests/profiling/test_flops.py)
    offload_blocks(model, torch.device("cpu"))
    there, missing, peaks = watched(model, monkeypatch)
    logits = [x if isinstance(x, torch.Tensor) else x.logits for x in (model(inputs), whole(inputs))]
    assert torch.equal(*logits)
    assert not missing and not there
    assert max(peaks) <= counted < 0.8 * held(model)


def test_blocks_that_share_weights_are_refused():
    """Whichever has run would take them away from the other."""
    model = causal_lm(LLAMA)
    first, second = model.network.model.layers
    second.mlp = first.mlp
    with pytest.raises(
        UserError, match=r"found network\.model\.layers\.1\.mlp\.gate_proj\.weight of a CausalLM in two"
    ):
        offload_blocks(model, torch.device("cpu"))


@pytest.mark.usefixtures("offloads")
def test_a_model_that_diffusers_does_not_divide_is_refused(teacher):
    model = loading.load(teacher)
    model.enable_group_offload = lambda *_, **__: None
    with pytest.raises(UserError, match=r"does not divide a MDTv2 into its blocks \(.*; teacher_offload=no"):
        offload_blocks(model, torch.device("cpu"))


@pytest.mark.usefixtures("offloads")
def test_it_stays_where_it_is(teacher):
    model = loading.load(teacher)
    assert not is_offloaded(model)
    offload_blocks(model, torch.device("cpu"))
    assert is_offloaded(model)
    assert moved(model, torch.device("meta")) is model
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("other", [{"compile": True}, {"teacher_precision": "int8"}])
def test_what_does_not_go_with_it(values, other):
    with pytest.raises(UserError, match="teacher_offload: blocks does not go with"):
        run(values, teacher_offload="blocks", **other)


def test_a_batch_for_it_is_where_it_computes(teacher):
    """While its weights lie in main memory."""
    model = loading.load(teacher)
    assert device_of(model).type == "cpu"
    setattr(model, OFFLOADED, torch.device("meta"))
    assert device_of(model).type == "meta"
    batch = captures.example(Diffusion(), "plain", model, device_of(model))
    assert batch.x_t.device.type == "meta"


def test_only_models_of_diffusers():
    with pytest.raises(UserError, match="wanted a model of diffusers, found a Linear"):
        offload_blocks(nn.Linear(2, 2), torch.device("cpu"))
