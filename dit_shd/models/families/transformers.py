"""Causal language models of transformers, by config or from a folder; exports are loaded by AutoModelForCausalLM.

A folder of transformers, or a repository on the hub, has config.json, model*.safetensors and usually a tokenizer.
Nothing else is read: no pickle, and no code of the repository (auto_map).
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from dit_shd.core.errors import UserError, error_line, unknown
from dit_shd.core.installation import require
from dit_shd.core.places import Asset, HubName, Place, find
from dit_shd.core.pretrained import LIBRARY_WEIGHTS, READING, model_folder, of_hub, read_config
from dit_shd.models.blocks import blocks
from dit_shd.models.families import LibraryModel
from dit_shd.models.language_model import overridden
from dit_shd.models.shape import differing_heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

ATTENTION = "sdpa"
"""The implementation by scaled_dot_product_attention, whose maps can be captured."""
CAPPED = (
    "a {} caps its scores (attn_logit_softcapping), which scaled_dot_product_attention cannot; its maps cannot be "
    "captured. Wanted a model without, as gemma3, llama or gpt2"
)


class _Tokenizer(Protocol):
    """Of data: what a model is exported with."""

    begin: tuple[int, ...]
    end: int

    def save_pretrained(self, folder: str | Path) -> None:
        """As transformers has it."""
        ...


class CausalLM(LibraryModel, ConfigMixin):
    """A causal language model of transformers: tokens [b,n] to logits [b,n,k], computed by its `network`.

    Args:
        config: Of the model in transformers' keys: {model_type: llama, hidden_size: 512, ...}; defaults are the
            library's.
        vocab_size: Size of the vocabulary k; empty: the config's.
    """

    config_name = "config.json"
    card_tags, library = ("text-generation",), "transformers"
    opened_by = ('AutoModelForCausalLM.from_pretrained("FOLDER")',)

    @register_to_config
    def __init__(self, config: dict[str, object] | None = None, vocab_size: int | None = None):
        super().__init__()
        self.network: Any = _network({**(config or {}), **({} if vocab_size is None else {"vocab_size": vocab_size})})
        self.tokenizer: _Tokenizer | None = None
        """Exported with the weights, if there is one."""
        self.folder: Path | None = None
        """Where its weights were read, if they were."""

    @classmethod
    def from_options(
        cls,
        source: Place | None = None,
        pretrained: bool = True,
        config: dict[str, object] | None = None,
        vocab_size: int | None = None,
    ) -> Self:
        """Construct a model from its keys in YAML.

        Args:
            source: A folder of transformers or hub:OWNER/NAME, for its config; empty: `config` alone.
            pretrained: Whether to read the weights of `source`, too.
            config: Keys that override those of `source`.
            vocab_size: Size of the vocabulary; empty: the data's. A larger one in `config` counts more: embeddings may
                be padded.

        Raises:
            UserError: No such folder, keys of no model, or of one that the weights of `source` are not of.
        """
        if config:
            _check_keys(config, source)
            known = config.get("vocab_size")
            vocab_size = None if isinstance(known, int) and known >= (vocab_size or 0) else vocab_size
        if source is None:
            return cls(config=_unpadded({}, config), vocab_size=vocab_size)
        folder = folder_of(source)
        values = overridden(read_config(folder), config or {})
        if pretrained:
            size = values.get("vocab_size")
            if vocab_size is not None and isinstance(size, int) and size < vocab_size:
                raise UserError(f"student: {source} knows {size} tokens, the data {vocab_size}; tokenizer={source}")
            if config:
                _check_change(source, read_config(folder), values)
            return cls.of_folder(folder, values)
        return cls(config=_unpadded(values, config), vocab_size=vocab_size)

    def forward(self, *args: Any, **kwargs: Any) -> "CausalLMOutputWithPast":
        """The output of the model of transformers."""
        return self.network(*args, **kwargs)

    def enable_gradient_checkpointing(self, *_: Any, **__: Any) -> None:
        """Recompute blocks in the backward."""
        kind = "activation" if hasattr(self.network, "activation_checkpointing_enable") else "gradient"  # before 5.24
        getattr(self.network, f"{kind}_checkpointing_enable")({"use_reentrant": False})

    def save_pretrained(self, save_directory: str | PathLike[str], *_: Any, **__: Any) -> None:
        """Write a folder of transformers, with the tokenizer if there is one."""
        with _quiet():
            self.network.save_pretrained(save_directory)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(Path(save_directory))

    def give_tokenizer(self, tokenizer: _Tokenizer) -> None:
        """Take the tokenizer of the data, and let `generate` begin and end as it does.

        A config of the library names tokens of the library's, which are others in this vocabulary.
        """
        self.tokenizer = tokenizer
        for settings in (self.network.config, self.network.generation_config):
            known = settings.eos_token_id
            if tokenizer.end not in (known if isinstance(known, list) else [known]):
                settings.eos_token_id = tokenizer.end
            elif self.folder is not None:
                continue
            settings.bos_token_id = tokenizer.begin[0]
            if self.folder is None:
                settings.pad_token_id = None

    @classmethod
    def is_config(cls, values: dict[str, Any]) -> bool:
        """Whether a config.json is transformers': it names a model_type."""
        return isinstance(values.get("model_type"), str) and not {"_class_name", "architecture"} & values.keys()

    @classmethod
    def of_folder(cls, folder: Path, values: dict[str, Any]) -> Self:
        """The model of a folder of transformers; without memory, as dry runs have it, by its config alone."""
        import torch

        weights = sorted(file.name for file in folder.iterdir() if LIBRARY_WEIGHTS.fullmatch(file.name))
        if not weights:
            others = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".safetensors"))
            raise UserError(
                f"{folder}: wanted model.safetensors beside config.json, found {', '.join(others) or 'none'}"
            )
        without_memory = torch.get_default_device().type == "meta"
        with torch.device("meta"):
            model = cls(config=values)
        model.network, model.folder = model.network if without_memory else _read(folder, model.network), folder
        return model


