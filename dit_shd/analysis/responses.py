"""Responses of language models to instructions, and their ROUGE-L on several sets over several sampling seeds."""

import json
import logging
import statistics
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dit_shd.analysis.perplexities import named
from dit_shd.core.config import REQUIRED, cast, check_ranges, checked, option
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.places import MODEL, Place
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import stream
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.text import Text
from dit_shd.data.document_rows import Document
from dit_shd.data.tokenizer import Tokenizer, vocabulary_beside
from dit_shd.evaluation import results
from dit_shd.evaluation.rouge import other_letters, rouge_l
from dit_shd.models import loading
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.language_model import text_config

_log = logging.getLogger("dit_shd")

Scores = dict[str, dict[str, list[float]]]
"""Model -> set -> ROUGE-L, in percent, of each sampling seed."""


@dataclass(frozen=True)
class RougeConfig:
    """ROUGE-L of models' responses."""

    models: list[Place] = option(REQUIRED, f"each {MODEL}")
    sets: Path = option(REQUIRED, "a YAML file: name of a set -> {name: text, path: ..., column: ..., prompt: ...}")
    seeds: list[int] = option([10, 20, 30, 40, 50], "of sampling; the mean over them is what counts")
    samples: int | None = option(None, "first documents of each set; empty: all", range=(1, 1e9))
    temperature: float = option(1.0, "of sampling; 0: always the likeliest token", range=(0, 100))
    prompt_tokens: int = option(256, "of a prompt; what is longer is cut at its end", range=(1, 1e6))
    response_tokens: int = option(256, "at most", range=(1, 1e6))
    batch_size: int = option(8, "responses at once; it changes none of them", range=(1, 1e6))
    out: Path | None = option(None, "a JSON file for scores and responses; empty for none")


