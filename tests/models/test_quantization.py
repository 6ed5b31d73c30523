"""Teachers in fewer bits than 16."""

import json

import diffusers
import pytest
import torch
from runs import run

from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.quantization import config_of, counted_bytes, plain_parts

CPU = torch.device("cpu")


@pytest.fixture
def bits(request):
    """Skips where this diffusers quantises on GPUs alone."""
    try:
        config_of(request.param, CPU)
    except UserError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_it_teaches_nearly_the_same(values, tmp_path, bits):
    _, fine = run(values, steps=1)
    _, low = run(values, steps=1, teacher_precision=bits, run=str(tmp_path / bits))
    for term in ("plain/shd", "plain/output"):
        assert fine[0][term] != low[0][term]
        assert fine[0][term] == pytest.approx(low[0][term], rel=0.1)
    assert fine[0]["plain/noise"] == low[0]["plain/noise"]


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_bytes_are_counted(teacher, bits):
    full, low = loading.load(teacher), loading.load(teacher, bits)
    tensors = [part for x in (*low.parameters(), *low.buffers()) for part in plain_parts(x).values()]
    held = sum(x.numel() * x.element_size() for x in tensors)
    assert held == pytest.approx(counted_bytes(full, bits), rel=0.15)
    assert held < 0.5 * 4 * sum(p.numel() for p in full.parameters())


def test_bad_input(teacher, tmp_path):
    with pytest.raises(UserError, match="teacher_precision: int4 needs a GPU, found cpu"):
        config_of("int4", CPU)
    with pytest.raises(UserError, match="int8 reads folders of diffusers"):
        loading.load(tmp_path, "int8")
    timm_config = {"architecture": "deit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(timm_config))
    with pytest.raises(UserError, match=r"found one of timm; teacher_precision=bf16 reads everything$"):
        loading.load(tmp_path, "int8")


def test_a_diffusers_that_quantises_on_gpus_alone_is_told(monkeypatch):
    def refuse(*_):
        raise RuntimeError("TorchAO requires a GPU")

    monkeypatch.setattr(diffusers, "TorchAoConfig", refuse)
    with pytest.raises(UserError, match=r"teacher_precision: int8 is refused by diffusers .*TorchAO requires a GPU"):
        config_of("int8", CPU)


def test_four_bits_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    config = config_of("nf4", torch.device("cuda"))
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
