"""The pipeline behind embeddings and students: what of it a run must know without having it in memory.

`dit-shd encode` writes it into the folder of embeddings, training into the run and beside its students.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import write_text
from dit_shd.core.hashing import sha256
from dit_shd.core.json_files import read_object
from dit_shd.core.pretrained import PIPELINE

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
ENCODERS = ("text_encoder", "tokenizer")
"""What names of the components begin with that make embeddings of prompts."""
WEIGHTS = ".safetensors"
VARIANT = re.compile(r"\.(?P<variant>\w+)(?=(-\d+-of-\d+)?\.safetensors$)")
"""In the name of a file of weights, before the number of a shard or behind it."""
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data")
WORDS = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "spiece.model", "chat_template.jinja")
"""Files of a tokenizer that decide on tokens."""
NOT_OF_TOKENS = frozenset(
    {
        *("is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash", "cache_dir"),
        *("transformers_version", "tokenizer_file", "special_tokens_map_file", "processor_class"),
    }
)
"""Keys of a tokenizer's settings that say how it was opened and by what."""


@dataclass(frozen=True)
class PipelineRecord:
    """A pipeline of diffusers without its weights."""

    pipeline: str
    """Its folder or hub:OWNER/NAME, as given to `dit-shd encode`."""
    pipeline_class: str
    transformer_class: str
    text_sha256: str
    """Of the text encoders' tensors and the tokenizers' files."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Its config."""
    adapter: str | None = None
    """The name of somebody's own adapter; None for the one of the transformer's class."""
    text_tokens: int | None = None
    """Tokens of a prompt; None for the pipeline's default."""
    size: tuple[int, int] | None = None
    """Height and width of the images in pixels; of several sizes those that most have."""
    sizes: tuple[tuple[int, int], ...] = ()
    """All heights and widths of images of buckets; empty where `size` is the only one."""
    guidance: float | None = None
    """The scale that a guidance-distilled student was given; None where it is given none."""

    @property
    def is_local(self) -> bool:
        """Whether the pipeline is a folder of somebody's machine."""
        return not self.pipeline.startswith("hub:")

    @property
    def title(self) -> str:
        """hub:OWNER/NAME, or the folder's name alone: where it lies is nobody else's business."""
        return Path(self.pipeline).name if self.is_local else self.pipeline

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> "PipelineRecord":
        """The record in the content of a file.

        Raises:
            ValueError, TypeError: it is none.
        """
        record = cls(**values)
        if record.size is not None:
            record = replace(record, size=(int(record.size[0]), int(record.size[1])))
        record = replace(record, sizes=tuple((int(height), int(width)) for height, width in record.sizes))
        texts = (record.pipeline, record.pipeline_class, record.transformer_class, record.text_sha256)
        if not all(isinstance(text, str) for text in texts) or not isinstance(record.scheduler, dict):
            raise ValueError("a name is no text, or the scheduler's config is no mapping")
        if not isinstance(record.guidance, int | float | None):
            raise ValueError("a guidance that is no number")
        return record

    @property
    def words_of_sizes(self) -> str:
        """The sizes of its images, as a sentence has them; empty where none is known."""
        sizes = self.sizes or ((self.size,) if self.size is not None else ())
        *others, last = [f"{height} x {width}" for height, width in sizes] or [""]
        return f"{', '.join(others)} and {last}" if others else last

    def values(self) -> dict[str, Any]:
        """The record as JSON values."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_text(folder / PIPELINE, json.dumps(self.values(), indent=1) + "\n")


def read_record(folder: Path) -> PipelineRecord | None:
    """The record in a folder; None where there is none.

    Raises:
        UserError: The file is no record.
    """
    file = folder / PIPELINE
    if not file.is_file():
        return None
    try:
        return PipelineRecord.of_values(json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(f"{file}: not written by dit-shd ({error_line(error, 100)})") from error


def read_index(folder: Path) -> dict[str, Any]:
    """The model_index.json of a pipeline's folder.

    Raises:
        UserError: There is none, or it is none of a pipeline with a transformer.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        transformer = index["transformer"][1]
        if transformer is None:
            alone = (index.get("transformer_2") or [None])[0] is not None
            raise ValueError("a transformer_2 alone, which is not supported" if alone else "none")
        if not isinstance(index["_class_name"], str) or not isinstance(transformer, str):
            raise ValueError("its classes are no texts")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: wanted the folder of a pipeline of diffusers, found no {INDEX} in it") from error
    except Exception as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error_line(error, 100)
        raise UserError(f"{folder}/{INDEX}: wanted a pipeline with a transformer, found {reason}") from error
    return index


