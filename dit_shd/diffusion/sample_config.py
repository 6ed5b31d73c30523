"""Every key of sampling, with its default and its meaning."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from dit_shd.core.config import cast, check_ranges, option
from dit_shd.core.errors import UserError
from dit_shd.core.places import MODEL, Place
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models.prediction import NOISE

NOISE_SOLVERS, VELOCITY_SOLVERS = ("ddpm", "ddim", "dpm++"), ("euler", "heun")
"""By what a model predicts; the first of each is what `auto` stands for."""
COUNT = 50_000
"""Images, where nothing else is said."""
EACH = 0
"""As a count: one image for each prompt."""
GUIDANCE = "guidance"
"""The scale w of u + w (c - u), 1 for none; among arguments of a call, what the pipeline's adapter makes of it."""
OF_CALL = {"steps": "num_inference_steps", GUIDANCE: GUIDANCE}
"""Keys that are arguments of a pipeline's call, and their names there."""
TWICE = {"steps": ("num_inference_steps",), GUIDANCE: ("guidance_scale", "true_cfg_scale")}
"""Those keys, and arguments of a call that say the same."""
OF_CLASSES = (
    "solver", "guidance_schedule", "guidance_power", "guidance_tolerance", "guided_channels", "labels", "rounding",
    "diffusion_steps", "shift", "vae", "compile",
)  # fmt: skip
"""Keys of class-conditional models alone."""
OF_PROMPTS = "pipeline", "call"
"""Keys of text-to-image models alone."""


