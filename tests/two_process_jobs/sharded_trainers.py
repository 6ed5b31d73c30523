"""A step of a Trainer of transformers with SHD, student and teacher in slices of FSDP2.

accelerate offers FSDP on accelerators alone, so its state is set by hand after the trainer is made: what wraps the
student, gathers and reduces is the same.
"""

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from small_trainers import distillers, models, samples, trainer_of
from torch.distributed.fsdp import fully_shard

from dit_shd import SHD
from dit_shd.integrations.trainers import add_shd
from two_process_jobs import say


def prepare(folder):
    want, _ = distillers(*models(), samples(), weight=2.0)
    torch.save(want, folder / "want.pt")


def with_fsdp2(trainer, block):
    """A trainer that shards its model by blocks, as `fsdp=True` makes one on a GPU."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[block],
        state_dict_type="FULL_STATE_DICT", cpu_ram_efficient_loading=False,
    )  # fmt: skip
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True
    return trainer


def sharded(teacher):
    for layer in teacher.model.layers:
        fully_shard(layer)
    return fully_shard(teacher)


def work(folder):
    before = PartialState().distributed_type
    student, teacher = models()
    weights = {name: p.detach().clone() for name, p in student.named_parameters()}
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = with_fsdp2(trainer_of(student, samples(), folder / "run", **options), "GPT2Block")
    add_shd(trainer, SHD(weight=2.0), sharded(teacher))
    trainer.train()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole, in the first process
    blocks = [*trainer.model_wrapped.transformer.h, *teacher.model.layers]
    kinds = sorted({type(p).__name__ for block in blocks for p in block.parameters()})
    if trainer.accelerator.is_main_process:
        torch.save({name: w - state[name] for name, w in weights.items()}, folder / "gradient.pt")
    say(folder, kinds, [row["shd"] for row in trainer.state.log_history if "shd" in row])
    PartialState._shared_state["distributed_type"] = before
