"""Causal language modeling: each token is predicted from those before it in its document."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.core.config import option
from dit_shd.core.distributed import joined, run_on_main
from dit_shd.core.errors import UserError, one_line
from dit_shd.core.rng import Draws, stream
from dit_shd.data.datasets.text import Text
from dit_shd.data.latent_origin import Kept
from dit_shd.data.packing import PADDING, positions
from dit_shd.tasks import Batch, Opinion, Output, Task, Terms

_log = logging.getLogger("dit_shd")
JUDGED = 8
"""Sequences that a teacher is judged by."""


@dataclass(frozen=True, eq=False)
class TokenBatch(Batch):
    """Sequences of tokens; n are given to a model, each followed by the one that is to be predicted."""

    tokens: Tensor
    """[b,n+1]"""
    target_weight: Tensor
    """What the prediction of each next token counts [b,n]; their mean over a step's batch is 1."""
    query_weight: Tensor
    """What each query row counts in losses on attention [b,n]; their mean over a step's batch is 1."""
    dropout_seeds: Tensor
    """Of what a model drops while it trains [b]; the first one's is taken."""
    positions: Tensor | None = None
    """Each token's place in its document [b,n], which keeps documents apart; None where they are not."""

    @property
    def given(self) -> Tensor:
        """The tokens that a model is given [b,n]."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """The tokens to predict [b,n]."""
        return self.tokens[:, 1:]

    def row_weight(self, tokens: int) -> Tensor:
        if tokens != self.query_weight.shape[1]:
            raise UserError(
                f"language_modeling: a layer has {tokens} query rows, the batch {self.query_weight.shape[1]} tokens; "
                "losses on attention want layers of all tokens"
            )
        return self.query_weight

    def prediction_weight(self) -> Tensor:
        return self.target_weight


@dataclass(frozen=True)
class TextEvaluation:
    """The perplexity of held-out text, while a student trains."""

    sequences: int | None = option(None, "of the validation split, evenly spread; empty: all", range=(1, 1e9))
    batch_size: int = option(16, "sequences of one forward", range=(1, 1e6))


PLAIN = TextEvaluation()


class LanguageModeling(Task[TokenBatch]):
    """Next-token cross-entropy, the mean over the target tokens of a step's batch.

    Padding takes no part, nor do tokens before a text (a prompt, an instruction) as targets.

    Args:
        separate: packed documents do not attend to each other; else attention goes on from one to the next.
        prompt_rows: whether query rows of a prompt's tokens take part in losses on attention.
        evaluation: perplexity while training: sequences, batch_size.
    """

    batch_type: ClassVar = TokenBatch
    needs = frozenset({"tokens"})
    resumable = frozenset({"evaluation"})

    def __init__(self, separate: bool = True, prompt_rows: bool = False, evaluation: TextEvaluation = PLAIN):
        self.separate, self.prompt_rows, self.evaluation = separate, prompt_rows, evaluation

    def check(self, role: str, model: nn.Module) -> None:
        """It must know the data's tokens, and attend neither to tokens to come nor to other documents."""
        self.check_model(role, model)
        config = text_config(model)
        data = cast(Text, self.dataset)
        known, longest = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
        if known is not None and known < data.tokenizer.vocabulary:
            raise UserError(f"{role}: knows {known} tokens, the data's tokenizer has {data.tokenizer.vocabulary}")
        if longest is not None and longest < data.length:
            raise UserError(f"{role}: takes {longest} tokens, data.length is {data.length}")
        _check_attention(role, model, self.separate)

    def check_model(self, role: str, model: nn.Module) -> None:
        """It must be a causal language model."""
        if getattr(text_config(model), "vocab_size", None) is None:
            raise UserError(
                f"{role}: holds {type(model).__name__}; wanted a causal language model of transformers "
                "({name: transformers, config: {model_type: llama, ...}} or a folder)"
            )

    def remarks(self, student: nn.Module) -> Sequence[str]:
        data = cast(Text, self.dataset)
        if not data.cut_tokens:
            return ()
        return [f"data: {data.cut_tokens} tokens are beyond data.length={data.length} of their documents and not seen"]

    def describe(self, student: nn.Module) -> None:
        """The tokenizer is exported beside the weights."""
        if hasattr(student, "tokenizer"):
            student.tokenizer = cast(Text, self.dataset).tokenizer  # type: ignore[assignment]

    @torch.no_grad()
    def judge(self, teacher: nn.Module, seed: int, device: torch.device, measure: bool) -> Iterator[Opinion]:
        """A teacher that predicts no better than how often tokens occur has another tokenizer, or learned nothing."""
        if not measure:
            return
        data = cast(Text, self.dataset)
        (batch,) = self.draw(Draws(seed, 0, range(JUDGED), JUDGED))
        batch = batch.to(device)
        nats = float(self.losses(self.predict(teacher.to(device), batch), batch)["cross_entropy"].mean())
        shares = torch.from_numpy(data.token_counts() + 1.0).float()
        logits = (shares / shares.sum()).log().to(device).expand(*batch.targets.shape, -1)
        by_counts = float(self.losses(Output(logits), batch)["cross_entropy"].mean())
        told = f"teacher: {nats:.3f} nats a token on {JUDGED} sequences, tokens' frequencies alone {by_counts:.3f}"
        fault = f"it predicts no better than tokens' frequencies ({nats:.3f} and {by_counts:.3f} nats a token): another "
        yield Opinion(told, None if nats < by_counts else f"{fault}tokenizer, or it was not trained")

    def draw(self, draws: Draws) -> Sequence[TokenBatch]:
        """Weights are of the whole step's batch, so a step is the same however it is divided."""
        count = len(self.dataset)
        indices = draws.indices(count)
        everything = Draws(draws.seed, draws.step, range(draws.batch_size), draws.batch_size)
        whole = self._counted(everything.indices(count), everything)
        _, targets, rows, documents, tokens = self._masks(indices, draws)
        n = targets.shape[1]
        return [
            TokenBatch(
                pass_name="plain",
                step=draws.step,
                indices=torch.from_numpy(indices),
                tokens=tokens,
                target_weight=targets.float() * (draws.batch_size * n / max(1, whole[0])),
                query_weight=rows.float() * (draws.batch_size * n / max(1, whole[1])),
                dropout_seeds=_dropout_seeds(draws),
                positions=self._positions(documents),
            )
        ]

    def _masks(self, indices: np.ndarray, draws: Draws) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        """Which next tokens are targets [b,n], which query rows count [b,n], documents [b,n] and tokens [b,n+1]."""
        sample = self.dataset.batch(indices, draws)
        tokens, documents, prompt = (sample[name] for name in ("tokens", "documents", "prompt"))
        here, following = documents[:, :-1], documents[:, 1:]
        targets = (here == following) & (following != PADDING) & ~prompt[:, 1:]
        rows = here != PADDING
        rows = rows if self.prompt_rows else rows & ~prompt[:, :-1]
        return len(tokens), targets, rows, here, tokens

    def _counted(self, indices: np.ndarray, draws: Draws) -> tuple[int, int]:
        """Targets and query rows of some sequences."""
        _, targets, rows, _, _ = self._masks(indices, draws)
        return int(targets.sum()), int(rows.sum())

    def _positions(self, documents: Tensor) -> Tensor | None:
        """Of tokens in their documents [b,n]; padding goes on with the last one."""
        return torch.from_numpy(positions(documents.numpy())) if self.separate else None

    def predict(self, model: nn.Module, batch: TokenBatch) -> Output:
        """Logits [b,n,k]. Places that begin anew tell transformers that packed documents are apart."""
        where = {} if batch.positions is None else {"position_ids": batch.positions}
        if batch.tokens.is_meta:  # of places transformers reads the numbers; of a whole mask it does not
            n = batch.given.shape[1]
            where = {"attention_mask": torch.ones(1, 1, n, n, dtype=torch.bool, device=batch.tokens.device)}
        with _dropping(model, batch.dropout_seeds):
            return Output(model(input_ids=batch.given, use_cache=False, **where).logits.float())

    def losses(self, output: Output, batch: TokenBatch) -> Terms:
        nats = F.cross_entropy(output.prediction.flatten(0, 1), batch.targets.flatten(), reduction="none")
        return {"cross_entropy": (nats.view_as(batch.targets) * batch.target_weight).mean(1)}

    def tokens_seen(self, model: nn.Module, batch: TokenBatch) -> int:
        return batch.given.shape[1]

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[TokenBatch]:
        data = getattr(self, "dataset", None)
        longest = getattr(text_config(model), "max_position_embeddings", 1024)
        n = data.length if data is not None else longest
        tokens = torch.zeros(images, n + 1, dtype=torch.long, device=device)
        ones = torch.ones(images, n, device=device)
        indices = torch.zeros(images, dtype=torch.long, device=device)
        return [TokenBatch("plain", 0, indices, tokens, ones, ones, indices)]

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        data = getattr(self, "dataset", None)
        if data is not None:
            len(cast(Text, data).held_out)

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        def act() -> dict[str, float]:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            return self.perplexity(student.to(device or "cpu").eval(), cast(Text, self.dataset).held_out)

        figures = run_on_main(act)
        return figures if joined().is_main_process else None

    @torch.no_grad()
    def perplexity(self, model: nn.Module, data: Text) -> dict[str, float]:
        """Figures of a model on text: nats a token and its exponential, bits a byte, tokens.

        Every target token counts the same. Bits a byte do not depend on the tokenizer; they are of whole splits only.
        """
        chosen = np.arange(len(data))
        wanted = self.evaluation.sequences
        if wanted is not None and wanted < len(chosen):
            chosen = chosen[np.linspace(0, len(chosen) - 1, wanted).round().astype(int)]
        device = next(model.parameters()).device
        nats, tokens, before = 0.0, 0, self.dataset
        try:
            self.dataset = data
            for start in range(0, len(chosen), self.evaluation.batch_size):
                part = chosen[start : start + self.evaluation.batch_size]
                _, targets, _, documents, row = self._masks(part, Draws(0, 0, range(len(part)), len(part)))
                ones = targets.float()
                indices = torch.from_numpy(part)
                batch = TokenBatch("plain", 0, indices, row, ones, ones, indices, self._positions(documents))
                batch = batch.to(device)
                logits = self.predict(model, batch).prediction
                each = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
                nats += float((each.double() * batch.target_weight.flatten()).sum())
                tokens += int(targets.sum())
        finally:
            self.dataset = before
        figures = {"nats": nats / tokens, "perplexity": math.exp(min(nats / tokens, 700.0)), "tokens": tokens}
        if len(chosen) == len(data) and not data.cut_tokens:
            figures["bits_per_byte"] = nats / math.log(2) / data.text_bytes
        return figures


