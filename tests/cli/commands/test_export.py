"""`dit-shd export`: programs that give what the model gives, at any batch size, and refusal of those that do not."""

import json

import pytest
import torch
import yaml

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.models import deployment
from dit_shd.models.loading import load


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes, teacher):
    from small_runs import values_of

    folder = tmp_path_factory.mktemp("export")
    (folder / "config.yaml").write_text(yaml.safe_dump(values_of(shapes, teacher, folder / "run")))
    assert main(["train", str(folder / "config.yaml"), "steps=1", "ema=0"]) == 0
    return folder / "run"


def test_a_run_becomes_a_program_and_onnx_with_the_teachers_latency_beside(run, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run)]) == 0
    rows = json.loads((run / "export" / "export.json").read_text())["rows"]
    assert [(row["model"], row["runtime"]) for row in rows] == [
        ("model", "torch"), ("model", "torch.export"), ("model", "onnxruntime"), ("teacher", "torch")
    ]  # fmt: skip
    assert all(row["difference"] <= deployment.TOLERANCE for row in rows[1:3])
    assert all(ms > 0 for row in rows for ms in row["latency_ms"].values())
    assert rows[3]["parameters"] > rows[0]["parameters"]
    model, runtime = load(run).eval(), deployment.onnx_runtime(run / "export" / "model.onnx")
    inputs = deployment.inputs_for(model, 7, seed=99)  # a batch size that was not exported
    with torch.no_grad():
        expected = deployment.Forward(model)(*inputs)
    torch.testing.assert_close(runtime(inputs), expected, rtol=1e-4, atol=1e-5)
    assert "onnxruntime" in capsys.readouterr().out
    assert main(["export", str(run)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_another_model_is_not_taken_for_the_exported_one(run, teacher):
    model, other = load(run).eval(), load(teacher).eval()
    assert deployment.difference(model, deployment.torch_runtime(deployment.Forward(model)), "same") == 0
    with pytest.raises(UserError, match="other: differs from the model by"):
        deployment.difference(model, deployment.torch_runtime(deployment.Forward(other)), "other")

    def nothing(inputs):
        return torch.full_like(deployment.torch_runtime(deployment.Forward(model))(inputs), torch.nan)

    with pytest.raises(UserError, match="nan: differs from the model by nan of its largest output"):
        deployment.difference(model, nothing, "nan")


def test_a_users_files_in_the_folder_are_not_deleted(run, tmp_path):
    out = tmp_path / "deployed"
    out.mkdir()
    (out / "export.json").write_text("{}")
    (out / "server.py").write_text("print()")
    assert main(["export", str(run), f"out={out}", "force=true"]) == 2
    assert (out / "server.py").is_file() and (out / "export.json").is_file()


def test_a_students_folder_keeps_nothing_that_training_would_replace(run, capsys):
    """And what is exported says of which weights and step it is; the teacher is measured as for the run."""
    assert main(["export", str(run / "student"), "onnx=false"]) == 0
    out = run / "export_student"
    assert f"done: {out}: export.json, model.pt2" in capsys.readouterr().out
    assert not (run / "student" / "export").exists()
    record = json.loads((out / "export.json").read_text())
    assert [row["model"] for row in record["rows"]] == ["model", "model", "teacher"]
    assert (record["step"], record["model_sha256"]) == (1, sha256_of_tensors(load(run / "student")))
    assert main(["train", str(run), "steps=2"]) == 0
    assert main(["export", str(run / "student"), "onnx=false", "latency=false", "force=true"]) == 0
    assert json.loads((out / "export.json").read_text())["step"] == 2


def test_a_program_takes_as_many_images_as_are_given(run):
    program = torch.export.load(run / "export" / "model.pt2").module()
    assert len(deployment.torch_runtime(program)(deployment.inputs_for(load(run), 4097))) == 4097
