"""Peaks of devices."""

import pytest
import torch

from dit_shd.profiling.estimate import peaks
from dit_shd.profiling.hardware import free_memory, known_peak, limits


@pytest.mark.parametrize(
    ("name", "bf16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA H200 NVL", 835, 60),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA GH200 480GB", 989, 67),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
    ],
)
def test_a_peak_is_of_the_precision_that_is_trained_in(name, bf16, float32, monkeypatch):
    """As the estimate of dry_run has it: a share of it (MFU) is compared with what that assumes."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    gpu = torch.device("cuda")
    assert (known_peak(gpu), known_peak(gpu, "bf16"), known_peak(gpu, "no")) == (bf16, bf16, float32)
    assert known_peak(torch.device("cpu"), "no") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX A1000")
    assert known_peak(gpu) is None, "no A100"
    assert peaks("no") == {"A100": 19.5, "H100": 67.0} and peaks("fp16") == {"A100": 312.0, "H100": 989.0}


def test_the_limit_of_a_container_or_a_job_counts(tmp_path, monkeypatch):
    """Its own, or that of a group which it is in; the cache of files gives way."""
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    (tmp_path / "process").write_text("1:name=systemd:/x\n0::/slurm/job_7\n")
    for folder, most in ((job, "max"), (job.parent, 5000)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("1200\n")
        (folder / "memory.stat").write_text("anon 900\nfile 300\ninactive_file 250\n")
    assert limits(tmp_path, tmp_path / "process") == [4050]
    assert limits(tmp_path, tmp_path / "none") == []
    monkeypatch.setattr("dit_shd.profiling.hardware.limits", lambda: [3800])
    assert free_memory(torch.device("cpu")) == 3800
