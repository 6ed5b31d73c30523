"""Write a model as a torch.export program and as ONNX, checked against it, with latencies beside the teacher's.

  dit-shd export runs/shd                    runs/shd/export/: model.pt2, model.onnx, export.json
  dit-shd export runs/shd onnx=false out=X

Both take latents [b,c,y,x], timesteps [b] and labels [b] of any b, and give the prediction; sampling is the caller's.
The number of classes is the label of no class (guidance); ONNX takes -1 for it, too, and torch refuses it.
"""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, checked, option
from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.lock import new_folder
from dit_shd.core.places import Place, is_here
from dit_shd.core.pretrained import config_of_run, model_folder
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.models import deployment, loading
from dit_shd.models.deployment import Runtime
from dit_shd.models.export import exported_step
from dit_shd.profiling.latency import median_seconds, one_thread
from dit_shd.reports.tables import plain_table

RECORD = "export.json"
BATCHES = (1, 16)


@dataclass(frozen=True)
class ExportConfig:
    """The model and its files."""

    run: Place = option(REQUIRED, "a run or a model")
    out: Path | None = option(None, "the folder; empty: export/ in the run folder")
    onnx: bool = option(True, "also write ONNX (needs the extra export: onnx, onnxscript, onnxruntime)")
    latency: bool = option(True, "measure latencies on one CPU thread, the teacher's of a run, too")
    force: bool = option(False, "replace an earlier export")


@dataclass(frozen=True)
class Measured:
    """A model in a runtime."""

    model: str
    runtime: str
    parameters: int
    difference: float | None
    """Largest difference from the model's outputs, relative to the largest; None for the model itself."""
    latency_ms: dict[int, float]
    """Batch size -> milliseconds for an image, the median of several passes on one CPU thread."""


class Export(Command[ExportConfig]):
    """Write a model as a torch.export program and as ONNX."""

    config = ExportConfig
    words: ClassVar = {"run": "RUN"}
    words_help = "a run or a model"
    places: ClassVar = {"run": ("model", "RUN")}

    def run(self, config: ExportConfig) -> None:
        """Export, check, measure, and print a table."""
        out, rows = export(config)
        headings = [("model", ""), ("runtime", ""), ("parameters", ""), ("difference", "")]
        headings += [(f"ms an image, batch {batch}", "") for batch in BATCHES] if config.latency else []
        print(plain_table(headings, [_cells(row) for row in rows]))
        print(f"one CPU thread of {platform.processor() or platform.machine()}; difference: of the largest output")
        files = ", ".join(sorted(file.name for file in out.iterdir()))
        print(f"done: {out}: {files}")


def export(config: ExportConfig) -> tuple[Path, list[Measured]]:
    """Export a model.

    Args:
        config: The model and its files.

    Returns:
        The folder, and what was measured.

    Raises:
        UserError: No class-conditional model, one that cannot be traced, a folder that is there already, or an
            exported model that differs.
    """
    config = checked(config, "export")
    out = _folder(config)
    if config.onnx:
        deployment.require_onnx()
    model = loading.load_conditional(config.run).eval()
    program = deployment.to_program(model)
    with new_folder(out, "dit-shd export") as part:
        torch.export.save(program, part / "model.pt2")
        rows = [*_torch(model, program, config)]
        if config.onnx:
            deployment.to_onnx(program, part / "model.onnx")
            runtime = deployment.onnx_runtime(part / "model.onnx")
            difference = deployment.difference(model, runtime, "model.onnx")
            rows.append(_measured(config, "model", model, "onnxruntime", runtime, difference))
        rows += _teachers(config)
        record = {**_weights(config.run, model), "rows": [asdict(row) for row in rows], "torch": torch.__version__}
        (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return out, rows


def _folder(config: ExportConfig) -> Path:
    """The folder to write, if it may be written."""
    run = Path(config.run)
    out = config.out or _beside(run)
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        earlier = (out / RECORD).is_file()
        if not (earlier and config.force):
            raise UserError(f"{out}: is there already; choose another out=FOLDER{' or say force=true' * earlier}")
        others = sorted({file.name for file in out.iterdir()} - {"model.pt2", "model.onnx", RECORD})
        if others:
            raise UserError(f"{out}: holds {others[0]}, too, so it is not replaced; choose another out=FOLDER")
    return out


def _beside(run: Path) -> Path:
    """Where an export goes by default: not into a student's folder, which the next step of its run replaces."""
    if not run.is_dir():
        return Path("export")
    of_run = (run.absolute().parent / RUN_CONFIG).is_file() and (run / "config.json").is_file()
    return run.absolute().parent / f"export_{run.absolute().name}" if of_run else run / "export"


def _weights(run: str, model: nn.Module) -> dict[str, Any]:
    """Which weights these are: a run that goes on has others afterwards."""
    folder = model_folder(Path(run))
    step = None if folder is None else exported_step(folder)
    return {"run": run, "step": step, "model_sha256": sha256_of_tensors(model)}


def _torch(model: nn.Module, program: torch.export.ExportedProgram, config: ExportConfig) -> Iterator[Measured]:
    """The model itself, and its program."""
    eager = deployment.torch_runtime(deployment.Forward(model).eval())
    yield _measured(config, "model", model, "torch", eager, None)
    runtime = deployment.torch_runtime(program.module())
    difference = deployment.difference(model, runtime, "model.pt2")
    yield _measured(config, "model", model, "torch.export", runtime, difference)


def _teachers(config: ExportConfig) -> Iterator[Measured]:
    """The teachers of a run, where they are on this machine and can be called in the same way."""
    file = config_of_run(config.run) if config.latency else None
    teacher = None if file is None else read_yaml(file).get("teacher")
    for name, place in (teacher if isinstance(teacher, dict) else {"teacher": teacher} if teacher else {}).items():
        if not is_here(place, "model"):
            continue
        model = loading.load(place).eval()
        if loading.why_not_conditional(model) is None:
            runtime = deployment.torch_runtime(deployment.Forward(model).eval())
            yield _measured(config, name, model, "torch", runtime, None)


def _measured(
    config: ExportConfig, name: str, model: nn.Module, runtime_name: str, runtime: Runtime, difference: float | None
) -> Measured:
    latency: dict[int, float] = {}
    for batch in BATCHES if config.latency else ():
        inputs = deployment.inputs_for(model, batch)
        with one_thread():
            latency[batch] = 1e3 * median_seconds(lambda inputs=inputs: runtime(inputs)) / batch
    return Measured(name, runtime_name, sum(p.numel() for p in model.parameters()), difference, latency)


def _cells(row: Measured) -> list[str]:
    difference = "" if row.difference is None else f"{row.difference:.1g}"
    millions = f"{row.parameters / 1e6:.2f} M"
    return [row.model, row.runtime, millions, difference, *(f"{ms:.2f}" for ms in row.latency_ms.values())]
