"""A step of a Trainer of transformers with SHD, in two micro batches of each process."""

import torch
from small_trainers import distillers, gradient_of, models, samples, trainer_of

from dit_shd import SHD
from dit_shd.integrations.trainers import add_shd
from two_process_jobs import say


def prepare(folder):
    want, logs = distillers(*models(), samples(), weight=2.0)
    torch.save((want, float(logs["shd"])), folder / "want.pt")


def work(folder):
    student, teacher = models()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = trainer_of(student, samples(), folder / "run", **options)
    add_shd(trainer, SHD(weight=2.0), teacher)
    gradients = {name.removeprefix("module."): g for name, g in gradient_of(trainer).items()}
    torch.save(gradients, folder / f"gradient_{trainer.accelerator.process_index}.pt")
    shd = trainer.state.log_history[0]["shd"]
    say(folder, trainer.accelerator.num_processes, options["gradient_accumulation_steps"], shd)
