"""Causal language modeling: each token is predicted from those before it in its document."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core.config import check_ranges, option
from dit_shd.core.devices import current_device
from dit_shd.core.distributed import joined, run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws, stream
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.data.datasets.text import Text
from dit_shd.data.latent_origin import Kept
from dit_shd.data.packing import PADDING, positions
from dit_shd.data.tokenizer import vocabulary_beside
from dit_shd.evaluation.perplexity import Perplexity, token_nats
from dit_shd.models.blocks import forward_parameters
from dit_shd.models.families.transformers import CausalLM
from dit_shd.models.language_model import check_attention, seeded_dropout, text_config
from dit_shd.models.offload import moved
from dit_shd.tasks import Batch, Output, Task, TeacherFinding, Terms

JUDGED = 8
"""Sequences on which a teacher is checked before training."""


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

    def is_of_image(self, layer: str) -> bool:
        raise UserError(f"losses: block: wanted joint, found image; {layer} reads text alone")

    def prediction_weight(self) -> Tensor:
        return self.target_weight


@dataclass(frozen=True)
class TextEvaluation:
    """The perplexity of held-out text, while a student trains."""

    sequences: int | None = option(None, "of the validation split, evenly spread; empty: all", range=(1, 1e9))
    batch_size: int = option(16, "sequences of one forward", range=(1, 1e6))


@dataclass(frozen=True, eq=False)
class _Masks:
    """Sequences of a text, and what of them counts."""

    tokens: Tensor
    """[b,n+1]"""
    documents: Tensor
    """The number of each token's document in its sequence [b,n]."""
    targets: Tensor
    """Which next tokens are to be predicted [b,n]."""
    rows: Tensor
    """Which query rows take part in losses on attention [b,n]."""


PLAIN = TextEvaluation()


