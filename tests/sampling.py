"""Settings of samplings for tests, and what they left."""

import numpy as np

from dit_shd.core.config import make
from dit_shd.diffusion.sample_config import SampleConfig

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


def config(teacher, tmp_path, **changes):
    values = dict(run=str(teacher), count=10, out=str(tmp_path / "s.npz"), **QUICK)
    return make(SampleConfig, {**values, **changes})


def arrays(out):
    with np.load(out, allow_pickle=False) as file:
        return file["arr_0"], file["arr_1"]
