"""Headers and hashes of safetensors without torch are what the library and the loaded model have."""

import torch
from safetensors.torch import save_file
from torch import nn

from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.weight_files import parameters, sha256_of_weights


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2, bias=False))


def test_hash_and_count_are_the_models_in_one_file_or_several(tmp_path):
    state = model().state_dict()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_file(state, tmp_path / "one" / "model.safetensors", metadata={"format": "pt"})
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / "two" / f"model-{number}.safetensors")
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert sha256_of_weights(folder) == sha256_of_tensors(model())
        assert parameters(folder) == sum(tensor.numel() for tensor in state.values())


def test_what_cannot_be_told_is_none(tmp_path):
    file = tmp_path / "model.safetensors"
    assert sha256_of_weights(tmp_path) is None and parameters(tmp_path) is None
    save_file(model().half().state_dict(), file)
    assert sha256_of_weights(tmp_path) is None and parameters(tmp_path) == 32
    save_file(model().state_dict(), file)
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], b"\xff" * 8 + whole[8:], whole[:8] + b"[1]" + whole[11:]):
        file.write_bytes(damaged)
        assert sha256_of_weights(tmp_path) is None
    file.write_bytes(whole)
    save_file(model().state_dict(), tmp_path / "model.fp32.safetensors")
    assert sha256_of_weights(tmp_path) is None, "two variants"
