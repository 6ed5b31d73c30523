"""One process that a launcher started, and what a shell or scheduler left in the environment of one that none did."""

import socket

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from runs import contents

from dit_shd.cli.program import main
from dit_shd.core.distributed import LAUNCHER_VARIABLES, PATIENCE, joined, leave_group

WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def command(values, tmp_path, monkeypatch):
    """Runs a command as if the environment told this, and puts everything back."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**values, "steps": 2, "batch_size": 4}))

    def call(told, *arguments):
        AcceleratorState._reset_state(reset_partial_state=True)
        with monkeypatch.context() as patch:
            for name in LAUNCHER_VARIABLES:  # so that all are put back
                patch.setenv(name, told.get(name, ""))
                if name not in told:
                    patch.delenv(name)
            return main([str(config) if word == "CONFIG" else str(word) for word in arguments])

    return call


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_one_process_does_what_it_does_without_a_launcher(command, tmp_path):
    """With a masked pass: in the plain one the mask token has no gradient, which DDP waits for unless told not to."""
    port = {"MASTER_PORT": free_port()}
    told = {
        "alone": {},
        "whole": {**WHOLE, **port},
        "no address": {"RANK": "0", "WORLD_SIZE": "1"},
        "rank": {"LOCAL_RANK": "0"},
    }
    for name, environment in told.items():
        assert command(environment, "train", "CONFIG", f"run={tmp_path / name}", "micro_batch_size=2") == 0
        assert command(environment, "sample", tmp_path / name, "count=3", "steps=2", "batch_size=2") == 0
    alone = contents(tmp_path / "alone")
    for name in told:
        found = contents(tmp_path / name)
        assert found.keys() == alone.keys()
        assert {file for file in found if found[file] != alone[file]} <= {"samples_3_seed0.npz"}
        a, b = (np.load(tmp_path / each / "samples_3_seed0.npz") for each in ("alone", name))
        assert np.array_equal(a["arr_0"], b["arr_0"])


def test_whoever_joins_the_group_is_patient(monkeypatch):
    """Also what joins it before a run does, as micro_batch_size=auto: the group keeps the patience of its beginning."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**WHOLE, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert joined().num_processes == 1
    group = torch.distributed.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == PATIENCE
    leave_group()


@pytest.mark.parametrize(
    "told", [{"RANK": "0", "WORLD_SIZE": "2"}, {"RANK": "1", "WORLD_SIZE": "1", **WHOLE, "LOCAL_RANK": "x"}]
)
def test_an_environment_that_leads_to_no_group_is_said_in_a_line(command, tmp_path, capfd, told):
    assert command(told, "train", "CONFIG", f"run={tmp_path / 'run'}") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dit-shd")]
    assert "the environment is a launcher's" in line
    assert "start by torchrun or accelerate launch" in line
    assert not (tmp_path / "run").exists()
