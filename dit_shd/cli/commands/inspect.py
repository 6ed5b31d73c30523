"""Show a model's attention: maps, similarity of heads, merge plans, alpha by layer and timestep; a page.

Its folder:

    index.html     the page, self-contained         maps_<layer>.png    maps of query tokens
    numbers.json   the numbers of the page          maps_whole, similarity, alpha_layers, alpha_timesteps.svg

Of a language model: maps of every head over the words of a text, similarity and alpha by layer:

    dit-shd inspect hub:openai-community/gpt2 data='{name: text, path: book.txt, document: line}'

Of a text-to-image pipeline or run, which image tokens attend to which words of a prompt:

    dit-shd inspect PIPELINE prompt="two digits: four and seven"
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import ClassVar

from dit_shd.analysis.inspect import InspectConfig, inspect, numbers, schedule_length, short_name
from dit_shd.analysis.inspect_prompt import PromptFindings, prompt_numbers
from dit_shd.analysis.inspect_text import TextFindings, text_numbers
from dit_shd.cli.commands import Command
from dit_shd.core.config import checked, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.lock import new_folder
from dit_shd.models.export import run_values
from dit_shd.reports.inspection_page import picture_files, write_inspect_page
from dit_shd.reports.prompt_inspection_page import write_prompt_inspection
from dit_shd.reports.text_inspection_page import text_pictures, write_text_inspection

NUMBERS, PAGE = "numbers.json", "index.html"


class Inspect(Command[InspectConfig]):
    """Show a model's attention."""

    config = InspectConfig
    words: ClassVar = {"model": "MODEL"}
    words_help = "run, folder of a diffusers transformer or a language model, hub:OWNER/NAME, or asset:NAME"
    places: ClassVar = {"model": ("model", "MODEL")}

    def run(self, config: InspectConfig) -> None:
        out = inspect_to_folder(config)
        print(f"done: {out / PAGE}, its pictures and numbers.json beside it")


def inspect_to_folder(config: InspectConfig) -> Path:
    """Analyse a model and write the folder.

    Args:
        config: The model, what to analyse, and the folder.

    Returns:
        The folder.

    Raises:
        UserError: No such model, one whose attention cannot be recorded, or a folder that holds other files.
    """
    config = checked(config, "inspect")
    config.check(schedule_length(run_values(config.model)))
    out = config.out or Path(f"inspect_{short_name(config.model)}")
    _refuse_overwrite(out, config.force)
    findings = inspect(config)
    with new_folder(out, "dit-shd inspect") as part:
        print("drawing ...", file=sys.stderr)
        if isinstance(findings, TextFindings):
            values = {"settings": resolve(config), **text_numbers(findings)}
            pictures, write = text_pictures(findings), partial(write_text_inspection, findings)
        elif isinstance(findings, PromptFindings):
            values = {"settings": resolve(config), **prompt_numbers(findings)}
            pictures, write = {}, partial(write_prompt_inspection, findings)
        else:
            values = numbers(findings)
            pictures, write = picture_files(findings), partial(write_inspect_page, findings)
        for name, content in pictures.items():
            (part / name).write_bytes(content)
        files = sorted([NUMBERS, PAGE, *pictures])
        (part / NUMBERS).write_text(json.dumps(values | {"files": files}, indent=1), encoding="utf-8")
        write([NUMBERS, *sorted(pictures)], part / PAGE)  # last: it links to what is there
    return out


def _refuse_overwrite(out: Path, force: bool) -> None:
    """Refuse an existing folder; `force` replaces one that inspect wrote and that holds no other files."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        files = set(json.loads((out / NUMBERS).read_text(encoding="utf-8"))["files"])
        foreign = sorted(file.name for file in out.iterdir() if file.name not in files)
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{out}: exists and is not a folder of inspect; choose another out=FOLDER") from None
    if foreign:
        raise UserError(f"{out}: holds files that inspect did not write ({foreign[0]}); choose another out=FOLDER")
    if not force:
        raise UserError(f"{out}: exists already; say force=true to replace it, or choose another out=FOLDER")