def folder_of(source: str) -> Path:
    """The local folder of a model of transformers.

    Raises:
        UserError: There is none.
    """
    path = find(source, "model")
    if isinstance(path, Asset):
        raise UserError(f"{source}: no language model ships with dit_shd; wanted a folder or hub:OWNER/NAME")
    folder = of_hub(path) if isinstance(path, HubName) else model_folder(path)
    if folder is None or not CausalLM.is_config(read_config(folder)):
        raise UserError(f"{source}: wanted a folder of a transformers model (its config.json names a model_type)")
    return folder


def _require() -> None:
    require(("transformers", "tokenizers"), "language", "a language model")


def _network(config: Mapping[str, object]) -> nn.Module:
    """A model of transformers with random weights.

    Raises:
        UserError: No causal language model of that type, one whose maps cannot be captured, or unknown keys.
    """
    import torch

    _require()
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError("transformers: config: wanted model_type (as llama, gpt2) or source=FOLDER, found none")
    try:
        with _quiet():
            settings = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
            network = AutoModelForCausalLM.from_config(settings, attn_implementation=ATTENTION, dtype=torch.float32)
    except Exception as error:  # transformers checks configs in many ways
        raise UserError(f"transformers: {_reason(kind, config, error)}") from error
    if getattr(settings, "attn_logit_softcapping", None) is not None:  # older releases make one, and leave the cap out
        raise UserError(f"transformers: {CAPPED.format(kind)}")
    if not blocks(network):
        raise UserError(f"transformers: this config of type {kind} has no layers")
    return network


def _unpadded(values: dict[str, object], asked: dict[str, object] | None) -> dict[str, object]:
    """The config of a model with random weights, without a token of padding unless one is asked for.

    Types have one by default, whose embedding never learns; the number is of another token in these data.
    """
    return {**values, "pad_token_id": None, **(asked or {})}


def _check_keys(config: Mapping[str, object], source: str | None) -> None:
    """Refuse keys that the type of model does not have; transformers would ignore them."""
    _require()
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type") or (read_config(folder_of(source)).get("model_type") if source else None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return
    cls = CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), *cls.attribute_map, "model_type"}
    for key in config:
        if key not in known:
            raise unknown(f"transformers: config of {kind}", key, known)


def _check_change(source: str, before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Refuse keys that make another model than the weights of `source` are of, also where the shapes are the same.

    Args:
        source: As the user named it.
        before: Its config.json.
        after: That with the user's keys.

    Raises:
        UserError: Other tensors, or other heads.
    """
    import torch

    with torch.device("meta"):
        there, here = _network(before), _network(after)
    shapes, wanted = ({n: tuple(x.shape) for n, x in m.state_dict().items()} for m in (there, here))
    first = min((n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n)), default=None)
    differing = differing_heads(here, there)
    if first is not None:
        differing = first, wanted.get(first, "nothing"), shapes.get(first, "nothing")
    if differing is not None:
        what, new, old = differing
        raise UserError(
            f"student.config: changes {what} from {old} to {new}, and the weights of {source} are not of that; say "
            "pretrained: false for random weights, or leave these sizes as they are"
        )


def _reason(kind: str, config: Mapping[str, object], error: Exception) -> str:
    """Why there is no such model, in one line."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if "auto_map" in config:
        return f"a {kind} has code of its own (auto_map), which is not run; wanted a type that transformers has"
    if config.get("attn_logit_softcapping") is not None or kind == "gemma2":
        return CAPPED.format(kind)
    if kind not in CONFIG_MAPPING:
        near = get_close_matches(kind, list(CONFIG_MAPPING), 1)
        hint = f"did you mean {near[0]}?" if near else "wanted one as llama or gpt2"
        return f"no causal language model can be made of type {kind}, which transformers does not have; {hint}"
    if CONFIG_MAPPING[kind] not in AutoModelForCausalLM._model_mapping:
        return f"a {kind} is no causal language model; wanted one as llama or gpt2"
    reason = "a size of 0" if isinstance(error, ZeroDivisionError) else error_line(error, 200)
    return f"no causal language model can be made of this config of type {kind} ({reason})"


def _read(folder: Path, skeleton: "PreTrainedModel") -> nn.Module:
    """The model with the weights of a folder, in float32.

    Raises:
        UserError: They are not those of its config.
    """
    import torch

    try:
        with READING, _quiet():
            loaded: Any = type(skeleton).from_pretrained(
                str(folder),
                config=skeleton.config,
                attn_implementation=ATTENTION,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
            model, info = loaded
    except Exception as error:  # of several libraries, for a folder that may be wrong in any way
        raise UserError(f"{folder}: cannot be read as {type(skeleton).__name__}: {error_line(error, 200)}") from error
    for wrong, words in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        if info[wrong]:
            first = min(str(name) for name in info[wrong])
            raise UserError(f"{folder}: the weights do not fit config.json: {len(info[wrong])} {words}, first {first}")
    return model


@contextmanager
def _quiet() -> Generator[None]:
    """Silence transformers' progress bars and notes in the block."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
