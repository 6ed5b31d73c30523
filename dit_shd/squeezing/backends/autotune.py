"""Which backend is the faster one here: measured on the layer at hand, once for each kind of layer."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from dit_shd.squeezing.backends import fused, streamed
from dit_shd.squeezing.backends.job import Job, Result

Backend = Literal["auto", "streamed", "fused"]
_RUNS: dict[str, Callable[[Job], Result]] = {"streamed": streamed.run, "fused": fused.run}
_chosen: dict[tuple[object, ...], str] = {}
_log = logging.getLogger("dit_shd")


def choose(job: Job) -> str:
    """`streamed` or `fused`: the only one that fits, or the faster one in a trial on this very layer."""
    why_not = fused.unfit(job.teacher, job.student, job.measure)
    if why_not:
        return "streamed"
    teacher, student = job.teacher, job.student
    kind = (
        *(teacher.query.shape, teacher.key.shape, teacher.causal, type(teacher.bias)),
        *(student.query.shape, student.key.shape, student.causal, student.query.dtype, str(student.query.device)),
        *(job.squeeze.heads, job.squeeze.weight.shape, job.measure),
    )
    if kind not in _chosen:
        seconds = {name: _seconds(run, replace(job, gradients=True)) for name, run in _RUNS.items()}
        _chosen[kind] = min(seconds, key=lambda name: seconds[name])
        measured = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
        _log.info("attention_kl at (b, h, n, m) = %s: backend %s (%s)", job.teacher.shape, _chosen[kind], measured)
    return _chosen[kind]


def _seconds(run: Callable[[Job], Result], job: Job) -> float:
    """The shorter of two runs (the first one warms up)."""
    found = []
    with torch.no_grad(), torch.autocast(job.student.query.device.type, enabled=False):
        for _ in range(2):
            _finish(job)
            start = time.perf_counter()
            run(job)
            _finish(job)
            found.append(time.perf_counter() - start)
    return min(found)


def _finish(job: Job) -> None:
    if job.student.query.device.type != "cpu":
        torch.accelerator.synchronize(job.student.query.device)
