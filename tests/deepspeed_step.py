"""A step of a Trainer of transformers with SHD under DeepSpeed's ZeRO: `torchrun ... FOLDER STAGE`, on a CPU."""

import os
import sys
from pathlib import Path

import torch

os.environ["DS_ACCELERATOR"] = "cpu"

from small_trainers import distillers, models, samples, trainer_of

from dit_shd import SHD
from dit_shd.integrations.trainers import add_shd


def main(folder, stage):
    student, teacher = models()  # before the trainer is there: ZeRO-3 would make both in slices
    want, _ = distillers(*models(), samples(), weight=2.0)
    config = {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
    }  # fmt: skip
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = trainer_of(student, samples(), folder / "run", deepspeed=config, **options)
    assert trainer.accelerator.num_processes == 2 and trainer.is_deepspeed_enabled
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    add_shd(trainer, SHD(weight=2.0), teacher)
    trainer.train()
    after = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole, in the first process
    if trainer.accelerator.is_main_process:
        torch.save(want, folder / "want.pt")
        torch.save({name: p - after[name].float() for name, p in before.items()}, folder / "gradient.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