class KeyedSampling:
    """Sampling of each response by its own stream of random numbers, whatever else is in the batch.

    A logits processor of transformers: it leaves the drawn token alone, so that greedy decoding takes it.

    Args:
        seed: The seed of sampling.
        indices: The indices of the prompts [b].
        temperature: The temperature of the softmax.
    """

    def __init__(self, seed: int, indices: Sequence[int], temperature: float):
        self._streams = [stream(seed, "response", 0, i) for i in indices]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b,k] of which only the drawn token's is finite."""
        below = (scores.double() / self._temperature).softmax(1).cumsum(1)
        uniform = torch.tensor([[each.random()] for each in self._streams], dtype=torch.float64, device=scores.device)
        drawn = torch.searchsorted(below, uniform * below[:, -1:], right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


@torch.no_grad()
def responses(
    model: CausalLM, tokenizer: Tokenizer, documents: Sequence[Document], seed: int, config: RougeConfig
) -> list[str]:
    """What a model answers to prompts.

    Args:
        model: In evaluation.
        tokenizer: Its own.
        documents: With prompts.
        seed: The seed of sampling.
        config: Lengths, temperature, batch size.

    Raises:
        UserError: A model that takes too few tokens for such responses.
    """
    cut = replace(config, prompt_tokens=_room(model, tokenizer, config))
    answers: list[str] = []
    with _without_settings(model):
        for first in tqdm(range(0, len(documents), config.batch_size), desc=f"seed {seed}", unit="batch"):
            indices = range(first, min(first + config.batch_size, len(documents)))
            answers += _answers(model, tokenizer, [documents[i] for i in indices], seed, indices, cut)
    return answers


@contextmanager
def _without_settings(model: CausalLM) -> Generator[None]:
    """Leave a model's own generation_config.json (penalties, least lengths) out in the block: all draw alike."""
    from transformers import GenerationConfig

    settings, model.network.generation_config = model.network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.network.generation_config = settings


def _room(model: CausalLM, tokenizer: Tokenizer, config: RougeConfig) -> int:
    """Tokens of a prompt that a model has room for beside its response."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    if longest is None:
        return config.prompt_tokens
    room = longest - config.response_tokens - len(tokenizer.begin)
    if room < 1:
        raise UserError(
            f"response_tokens: wanted less than the {longest} tokens that the model takes with its prompt, found "
            f"{config.response_tokens}"
        )
    return min(config.prompt_tokens, room)


def _answers(
    model: CausalLM, tokenizer: Tokenizer, documents: list[Document], seed: int, indices: range, config: RougeConfig
) -> list[str]:
    prompts = tokenizer.encode_prompts(documents)
    rows = [[*tokenizer.begin, *tokens[: config.prompt_tokens].tolist()] for tokens in prompts]
    longest, device = max(map(len, rows)), next(model.parameters()).device
    tokens = np.full((len(rows), longest), tokenizer.end)
    for place, row in zip(tokens, rows):  # padding stands on the left
        place[longest - len(row) :] = row
    mask = np.arange(longest) >= longest - np.array([len(row) for row in rows])[:, None]
    sampling = [KeyedSampling(seed, indices, config.temperature)] if config.temperature else []
    generated: Tensor = model.network.generate(
        input_ids=torch.from_numpy(tokens).to(device),
        attention_mask=torch.from_numpy(mask).long().to(device),
        max_new_tokens=config.response_tokens,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end,
        logits_processor=sampling,
    )
    return [tokenizer.decode(_until(row.tolist(), tokenizer.end)).lstrip(" ") for row in generated[:, longest:]]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def rouge(config: RougeConfig) -> Scores:
    """Let models answer, score, and write scores and responses where the config says.

    Args:
        config: The config of the command.

    Raises:
        UserError: No such model, no language model, a set without prompts, or a file that is there already.
    """
    config = checked(config, "rouge")
    check_ranges(config)
    if not config.seeds:
        raise UserError("seeds: wanted at least one seed of sampling, found none")
    if config.out is not None:
        results.new_file(config.out)
    plugins = {name: cast(Plugin, value, f"{config.sets}: {name}") for name, value in read_yaml(config.sets).items()}
    if not plugins:
        raise UserError(f"{config.sets}: wanted sets of instructions by name, found none")
    places = named(config.models)
    sets = {name: _sets(place, plugins, config) for name, place in places.items()}
    scores, record = Scores(), dict[str, Any]()
    for name, place in places.items():
        model = _on_device(_language_model(place))
        for of, data in sets[name].items():
            documents = data.documents[: config.samples]
            answers = {seed: responses(model, data.tokenizer, documents, seed, config) for seed in config.seeds}
            each = {seed: [_score(*pair) for pair in zip(answers[seed], documents)] for seed in config.seeds}
            scores.setdefault(name, {})[of] = [statistics.fmean(each[seed]) for seed in config.seeds]
            record.setdefault(name, {})[of] = {"rouge_l": scores[name][of], "responses": answers}
            _log.info("%s: %s: ROUGE-L %s", name, of, ", ".join(f"{score:.2f}" for score in scores[name][of]))
    if config.out is not None:
        write_text(config.out, json.dumps(record, indent=1) + "\n", results.REMEDY)
    return scores


def _sets(place: str, plugins: Mapping[str, Plugin], config: RougeConfig) -> dict[str, Text]:
    """All sets for a model, before any model answers: hours may lie between the first answer and the last set."""
    model = _language_model(place)
    sets = {name: _instructions(name, plugin, place) for name, plugin in plugins.items()}
    for name, data in sets.items():
        _check_tokens(name, place, model, data.tokenizer)
        room, prompts = (
            _room(model, data.tokenizer, config),
            data.tokenizer.encode_prompts(data.documents[: config.samples]),
        )
        cut = sum(len(prompt) > room for prompt in prompts)
        if cut:
            words = "%s: %s: %d of %d prompts have more than %d tokens and lose their ends; a larger prompt_tokens, or "
            _log.warning(words + "less of response_tokens, keeps more of them", place, name, cut, len(prompts), room)
    return sets


def _check_tokens(name: str, place: str, model: CausalLM, tokenizer: Tokenizer) -> None:
    """Refuse a set whose tokens are not a model's.

    Raises:
        UserError: Its tokenizer has more tokens than the model knows, or others by the same numbers.
    """
    known, folder = getattr(text_config(model), "vocab_size", tokenizer.vocabulary), model.folder
    conflict = tokenizer.conflict(vocabulary_beside(folder)) if isinstance(folder, Path) else ""
    if known < tokenizer.vocabulary or conflict:
        why = conflict or f"{tokenizer.vocabulary} tokens, and the model knows {known}"
        raise UserError(f"sets: {name}: its tokenizer is not that of {place} ({why}); leave out its tokenizer key")


def _score(answer: str, document: Document) -> float:
    return 100 * rouge_l(answer, [document.text, *document.others])


def _instructions(name: str, plugin: Plugin, model: str) -> Text:
    """A set, by the tokenizer of a model if it names no other."""
    divided = sorted({"counts", "held_out"} & plugin.options.keys())
    if divided and "split" not in plugin.options:
        raise UserError(
            f"sets: {name}: has {divided[0]} and no split, so that what was trained on would be answered, too; say "
            "split: validation (or split: all)"
        )
    options = {"tokenizer": model, "split": "all", "pack": False, **plugin.options}
    data = DATASETS.build(replace(plugin, options=options), name)
    if not isinstance(data, Text) or not any(document.prompt for document in data.documents):
        raise UserError(f"sets: {name}: wanted text with prompts, {{name: text, path: ..., prompt: ...}}, found none")
    _check_letters(name, data.documents)
    return data


def _check_letters(name: str, documents: Sequence[Document]) -> None:
    """Refuse a set whose references ROUGE cannot read; log where that are some of them.

    Raises:
        UserError: It cannot read most of them.
    """
    count = sum(other_letters(document.text) for document in documents)
    words = f"{count} of {len(documents)} references are in other letters than a to z, which are all that ROUGE-L reads"
    if 2 * count > len(documents):
        raise UserError(f"sets: {name}: {words}: any response would score 0; wanted references in Latin letters")
    if count:
        _log.warning("sets: %s: %s: any response to them scores 0", name, words)


def _language_model(place: str) -> CausalLM:
    model = loading.load(place)
    if not isinstance(model, CausalLM):
        raise UserError(f"{place}: wanted a causal language model of transformers, found {type(model).__name__}")
    return model


def _on_device(model: CausalLM) -> CausalLM:
    nn.Module.to(model, current_device())
    return model.eval()
