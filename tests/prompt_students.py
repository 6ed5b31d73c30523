"""A text-to-image student as a run leaves it: its weights, and the record of the pipeline that its text is of."""

from pathlib import Path

import torch
from encoded_text import encode

from dit_shd.core.plugins import Plugin
from dit_shd.data import text_shards
from dit_shd.models.families import FAMILIES

PROMPTS = ["a thin seven", "two digits : four and seven", "a nine"]


def prompt_student(pipeline: Path, folder: Path) -> Path:
    """Write FOLDER/student, with half the heads, of a pipeline of 16 x 16 pixels and prompts of 8 tokens."""
    record = text_shards.read_index(encode(folder, pipeline, text_tokens=8)).record
    torch.manual_seed(3)
    made = FAMILIES.build(Plugin("diffusers", {"like": str(pipeline), "config": {"num_attention_heads": 2}}))
    made.save_pretrained(folder / "student")
    record.write(folder / "student")
    return folder


def prompt_file(folder: Path) -> Path:
    """Write a prompt a line."""
    file = folder / "prompts.txt"
    file.write_text("\n".join([*PROMPTS, ""]))
    return file
