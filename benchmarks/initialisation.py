"""A student that begins with its teacher's weights against one that begins with random ones, on the digits.

    python benchmarks/initialisation.py [--steps 200] [--seeds 3] [--lr 1e-2]

Trains the student of configs/digits_shd.yaml (half the heads, half the width) for some steps and looks, on the way, at
the noise loss of its averaged weights on the 500 held-out digits, at noise and timesteps that are the same for all:
mean squared error, no min-SNR weight, every label given. Mean and standard deviation over training seeds.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from _measure import header

from dit_shd.core.config import make
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.initialisation.initialise import Initialisation
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES
from dit_shd.tasks.diffusion import Diffusion, NoisyBatch
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer

SIDES = {
    "random": Initialisation(),
    "pick": Initialisation(weights="teacher", heads="pick"),
    "merge": Initialisation(weights="teacher", heads="merge"),
    "first": Initialisation(weights="teacher", channels="first"),
    "unfitted": Initialisation(weights="teacher", calibration=0),
}
"""pick and merge are the option's two ways with heads; first keeps the first channels; unfitted measures nothing."""


TASK = Diffusion(label_dropout=0.0, mask_ratio=None, min_snr_gamma=None)


def held_out(model: torch.nn.Module, count: int = 500) -> NoisyBatch:
    """The validation digits, each at a timestep of its own, for models like this one."""
    data = DATASETS.build(Plugin("digits", {"split": "validation"}))
    TASK.use(data, model)
    return TASK.draw(Draws(2026, 0, range(count), count))[0]


@torch.no_grad()
def noise_loss(model: torch.nn.Module, batch: NoisyBatch) -> float:
    return TASK.losses(TASK.predict(model, batch), batch)["noise"].mean().item()


def averaged(trainer: Trainer) -> torch.nn.Module:
    """The student that would be sampled from now."""
    student = FAMILIES.build(trainer.config.student, "student")
    student.load_state_dict(trainer.state.averages.tensors(), strict=False)
    return student.eval()


def curve(config: TrainConfig, at: list[int], batch: NoisyBatch) -> list[float]:
    """The loss after each of some numbers of steps."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer.from_config(replace(config, run=Path(folder) / "run"))
        found = {0: noise_loss(averaged(trainer), batch)}
        for step in trainer.run_steps():
            if step.number in at:
                found[step.number] = noise_loss(averaged(trainer), batch)
    return [found[number] for number in at]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200, help="training steps; the learning rate decays to 0 in them")
    options.add_argument("--seeds", type=int, default=3, help="training seeds")
    options.add_argument("--lr", type=float, help="learning rate, instead of the config's")
    options.add_argument("--sides", nargs="+", default=["random", "pick", "merge"], choices=list(SIDES))
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    print(header(), f"{args.threads} thread(s)", flush=True)

    config = make(TrainConfig, read_yaml(Path(__file__).parents[1] / "configs" / "digits_shd.yaml"))
    optimizer = config.optimizer if args.lr is None else replace(config.optimizer, lr=args.lr)
    config = replace(config, steps=args.steps, optimizer=optimizer, checkpoint_every=args.steps)
    at = [number for number in (0, 10, 30, 60, 100, 150, 200, 300, 600) if number < args.steps] + [args.steps]
    teacher = loading.load(config.teacher or "").eval()
    batch = held_out(teacher)
    print(f"teacher: {noise_loss(teacher, batch):.4f}; steps {at}", flush=True)
    curves: dict[str, list[list[float]]] = {side: [] for side in args.sides}
    for seed in range(args.seeds):
        for side, found in curves.items():
            found.append(curve(replace(config, seed=seed, initialisation=SIDES[side]), at, batch))
            print(f"seed {seed}, {side}: " + " ".join(f"{loss:.4f}" for loss in found[-1]), flush=True)
    print(f"\n| steps | {' | '.join(args.sides)} |\n|---|{'---|' * len(args.sides)}")
    for i, number in enumerate(at):
        cells = [_cell([losses[i] for losses in found]) for found in curves.values()]
        print(f"| {number} | {' | '.join(cells)} |")


def _cell(losses: list[float]) -> str:
    spread = f" ({statistics.stdev(losses):.4f})" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.4f}{spread}"


if __name__ == "__main__":
    main()