def text_digest(folder: Path) -> str:
    """sha256 of all that makes embeddings of prompts in a pipeline's folder; nothing is held in memory.

    Tensors count by name, type, shape and content, however they are divided into files; a tokenizer's settings by what
    they say of tokens, however they are written.
    """
    return text_digests(folder)[0]


def text_digests(folder: Path) -> tuple[str, ...]:
    """`text_digest`, and what it was in records of before: tokenizers' settings byte by byte; see there."""
    meant, written = hashlib.sha256(), hashlib.sha256()
    for part in text_parts(folder):
        lines = [part.name, *_tensors(part)]
        words = [name for name in WORDS if (part / name).is_file()]
        meant.update("".join([*lines, *(f"{name} {_words_digest(part / name)}" for name in words)]).encode())
        written.update("".join([*lines, *(f"{name} {sha256(part / name)}" for name in words)]).encode())
    return tuple(dict.fromkeys([meant.hexdigest(), written.hexdigest()]))


def _words_digest(file: Path) -> str:
    """sha256 of a tokenizer's file, of its settings as transformers writes them."""
    settings = read_object(file) if file.name == "tokenizer_config.json" else None
    if settings is None:
        return sha256(file)
    kept = {key: value for key, value in settings.items() if key not in NOT_OF_TOKENS}
    text = json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def text_parts(folder: Path) -> list[Path]:
    """The folders of the text encoders and tokenizers in a pipeline's folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.startswith(ENCODERS))


def weight_files(folder: Path) -> list[Path]:
    """A folder's safetensors files that are opened: no variant, as model.fp16.safetensors, where there are others."""
    return [folder / name for name in opened_weights(path.name for path in folder.iterdir())]


def opened_weights(names: Iterable[str]) -> list[str]:
    """The names in a folder of the files of `weight_files`."""
    files = sorted(name for name in names if name.endswith(WEIGHTS))
    return [name for name in files if "." not in name.removesuffix(WEIGHTS)] or files


def only_variant(folder: Path) -> str | None:
    """The variant, as fp16, of a folder's weights that are opened; None where they are of none.

    Raises:
        UserError: They are of several.
    """
    matches = [VARIANT.search(path.name) for path in weight_files(folder)]
    variants = sorted({match["variant"] for match in matches if match is not None})
    if len(variants) > 1:
        raise UserError(f"{folder}: holds weights of several variants ({', '.join(variants)}); leave those of one")
    return variants[0] if variants else None


def unopened(folder: str, names: list[str]) -> list[str]:
    """The names in a folder of weights that nobody opens: pickles, those of other frameworks, variants."""
    opened = {path.name for path in weight_files(Path(folder))}
    return [name for name in names if name.endswith((WEIGHTS, *OTHER_WEIGHTS)) and name not in opened]


def _tensors(folder: Path) -> list[str]:
    """Name, type, shape and sha256 of every tensor in a folder's safetensors files."""
    from safetensors import safe_open

    lines = []
    for file in weight_files(folder):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                data = tensors.get_tensor(name)
                content = data.reshape(-1).view(torch.uint8).numpy().data if data.numel() else b""
                lines.append(f"{name} {data.dtype} {list(data.shape)} {hashlib.sha256(content).hexdigest()}")
    return sorted(lines)
