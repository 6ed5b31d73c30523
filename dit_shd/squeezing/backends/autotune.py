"""The fastest backend, measured on the first layer of each kind."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from dit_shd.attention.capture import Capture
from dit_shd.squeezing.backends import fused, streamed, triton
from dit_shd.squeezing.backends.job import Job, Result
from dit_shd.squeezing.kernels import captures

Backend = Literal["auto", "streamed", "fused", "triton"]
RUNS: dict[str, Callable[[Job], Result]] = {"triton": triton.run, "fused": fused.run, "streamed": streamed.run}
_chosen: dict[tuple[object, ...], str] = {}
_log = logging.getLogger("dit_shd")


def unfit(backend: str, teacher: Capture, student: Capture, measure: str) -> str | None:
    """Why a backend does not support a layer; None if it does."""
    if backend == "fused":
        return fused.unfit(teacher, student, measure)
    return captures.unfit(teacher, student) if backend == "triton" else None


def choose(job: Job) -> str:
    """The only backend that supports a layer, or the fastest in a trial on it."""
    teacher, student = job.teacher, job.student
    kind = (
        *(teacher.query.shape, teacher.key.shape, teacher.causal, type(teacher.bias)),
        *(student.query.shape, student.key.shape, student.causal, student.query.dtype, str(student.query.device)),
        *(job.squeeze.heads, job.squeeze.weight.shape, job.measure),
    )
    if kind not in _chosen:
        reasons = {name: unfit(name, teacher, student, job.measure) for name in RUNS}
        if teacher.query.device.type == "cpu":
            reasons["triton"] = "Triton's interpreter is for tests"
        supported = [name for name, reason in reasons.items() if reason is None]
        if len(supported) == 1:
            _chosen[kind] = supported[0]
            return supported[0]
        seconds = {name: _seconds(RUNS[name], replace(job, gradients=True)) for name in supported}
        _chosen[kind] = min(seconds, key=lambda name: seconds[name])
        measured = [f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items()]
        if teacher.query.device.type == "cuda" and reasons["triton"]:
            measured.append(f"not triton: {reasons['triton']}")
        shape = teacher.shape
        _log.info("attention_kl at (b, h, n, m) = %s: backend %s (%s)", shape, _chosen[kind], ", ".join(measured))
    return _chosen[kind]


def _seconds(run: Callable[[Job], Result], job: Job) -> float:
    """The shorter of two runs (the first one warms up)."""
    seconds: list[float] = []
    with torch.no_grad(), torch.autocast(job.student.query.device.type, enabled=False):
        for _ in range(2):
            _finish(job)
            start = time.perf_counter()
            run(job)
            _finish(job)
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def _finish(job: Job) -> None:
    if job.student.query.device.type != "cpu":
        torch.accelerator.synchronize(job.student.query.device)
