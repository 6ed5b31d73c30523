"""Models for other runtimes: torch.export programs and ONNX files, checked against the model they are of."""

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.installation import require
from dit_shd.models.families.mdt import kept_biases
from dit_shd.models.prediction import NOISE, prediction_of
from dit_shd.models.shape import shape_of

Inputs = tuple[Tensor, Tensor, Tensor]
"""Latents [b,c,y,x], timesteps [b] and labels [b]."""
Runtime = Callable[[Inputs], Tensor]
NAMES = ("latents", "timesteps", "labels")
CHECKED = (1, 2, 5)
"""Batch sizes at which a program is compared with its model."""
TOLERANCE = 1e-4
"""Largest difference from the model's output, relative to its largest value."""


class Forward(nn.Module):
    """A class-conditional model as a function of three tensors, which gives one.

    Args:
        model: Whose forward takes latents, timesteps and class_labels.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """The prediction [b,c,y,x].

        Args:
            latents: Noisy [b,c,y,x].
            timesteps: The timesteps of each [b].
            labels: Class of each [b]; the number of classes stands for no class.
        """
        return self.model(latents, timesteps, class_labels=labels).sample


def inputs_for(model: nn.Module, images: int, seed: int = 0) -> Inputs:
    """Inputs of a model: noise, timesteps and classes.

    Args:
        model: For the sizes.
        images: b.
        seed: The seed of the noise.
    """
    shape, generator = shape_of(model), torch.Generator().manual_seed(seed)
    latents = torch.randn(images, *shape.latents, generator=generator)
    timesteps = torch.randint(0, 1000, (images,), generator=generator)
    labels = torch.randint(0, shape.classes + 1, (images,), generator=generator)
    return latents, timesteps if prediction_of(model) == NOISE else timesteps / 1000, labels


def to_program(model: nn.Module) -> torch.export.ExportedProgram:
    """The model as a torch.export program with a batch of any size.

    Args:
        model: On the CPU, in evaluation.

    Raises:
        UserError: Torch.export cannot trace it.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in NAMES)
    try:
        with (
            torch.no_grad(),
            quiet(),
            kept_biases(model, torch.float32),
        ):  # position biases as constants, for stock attention
            return torch.export.export(Forward(model).eval(), inputs_for(model, 3), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # the tracer's own kinds are many
        raise UserError(f"torch.export cannot trace {type(model).__name__}: {error_line(error, 300)}") from error


def to_onnx(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write a program as one ONNX file.

    Args:
        program: The program of to_program.
        file: Its name.

    Raises:
        UserError: The packages are not installed, or an operation has no counterpart in ONNX.
    """
    require_onnx()
    import onnx

    try:
        with torch.no_grad(), quiet():
            program_of_onnx = torch.onnx.export(
                program, (), input_names=NAMES, output_names=["prediction"], dynamo=True, verbose=False, optimize=True
            )
            assert program_of_onnx is not None
            program_of_onnx.save(str(file), external_data=False)
            onnx.checker.check_model(str(file))
    except Exception as error:  # the exporter's own kinds are many
        raise UserError(f"ONNX: {error_line(error, 300)}") from error


def require_onnx() -> None:
    """Ask for the packages of ONNX.

    Raises:
        UserError: One is missing.
    """
    require(("onnx", "onnxscript", "onnxruntime"), "export", "ONNX")


def onnx_runtime(file: Path) -> Runtime:
    """A file of to_onnx in onnxruntime on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(NAMES, inputs)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def torch_runtime(module: nn.Module) -> Runtime:
    """A module, called without gradients."""

    @torch.no_grad()
    def run(inputs: Inputs) -> Tensor:
        return module(*inputs)

    return run


def difference(model: nn.Module, runtime: Runtime, what: str) -> float:
    """The largest difference between a runtime's outputs and the model's, relative to the largest output.

    Args:
        model: The reference.
        runtime: What is compared with it, at several batch sizes.
        what: Its name, for the error.

    Raises:
        UserError: It is larger than TOLERANCE: the exported model is another one.
    """
    largest = 0.0
    reference = torch_runtime(Forward(model).eval())
    for images in CHECKED:
        inputs = inputs_for(model, images, seed=images)
        expected, given = reference(inputs), runtime(inputs)
        if expected.shape != given.shape:
            raise UserError(f"{what}: gives {list(given.shape)} where the model gives {list(expected.shape)}")
        error = float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not error <= TOLERANCE:  # nor NaN
            raise UserError(
                f"{what}: differs from the model by {error:.2g} of its largest output, allowed {TOLERANCE:g}"
            )
        largest = max(largest, error)
    return largest


@contextmanager
def quiet() -> Generator[None]:
    """Keep the exporter's remarks out of the terminal in the block."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
