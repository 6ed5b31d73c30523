"""SHD in TRL's distillation trainers: a GPT-2 with 4 heads teaches one with 2 on its own texts, in two ways.

    pip install ".[language]"
    python examples/distil_gpt2.py [--steps 12]

gkd: GKDTrainer (arXiv 2306.13649), half of the texts the student's own. minillm: the reverse KL of MiniLLM (arXiv
2306.08543) on the student's own texts, by DistillationTrainer with beta 1; TRL has no trainer with MiniLLM's
teacher-mixed sampling and length normalisation. Tiny models, bytes and sums, so that it runs in a minute on a CPU.
With real models: --teacher openai-community/gpt2-xl --student openai-community/gpt2 --tokenizer openai-community/gpt2
--dolly --out runs. --dolly takes Dolly's 12,500 training instructions (the split of configs/language/dolly_*.yaml), or
those of a JSON-lines file of its format (--dolly FILE --counts 80 10 10), but for prompts of more than twice --tokens;
--out keeps both students, and `dit-shd rouge runs/gkd runs/minillm sets=...` scores them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from dit_shd import SHD
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.tokenizer import ByteTokenizer
from dit_shd.integrations.trainers import add_shd

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a: ' }}{% endif %}"
)
"""u: 3 + 4 =, a: 7"""


def tokenizer_of(name: str | None) -> Any:
    """A tokenizer of the hub, or bytes, with a chat template and padding on the left."""
    if name is None:
        with tempfile.TemporaryDirectory() as folder:
            ByteTokenizer().save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    return tokenizer


def model_of(name: str | None, heads: int, tokenizer: Any, positions: int) -> Any:
    """A model of the hub, or a tiny GPT-2 with random weights."""
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name, attn_implementation="sdpa", dtype=torch.float32)
    torch.manual_seed(heads)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape = {"n_embd": 8 * heads, "n_layer": 2, "n_head": heads, "n_positions": positions, "vocab_size": len(tokenizer)}
    return GPT2LMHeadModel(GPT2Config(**shape, **ends, attn_implementation="sdpa"))


def sums(count: int) -> list[dict[str, Any]]:
    """Questions and answers."""
    pairs = [(i % 10, (7 * i + 3) % 10) for i in range(count)]
    return [{"user": f"{a} + {b} =", "assistant": str(a + b)} for a, b in pairs]


def dolly(path: str, counts: list[int], tokenizer: Any, most: int) -> list[dict[str, Any]]:
    """Instructions and responses of Dolly's training part whose prompts have `most` tokens or fewer."""
    options = {"column": "response", "prompt": "{instruction}\n{context}", "counts": counts}
    text: Any = DATASETS.build(Plugin("text", {"path": path, "pack": False, **options}), "data")
    rows = [{"user": each.prompt, "assistant": each.text} for each in text.documents]
    fitting = [row for row in rows if len(tokenizer(row["user"])["input_ids"]) <= most]
    print(f"dolly: {len(fitting)} of {len(rows)} instructions have a prompt of {most} tokens or fewer")
    return fitting


def gkd(
    models: tuple[Any, Any], tokenizer: Any, data: list[dict[str, Any]], common: dict[str, Any], tokens: int
) -> Any:
    """Half of the texts are the data's, half the student's own."""
    rows = [{"messages": [{"role": role, "content": text} for role, text in row.items()]} for row in data]
    arguments = GKDConfig(**common, lmbda=0.5, beta=0.5, max_new_tokens=tokens, max_length=4 * tokens)
    student, teacher = models
    return GKDTrainer(
        model=student, teacher_model=teacher, args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip


def minillm(
    models: tuple[Any, Any], tokenizer: Any, data: list[dict[str, Any]], common: dict[str, Any], tokens: int
) -> Any:
    """All texts are the student's own, and the divergence is the reverse KL."""
    rows = [{"prompt": [{"role": "user", "content": row["user"]}]} for row in data]
    arguments = DistillationConfig(**common, beta=1.0, max_completion_length=tokens)
    student, teacher = models
    return DistillationTrainer(
        model=student, teacher_model=teacher, args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip


def arguments_of(folder: str, steps: int, lr: float) -> dict[str, Any]:
    """Arguments of both trainers."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": 8,
        "learning_rate": lr,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    for name in ("teacher", "student", "tokenizer"):
        parser.add_argument(f"--{name}", help="on the hub, or a folder; a tiny one of its own if left out")
    parser.add_argument("--dolly", nargs="?", const="hub:databricks/databricks-dolly-15k", help="Dolly, or its file")
    parser.add_argument("--counts", type=int, nargs=3, default=[12500, 1000, 500], help="of training, validation, test")
    parser.add_argument("--tokens", type=int, help="of a response at most: 8, of Dolly 128")
    parser.add_argument("--out", type=Path, help="folder for both students")
    args = parser.parse_args()
    tokenizer = tokenizer_of(args.tokenizer)
    tokens = args.tokens or (8 if args.dolly is None else 128)
    data = sums(64) if args.dolly is None else dolly(args.dolly, args.counts, tokenizer, 2 * tokens)
    for way in (gkd, minillm):
        teacher, student = (
            model_of(name, h, tokenizer, 8 * tokens) for name, h in ((args.teacher, 4), (args.student, 2))
        )
        with tempfile.TemporaryDirectory() as folder:
            trainer = way((student, teacher), tokenizer, data, arguments_of(folder, args.steps, args.lr), tokens)
            add_shd(trainer, SHD(weight=1.0, layers="proportional"))
            trainer.train()
        rows = [row for row in trainer.state.log_history if "shd" in row]
        print(f"{way.__name__}: loss {rows[0]['loss']:.4f} -> {rows[-1]['loss']:.4f}, ", end="")
        print(f"shd {rows[0]['shd']:.5f} -> {rows[-1]['shd']:.5f}")
        if args.out is not None:
            for part in (student, tokenizer):
                part.save_pretrained(args.out / way.__name__)


if __name__ == "__main__":
    main()
