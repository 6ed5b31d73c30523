"""Two steps of a run whose every draw is written down, to be resumed by one process."""

import os

import killing
from runs import train_by_two
from small_runs import tiny

from dit_shd.tasks.diffusion import Diffusion

STEADY = {"steps": 4, "optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-3}}


def prepare(folder):
    tiny(folder)


def work(folder):
    real = Diffusion.draw
    Diffusion.draw = killing.recorded(real, os.fspath(folder / "order"))
    try:
        train_by_two({**tiny(folder), **STEADY}, folder / "changed", steps=2)
    finally:
        Diffusion.draw = real