@dataclass(frozen=True)
class SampleConfig:
    """What to sample and how; the defaults are MDT's protocol for reported figures."""

    run: Place = option("", MODEL, heading="What is sampled")
    count: int | None = option(None, "images; empty: as many as labels are given, else 50,000", range=(1, 1e8))
    steps: int = option(250, "sampling steps, evenly spaced over the schedule", range=(1, 1e6))
    solver: Literal["auto", "ddpm", "ddim", "dpm++", "euler", "heun"] = option(
        "auto",
        "of noise: ddpm (ancestral), ddim (eta 0), or diffusers' DPM-Solver++; of velocity: euler or heun; auto: the "
        "first that fits the model",
    )
    guidance: float = option(3.8, "classifier-free guidance scale; 1 for none", range=(0, 1e38), heading="Guidance")
    guidance_schedule: Literal["power-cosine", "constant"] = option(
        "power-cosine", "MDT's ramp, or the scale throughout"
    )
    guidance_power: float = option(
        4.0, "exponent of the power-cosine ramp; 0.01 with guidance 4 for pretty pictures", range=(0, 1e6)
    )
    guidance_tolerance: float = option(
        1e-3,
        "where |weight - 1| is within this, no guidance and half of the network's work; 0 for guidance everywhere",
        range=(0, 1e6),
    )
    guided_channels: int | None = option(
        3, "noise channels that are guided (the public code's 3); empty for all", range=(0, 1e6)
    )
    labels: Literal["random", "balanced"] | int | list[int] | str = option(
        "random",
        "class of image i: drawn, or in turn, of the classes that the training saw; or 3,3,7, or names as cat,dog: "
        "these in turn",
    )
    rounding: Literal["floor", "nearest"] = option(
        "floor", "to uint8: floor (MDT) or nearest (DiT); it moves FID", heading="Images and files"
    )
    seed: int = option(0, "image i is a function of the seed and i")
    batch_size: int = option(64, "images in one batch of one process", range=(1, 1e6))
    diffusion_steps: int = option(1000, "steps of the schedule the model was trained with; a run folder knows its own")
    shift: float | None = option(
        None,
        "of euler and heun: alpha of SD3's shift of the steps, above 1 more of them in noise; empty: the run's, or 1",
        range=(1e-3, 1e3),
    )
    vae: Place | None = option(
        "auto",
        "autoencoder that decodes: auto (the run's, none for pixels), a folder, hub:OWNER/NAME, pixels, or null to "
        "keep latents as they are (float32 [n,c,y,x])",
    )
    precision: Literal["no", "bf16"] = option("no", "autocast of the network")
    compile: bool = option(False, "torch.compile the network's blocks (needs a compiler; slow at first, then faster)")
    prompts: Path | None = option(
        None,
        "of text-to-image models: text file with a prompt a line, folder of latents with captions, or the .json beside "
        "other samples; image i is of prompt i, then from the first",
    )
    pipeline: Place | None = option(None, "of text-to-image models: its folder or hub:OWNER/NAME; empty: the run's")
    call: dict[str, Any] = option(
        {}, "more arguments of the pipeline's own call: {num_inference_steps: 28, guidance_scale: 5, height: 512, ...}"
    )
    out: Place | None = option(
        None, "the npz, or FOLDER/ for png; empty: samples_<count>_seed<seed>.npz in the run folder"
    )
    force: bool = option(False, "replace an npz that is there already, with its .json and its grid")

    @classmethod
    def migrated(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Values for prompts: steps and guidance are arguments of the pipeline's call, whose defaults are its own.

        Args:
            values: From the command line.

        Raises:
            UserError: A key that is of class-conditional models alone, or without prompts of text-to-image ones.
        """
        if values.get("prompts") is None:
            for key in OF_PROMPTS:
                if values.get(key):
                    raise UserError(
                        f"{key}: is of text-to-image models, sampled with prompts=FILE; leave it out, or give prompts= "
                        "(a class-conditional model takes steps=, guidance=, solver=)"
                    )
            return values
        for key in OF_CLASSES:
            if key in values:
                raise UserError(f"{key}: is for class-conditional models; a pipeline is given its arguments by call=")
        given = cast(dict[str, Any], values.get("call") or {}, "call")
        call = {name: values[key] for key, name in OF_CALL.items() if key in values}
        for key, names in TWICE.items():
            for name in names:
                if key in values and name in given:
                    raise UserError(f"{key}: is given by call.{name}, too; leave one of them out")
        kept = {key: value for key, value in values.items() if key not in OF_CALL}
        return {**kept, "call": {**call, **given}, "count": values.get("count", EACH)}

    @property
    def images(self) -> int:
        """The number of images."""
        return COUNT if self.count is None else self.count

    @property
    def label_list(self) -> list[int] | None:
        """The classes that are taken in turn, where they are given one by one."""
        return [self.labels] if isinstance(self.labels, int) else self.labels if isinstance(self.labels, list) else None

    @property
    def label_names(self) -> list[str] | None:
        """The names of classes that are taken in turn, where they are given by names."""
        if not isinstance(self.labels, str) or self.labels in ("random", "balanced"):
            return None
        return [name.strip() for name in self.labels.split(",") if name.strip()]

    def counted(self) -> Self:
        """The config with the number of images written out."""
        given = self.label_names or self.label_list
        return replace(self, count=len(given) if given and self.count is None else self.images)

    def of_prediction(self, prediction: str) -> Self:
        """The config with the solver named for a model that predicts `prediction`.

        Raises:
            UserError: The solver, or the shift, is one for models of another kind.
        """
        fitting = NOISE_SOLVERS if prediction == NOISE else VELOCITY_SOLVERS
        if self.solver != "auto" and self.solver not in fitting:
            kind = "velocities" if self.solver in VELOCITY_SOLVERS else "noise"
            raise UserError(
                f"solver: {self.solver} is for models that predict {kind}, and this one predicts {prediction}; wanted "
                f"{', '.join(fitting)} or auto"
            )
        if self.shift is not None and prediction == NOISE:
            raise UserError(
                f"shift: moves the steps of models that predict velocities, found {self.shift} for a model of noise"
            )
        return replace(self, solver=fitting[0] if self.solver == "auto" else self.solver)

    def check(self) -> None:
        """Refuse numbers that have no meaning.

        Raises:
            UserError: Naming the key, what was wanted and what was found.
        """
        check_ranges(self)
        if [] in (self.label_list, self.label_names):
            raise UserError("labels: wanted random, balanced or classes as 3,3,7, found none")
        Schedule.linear(self.diffusion_steps)  # refuses what is no schedule
        if self.solver in NOISE_SOLVERS and self.steps > self.diffusion_steps:
            raise UserError(f"steps: wanted 1 to {self.diffusion_steps}, found {self.steps}")