def _dropout_seeds(draws: Draws) -> Tensor:
    return torch.tensor([int(stream(draws.seed, "dropout", draws.step, i).integers(2**62)) for i in draws.positions])


@contextmanager
def _dropping(model: nn.Module, seeds: Tensor) -> Iterator[None]:
    """What a model drops at random while it trains is a function of the seeds; torch's generators are left as found."""
    drops = model.training and seeds.device.type != "meta" and _drops(model)
    if not drops:
        yield
        return
    devices = [] if seeds.device.type == "cpu" else [seeds.device]
    with torch.random.fork_rng(devices, device_type=seeds.device.type if devices else "cuda"):
        torch.manual_seed(int(seeds[0]))
        yield


def _drops(model: nn.Module) -> bool:
    """Whether anything in a model is dropped while it trains."""
    config = text_config(model).to_dict()
    return any("drop" in key and isinstance(value, float) and value > 0 for key, value in config.items())


def text_config(model: nn.Module) -> Any:
    """The config of a model of transformers, also inside a family of ours."""
    config = getattr(getattr(model, "network", model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@torch.no_grad()
def _check_attention(role: str, model: nn.Module, separate: bool) -> None:
    """Run a model on a few tokens, and again with another last one and another first document.

    Raises:
        UserError: tokens attend to those to come, or to documents that are packed with theirs.
    """
    device = next(model.parameters()).device
    training = model.training
    tokens = torch.tensor([[0, 1, 0, 0, 1, 1]], device=device)
    places = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    last, first = tokens.clone(), tokens.clone()
    last[0, 5], first[0, 1] = 0, 0
    try:
        model.eval()
        plain, changed = (model(input_ids=x, use_cache=False).logits[0] for x in (tokens, last))
        pair = [model(input_ids=x, position_ids=places, use_cache=False).logits[0] for x in (tokens, first)]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{role}: {type(model).__name__} cannot be run on tokens ({one_line(str(error), 160)})") from error
    finally:
        model.train(training)
    name = type(getattr(model, "network", model)).__name__
    if not torch.allclose(plain[:5], changed[:5], atol=1e-6):
        raise UserError(f"{role}: {name} attends to tokens to come; wanted a causal language model")
    if separate and not torch.allclose(pair[0][3:], pair[1][3:], atol=1e-6):
        raise UserError(
            f"{role}: in {name} packed documents attend to each other; task.separate=false lets them, or "
            "data.pack=false gives each a sequence of its own"
        )
