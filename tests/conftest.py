"""Small things every test may use."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anybody imports triton
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from evaluating import pictures
from filelock import FileLock
from hypothesis import HealthCheck, settings
from small_runs import STUDENT, TEACHER, values_of, write_shapes, write_teacher

__all__ = ["STUDENT", "TEACHER"]
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """An npz of 60 8x8 images in three classes: dark, bright, striped."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes.npz")


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A random MDTv2 of four heads in diffusers format."""
    return write_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def flow_teacher(tmp_path_factory) -> Path:
    """A random DiT of velocities in diffusers format."""
    from dit_shd.models.families.dit import DiT

    torch.manual_seed(2)
    options = {k: v for k, v in TEACHER.items() if k not in ("name", "decode_layer")}
    model = DiT(**options, learn_sigma=False, prediction="velocity_sd3")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = tmp_path_factory.mktemp("models") / "velocity"
    model.save_pretrained(path)
    return path


@pytest.fixture
def values(shapes, teacher, tmp_path) -> dict:
    """The values of a tiny distillation config with every kind of loss."""
    return values_of(shapes, teacher, tmp_path / "run")


@pytest.fixture(scope="session")
def two_processes(request, root, tmp_path_factory) -> Path:
    """What two processes made of every job that collected tests are marked with, by one launch.

    Whichever xdist worker comes first launches it; the others wait for it at a lock.
    """
    from runs import torchrun
    from two_process_jobs import job

    marks = (mark for item in request.session.items for mark in item.iter_markers("two_processes"))
    names = sorted({mark.args[0] for mark in marks})
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, state = base / "two_processes", base / "two_processes.txt"
    with FileLock(base / "two_processes.lock"):
        if not state.exists():
            state.write_text("the launch of two processes failed in another worker")
            for name in names:
                (folder / name).mkdir(parents=True)
                job(name).prepare(folder / name)
            (folder / "jobs.json").write_text(json.dumps(names))
            torchrun(root / "tests" / "two_processes.py", 2, root, folder, seconds=1500)
            state.write_text("")
    assert not state.read_text(), state.read_text()
    return folder


@pytest.fixture
def by_two(request, two_processes) -> Path:
    """The folder of the job that the test is marked with."""
    return two_processes / request.node.get_closest_marker("two_processes").args[0]


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Samples with labels and a reference, as npz files in two folders."""
    samples, reference = tmp_path / "samples" / "set.npz", tmp_path / "reference.npz"
    samples.parent.mkdir()
    np.savez(samples, pictures(40, seed=1), np.arange(40) % 10)
    np.savez(reference, pictures(50, seed=2))
    return {"samples": samples, "reference": reference, "folder": tmp_path}


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk():
    """What tests write need not outlive a failure of power; processes that they start and kill do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_count_of_operations():
    """To count its operations takes half of the time of a run of a few steps: runs that are alike share one count."""
    from dit_shd.profiling.meta import ModelSpec
    from dit_shd.training import services

    throughput, count, counts = services.throughput, services.operations_by_step, {}

    def shared(config, student, teachers, images, accelerator):
        plugins = [config.task, *config.losses]
        options = [{k: v for k, v in each.options.items() if k != "evaluation"} for each in plugins]
        models = {name: ModelSpec.of(model) for name, model in {**teachers, "": student}.items()}
        end = config.steps if any("weight" in each and isinstance(each["weight"], dict) for each in options) else None
        alike = [each.name for each in plugins], options, models, images, end, config.gradient_checkpointing

        def counted(step, *others):
            key = repr((alike, [vars(batch) for batch in step.task.example(student, images, torch.device("meta"))]))
            if key not in counts or any("." in each.name for each in plugins):  # of a test's own
                counts[key] = count(step, *others)
            return counts[key]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(services, "operations_by_step", counted)
            return throughput(config, student, teachers, images, accelerator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "throughput", shared)
        yield


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps its state in the process; each test starts without."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def one_thread():
    """One thread, as in the processes that some tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
