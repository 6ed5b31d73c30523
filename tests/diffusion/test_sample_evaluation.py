"""Samples of a student while it trains: what is there of another attempt."""

import json

import numpy as np
import pytest
import torch
from evaluating import pictures
from small_runs import STUDENT

from dit_shd.core import plugins
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import CRC
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
    settings = json.loads(file.with_suffix(".json").read_text())
    del settings[CRC]
    (parts / "settings.json").write_text(json.dumps(settings))
    for suffix in (".png", ".npz"):
        file.with_suffix(suffix).rename(parts / f"merged{suffix}")
    (parts / "merged").touch()
    assert np.array_equal(images(), after) and file.stat().st_mtime_ns == written
    np.savez(file, arr_0=before)
    file.with_suffix(".json").unlink()
    assert np.array_equal(images(), after)


def test_figures_of_another_evaluator_are_not_taken(tmp_path, monkeypatch):
    """An evaluation whose figures were not logged yet; then the reference's file, or an option, is another one."""
    monkeypatch.setattr(plugins, "_trusted", {"evaluating"})
    torch.manual_seed(0)
    student = MDTv2(**{**{k: v for k, v in STUDENT.items() if k != "name"}, "sample_size": 28}).eval()
    np.savez(tmp_path / "reference.npz", pictures(6, seed=1))
    record = tmp_path / "evaluations" / "step_00000002.results.json"

    def figures(scale: float = 1.0, **evaluate) -> dict[str, float]:
        features = Plugin("evaluating.Scaled", {"scale": scale})
        values = {"metrics": ["frechet"], "page": False, "device": "cpu", **evaluate}
        options = {"reference": str(tmp_path / "reference.npz"), "features": features, "evaluate": values}
        return SampleEvaluation(count=4, steps=2, keep=True, **options).run(student, tmp_path, 2)

    first, written = figures(), record.stat().st_mtime_ns
    assert figures() == first and record.stat().st_mtime_ns == written
    assert figures(scale=2.0)["FD(scaled)"] == pytest.approx(4 * first["FD(scaled)"])
    np.savez(tmp_path / "reference.npz", pictures(6, seed=2))
    assert figures()["FD(scaled)"] != pytest.approx(first["FD(scaled)"], rel=1e-3)
    assert "KID(scaled)" in figures(metrics=["kid"])
