"""Samples of a student while it trains: what is there of another attempt."""

import numpy as np
import torch
from small_runs import STUDENT

from dit_shd.diffusion.sample_evaluation import SampleEvaluation
from dit_shd.models.families.mdt import MDTv2


def test_images_of_other_weights_are_drawn_again(tmp_path):
    """A step that is taken again may end in others; an image file without a record is of nobody knows which."""
    torch.manual_seed(0)
    student = MDTv2(**{k: v for k, v in STUDENT.items() if k != "name"}).eval()
    evaluation, file = SampleEvaluation(count=3, steps=2, keep=True), tmp_path / "evaluations" / "step_00000002.npz"

    def images() -> np.ndarray:
        evaluation.run(student, tmp_path, 2)
        return np.load(file)["arr_0"]

    before, written = images(), file.stat().st_mtime_ns
    assert np.array_equal(images(), before) and file.stat().st_mtime_ns == written
    with torch.no_grad():
        for parameter in student.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    after = images()
    assert not np.array_equal(after, before)
    parts, written = tmp_path / "evaluations" / f"{file.name}.parts", file.stat().st_mtime_ns
    parts.mkdir()  # as a kill leaves it while the files are moved to their places
    (parts / "settings.json").write_text(file.with_suffix(".json").read_text())
    for suffix in (".png", ".npz"):
        file.with_suffix(suffix).rename(parts / f"merged{suffix}")
    (parts / "merged").touch()
    assert np.array_equal(images(), after) and file.stat().st_mtime_ns == written
    np.savez(file, arr_0=before)
    file.with_suffix(".json").unlink()
    assert np.array_equal(images(), after)
