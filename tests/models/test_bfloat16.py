"""Models read in bfloat16: what stays in float32, and what leaves no trace."""

import diffusers
import pytest
import torch
from packaging.version import Version
from safetensors.torch import save_file
from small_families import diffusers_dit

from dit_shd.core.errors import UserError
from dit_shd.models import loading


def test_bfloat16_leaves_in_float32_what_diffusers_keeps_so(tmp_path):
    """Wan's modulation and the embedding of its times lose by it."""
    if Version(diffusers.__version__) < Version("0.40"):
        pytest.skip("this diffusers leaves tables of rotary frequencies in float32, too")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "num_layers": 1}
    widths = {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32}
    diffusers.WanTransformer3DModel(**sizes, **widths).save_pretrained(tmp_path / "wan")
    read = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "wan", torch_dtype=torch.bfloat16)
    model = loading.load(tmp_path / "wan", "bf16")
    expected, actual = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (read, model))
    assert {name: tensor.dtype for name, tensor in actual.items()} == {
        n: tensor.dtype for n, tensor in expected.items()
    }
    assert {tensor.dtype for tensor in actual.values()} >= {torch.float32, torch.bfloat16}
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


def test_diffusers_reads_its_own_classes_in_bfloat16_and_nothing_is_held_in_float32(tmp_path, monkeypatch):
    """A teacher of 12 billion parameters is 24 GB, and 48 in float32."""
    diffusers_dit().save_pretrained(tmp_path / "dit")
    rounded = loading.load(tmp_path / "dit", "bf16").state_dict()
    whole = loading.load(tmp_path / "dit").state_dict()
    assert all(torch.equal(x, whole[name].bfloat16()) for name, x in rounded.items())
    monkeypatch.setattr(loading, "in_bfloat16", lambda model: model)
    assert {x.dtype for x in loading.load(tmp_path / "dit", "bf16").parameters()} == {torch.bfloat16}


def test_a_folder_that_cannot_be_read_in_bfloat16_leaves_no_trace(tmp_path):
    """diffusers leaves bfloat16 as the process's default, in which later models were made and read."""
    diffusers_dit().save_pretrained(tmp_path / "dit")
    file = tmp_path / "dit" / "config.json"
    file.write_text(file.read_text().replace('"num_layers": 2', '"num_layers": "many"'))
    default = torch.get_default_dtype()
    try:
        with pytest.raises(UserError, match="dit: cannot be read as DiTTransformer2DModel"):
            loading.load(tmp_path / "dit", "bf16")
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(default)


def test_whether_files_hold_bfloat16_alone(tmp_path, teacher):
    diffusers_dit().bfloat16().save_pretrained(tmp_path / "low")
    assert loading.stored_precision(tmp_path / "low") == "bf16"
    assert loading.stored_precision(tmp_path / "low" / "diffusion_pytorch_model.safetensors") == "bf16"
    save_file({"wide": torch.ones(1)}, tmp_path / "low" / "diffusion_pytorch_model-2.safetensors")
    assert loading.stored_precision(tmp_path / "low") == "no"
    assert loading.stored_precision(teacher) == "no"
    assert loading.stored_precision("asset:digits_teacher") == "no"
    save_file({"of_public_code": torch.ones(1).bfloat16()}, tmp_path / "file.safetensors")
    assert loading.stored_precision(tmp_path / "file.safetensors") == "no"
    (tmp_path / "low" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors: cannot be read .*download it again$"):
        loading.stored_precision(tmp_path / "low")