class LanguageModeling(Task[TokenBatch]):
    """Next-token cross-entropy, the mean over the target tokens of a step's batch.

    Padding takes no part, nor do tokens before a text (a prompt, an instruction) as targets, nor, in losses on
    attention, the query row of a document's last token, which predicts nothing.

    Args:
        separate: Packed documents do not attend to each other; else attention goes on from one to the next.
        prompt_rows: Whether query rows of a prompt's tokens take part in losses on attention.
        evaluation: Perplexity while training: sequences, batch_size.
    """

    batch_type: ClassVar = TokenBatch
    measured_by = "perplexity"
    needs = frozenset({"tokens"})
    resumable = frozenset({"evaluation"})

    def __init__(self, separate: bool = True, prompt_rows: bool = False, evaluation: TextEvaluation = PLAIN):
        check_ranges(evaluation, "task.evaluation.")
        self.separate, self.prompt_rows, self.evaluation = separate, prompt_rows, evaluation
        self._length: int | None = None
        """Tokens of a sequence by the config of the data, before they are read."""
        self._packs = separate
        """Whether sequences of several documents that do not attend to each other may come, by that config."""
        self._known_shares: tuple[tuple[Dataset, int, int, int], tuple[Tensor, Tensor]] | None = None
        """The last of `_shares`, and what they are of."""

    def expect(self, data: Plugin) -> None:
        """Their length, and whether documents are packed."""
        options = DATASETS.filled(data, "data").options
        length = options.get("length")
        self._length = length if isinstance(length, int) else None
        self._packs = self.separate and bool(options.get("pack", True))

    @property
    def _text(self) -> Text:
        return cast("Text", self.dataset)

    def check(self, role: str, model: nn.Module) -> None:
        """It must know the data's tokens, and attend neither to tokens to come nor to other documents."""
        self.check_model(role, model)
        config = text_config(model)
        data = self._text
        known, longest = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
        if known is not None and known < data.tokenizer.vocabulary:
            raise UserError(f"{role}: knows {known} tokens, the data's tokenizer has {data.tokenizer.vocabulary}")
        if longest is not None and longest < data.length:
            raise UserError(f"{role}: takes {longest} tokens, data.length is {data.length}")
        if data.empty_sequences == len(data):
            raise UserError(
                f"data: the prompts of all {len(data)} documents fill data.length={data.length}, and nothing is left "
                "to learn; wanted a larger length, or shorter prompts"
            )
        self._check_tokens(role, model)
        check_attention(role, model, self.separate and data.pack)

    def check_start(self, source: str, model: nn.Module) -> None:
        """Its embeddings must be of the data's tokens."""
        self._check_tokens(f"from: {source}", model)

    def _check_tokens(self, role: str, model: nn.Module) -> None:
        folder = getattr(model, "folder", None)
        conflict = self._text.tokenizer.conflict(vocabulary_beside(folder)) if isinstance(folder, Path) else ""
        if conflict:
            raise UserError(f"{role}: has a tokenizer of its own ({conflict}); wanted data.tokenizer={folder}")

    def check_model(self, role: str, model: nn.Module) -> None:
        """It must be a causal language model."""
        if getattr(text_config(model), "vocab_size", None) is None:
            raise UserError(
                f"{role}: holds {type(model).__name__}; wanted a causal language model of transformers "
                "({name: transformers, config: {model_type: llama, ...}} or a folder)"
            )

    def remarks(self, student: nn.Module) -> Sequence[str]:
        data, remarks = self._text, []
        if data.cut_tokens:
            remarks.append(
                f"data: {data.cut_tokens} tokens are beyond data.length={data.length} of their documents and not seen"
            )
        if data.empty_sequences:
            remarks.append(
                f"data: {data.empty_sequences} of {len(data)} documents have nothing to learn: their prompts fill "
                f"data.length={data.length}"
            )
        return remarks

    def describe(self, student: nn.Module) -> None:
        """The tokenizer is exported beside the weights, and the config says where a text ends."""
        if isinstance(student, CausalLM):
            student.give_tokenizer(self._text.tokenizer)

    @torch.no_grad()
    def check_teacher(
        self, teacher: nn.Module, seed: int, device: torch.device, measure: bool
    ) -> Iterator[TeacherFinding]:
        """A teacher that predicts no better than how often tokens occur has another tokenizer, or learned nothing."""
        if not measure:
            return
        data = self._text
        (batch,) = self.draw(Draws(seed, 0, range(JUDGED), JUDGED))
        batch = batch.to(device)
        nats = float(self.losses(self.predict(moved(teacher, device), batch), batch)["cross_entropy"].mean())
        shares = torch.from_numpy(data.token_counts() + 1.0).float()
        logits = (shares / shares.sum()).log().to(device).expand(*batch.targets.shape, -1)
        by_counts = float(self.losses(Output(logits), batch)["cross_entropy"].mean())
        figures = f"teacher: {nats:.3f} nats a token on {JUDGED} sequences, tokens' frequencies alone {by_counts:.3f}"
        fault = f"it predicts no better than tokens' frequencies ({nats:.3f} and {by_counts:.3f} nats a token)"
        yield TeacherFinding(
            figures, None if nats < by_counts else f"{fault}: another tokenizer, or it was not trained"
        )

    def draw(self, draws: Draws) -> Sequence[TokenBatch]:
        """Weights are of the whole step's batch, so a step is the same however it is divided."""
        indices = self.dataset.indices(draws)
        seeds = [int(stream(draws.seed, "dropout", draws.step, i).integers(2**62)) for i in draws.positions]
        batch = self._batch(draws.step, indices, self._masks(self.dataset, indices, draws), torch.tensor(seeds))
        targets, rows = self._shares(draws)
        weights = {"target_weight": batch.target_weight / targets, "query_weight": batch.query_weight / rows}
        return [replace(batch, **weights)]

    def _shares(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which shares of a whole step's next tokens and query rows count; all its micro batches ask for them."""
        step = self.dataset, draws.seed, draws.step, draws.batch_size
        known = self._known_shares
        if known is not None and known[0] == step:
            return known[1]
        everything = Draws(draws.seed, draws.step, range(draws.batch_size), draws.batch_size)
        masks = self._masks(self.dataset, self.dataset.indices(everything), everything)
        shares = masks.targets.float().mean().clamp(min=1e-9), masks.rows.float().mean().clamp(min=1e-9)
        self._known_shares = step, shares
        return shares

    def _masks(self, data: Dataset, indices: np.ndarray, draws: Draws) -> _Masks:
        sample = data.batch(indices, draws)
        documents, prompt = sample["documents"], sample["prompt"]
        here, following = documents[:, :-1], documents[:, 1:]
        predicting = (here == following) & (following != PADDING)
        rows = predicting if self.prompt_rows else predicting & ~prompt[:, :-1]
        return _Masks(sample["tokens"], here, predicting & ~prompt[:, 1:], rows)

    def _batch(self, step: int, indices: np.ndarray, masks: _Masks, seeds: Tensor) -> TokenBatch:
        """Some sequences, in which whatever counts weighs 1."""
        apart = torch.from_numpy(positions(masks.documents.numpy())) if self.separate else None
        return TokenBatch(
            pass_name="plain",
            step=step,
            indices=torch.from_numpy(indices),
            tokens=masks.tokens,
            target_weight=masks.targets.float(),
            query_weight=masks.rows.float(),
            dropout_seeds=seeds,
            positions=apart,
        )

    def predict(self, model: nn.Module, batch: TokenBatch) -> Output:
        """Logits [b,n,k]. Places that begin anew tell transformers that packed documents are apart."""
        where = {} if batch.positions is None else {"position_ids": batch.positions}
        if batch.tokens.is_meta:  # of places transformers reads the numbers; of a whole mask it does not
            (b, n), device = batch.given.shape, batch.tokens.device
            data = getattr(self, "dataset", None)
            packs = self._packs if data is None else self.separate and data.pack
            masks = b if packs else 1  # of packed documents each layer keeps every sequence's for its backward
            where = {"attention_mask": torch.ones(masks, 1, n, n, dtype=torch.bool, device=device)}
            if "position_ids" in forward_parameters(getattr(model, "network", model)):  # OPT makes them of a mask [b,n]
                where["position_ids"] = torch.zeros(1, n, dtype=torch.long, device=device)
        with seeded_dropout(model, batch.dropout_seeds):
            return Output(model(input_ids=batch.given, use_cache=False, **where).logits.float())

    def losses(self, output: Output, batch: TokenBatch) -> Terms:
        return {"cross_entropy": (token_nats(output.prediction, batch.targets) * batch.target_weight).mean(1)}

    def tokens_seen(self, model: nn.Module, batch: TokenBatch) -> int:
        return batch.given.shape[1]

    def example(self, model: nn.Module, images: int, device: torch.device) -> Sequence[TokenBatch]:
        data = getattr(self, "dataset", None)
        longest = self._length or getattr(text_config(model), "max_position_embeddings", 1024)
        n = data.length if data is not None else longest
        tokens = torch.zeros(images, n + 1, dtype=torch.long, device=device)
        ones = torch.ones(images, n, device=device)
        indices = torch.zeros(images, dtype=torch.long, device=device)
        return [TokenBatch("plain", 0, indices, tokens, ones, ones, indices)]

    def check_evaluation(self, student: nn.Module, kept: Kept | None) -> None:
        if not hasattr(self, "dataset"):
            return
        if self._text.split in ("all", "validation"):
            raise UserError(
                f"data.split: {self._text.split} has the documents that validate_every evaluates on, so that they "
                "would be learned; wanted train, or validate_every=0"
            )
        len(self._text.held_out)

    def evaluate(self, student: nn.Module, run: Path, step: int) -> dict[str, float] | None:
        def act() -> dict[str, float]:
            return self.perplexity(student.to(current_device()).eval(), self._text.held_out)

        figures = run_on_main(act)
        return figures if joined().is_main_process else None

    @torch.no_grad()
    def perplexity(self, model: nn.Module, data: Text) -> dict[str, float]:
        """Figures of a model on the sequences of a text, or on some of them as the evaluation says."""
        count, wanted = len(data), self.evaluation.sequences
        chosen = np.arange(count)
        if wanted is not None and wanted < count:
            chosen = np.linspace(0, count - 1, wanted).round().astype(int)
        device, sums = next(model.parameters()).device, Perplexity()
        for start in range(0, len(chosen), self.evaluation.batch_size):
            indices = chosen[start : start + self.evaluation.batch_size]
            masks = self._masks(data, indices, Draws(0, 0, range(len(indices)), len(indices)))
            batch = self._batch(0, indices, masks, torch.zeros(len(indices), dtype=torch.long)).to(device)
            sums.add(self.predict(model, batch).prediction, batch.targets, batch.target_weight > 0)
        return sums.figures(data.text_bytes if len(chosen) == count and not data.cut_tokens else None)
