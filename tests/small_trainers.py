"""A step of a Trainer of transformers on tiny language models, and the gradient that our own Distiller has for it."""

import os

import torch
import transformers
from accelerate.state import AcceleratorState
from language import GPT2, LLAMA, causal_lm

from dit_shd import SHD
from dit_shd.data.packing import PADDING
from dit_shd.distillation.distiller import Distiller
from dit_shd.tasks.language_modeling import LanguageModeling, TokenBatch

SAMPLES = 8


def samples(seed=0, length=12):
    """Tokens [8,n+1], and which of them are learned: prompts and padding of many lengths are not."""
    r = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 256, (SAMPLES, length + 1), generator=r)
    at = torch.arange(length + 1)
    begin = torch.randint(1, 5, (SAMPLES, 1), generator=r)
    end = torch.randint(7, length + 2, (SAMPLES, 1), generator=r)
    return tokens, (at >= begin) & (at < end), at < end


def batch_of(tokens, learned, real):
    """The same as a batch of our own task; a sequence's last token, which predicts nothing, takes no part."""
    documents = torch.where(real, 0, PADDING)
    targets = learned[:, 1:] & (documents[:, 1:] != PADDING)
    rows = learned[:, :-1] & real[:, 1:]
    weights = (mask.float() / mask.float().mean() for mask in (targets, rows))
    indices = torch.arange(len(tokens))
    return TokenBatch("plain", 0, indices, tokens, *weights, indices, None)


def models(student=GPT2, teacher=LLAMA):
    few = {"n_head": 2} if student is GPT2 else {"num_attention_heads": 2, "num_key_value_heads": 1}
    return causal_lm({**student, **few}, seed=1).network, causal_lm(teacher).network


def trainer_of(student, data, folder, cls=None, **options):
    """One step of gradient descent at rate 1, so that weights tell the gradient."""
    AcceleratorState._reset_state()  # in which an earlier trainer's precision stays, as here:
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    tokens, learned, real = data
    rows = [
        {"input_ids": t, "attention_mask": m.long(), "labels": torch.where(kept, t, -100)}
        for t, kept, m in zip(tokens, learned, real)
    ]
    options = {"per_device_train_batch_size": SAMPLES, "max_steps": 1, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, report_to=[], save_strategy="no", logging_steps=1, remove_unused_columns=False,
        disable_tqdm=True, **options,
    )  # fmt: skip
    return (cls or transformers.Trainer)(model=student, args=arguments, train_dataset=rows)


def gradient_of(trainer):
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}


def distillers(student, teacher, data, weight):
    distiller = Distiller(LanguageModeling(), student, [SHD(weight=weight)])
    loss, logs = distiller(batch_of(*data), teacher)
    learning = {name: p for name, p in student.named_parameters() if p.requires_grad}
    return dict(zip(learning, torch.autograd.grad(loss, list(learning.values())))), logs
