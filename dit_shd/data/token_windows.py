"""Tokens of texts of any length: some texts at a time, and a long one in windows that overlap, joined where they agree.

What the tokenizers package knows of a text takes some 50 to 160 times the text's memory, of which only the numbers of
the tokens are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

WINDOW = 1 << 18
"""Letters of a text that are encoded in one piece."""
AT_ONCE = 1 << 21
"""Letters that are encoded at once, by the package's threads."""
TEXTS = 1 << 14
"""Texts that are encoded at once, however short."""
OVERLAP = 1 << 12
"""Letters on each side of a seam that both windows have; in the inner half their tokens must agree."""
LONG = 1 << 23
"""Letters from which on progress is shown."""


def encoded(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of each text, int32 [t], without those that a tokenizer adds.

    Args:
        tokenizer: One of the tokenizers package.
        texts: The texts.
    """
    rows, letters = list[np.ndarray](), sum(map(len, texts))
    hidden = None if letters >= LONG else True
    with tqdm(total=letters, unit="letter", unit_scale=True, desc="tokens", disable=hidden) as bar:
        for batch in _batches(texts):
            if len(batch[0]) > WINDOW:
                rows.append(_long(tokenizer, batch[0], WINDOW, OVERLAP, bar.update))
            else:
                rows += _encoded(tokenizer, batch)
                bar.update(sum(map(len, batch)))
    return rows


def pieces(text: str) -> Iterator[str]:
    """A text whose tokens need not be exact, for counting: a long one cut anywhere, once a window."""
    yield from (text[start : start + WINDOW] for start in range(0, max(1, len(text)), WINDOW))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in order, as many as are encoded at once; a long one by itself."""
    batch, letters = list[str](), 0
    for text in texts:
        alone = len(text) > WINDOW or any(len(first) > WINDOW for first in batch[:1])
        if batch and (alone or len(batch) == TEXTS or letters + len(text) > AT_ONCE):
            yield batch
            batch, letters = [], 0
        batch.append(text)
        letters += len(text)
    if batch:
        yield batch


def _encoded(tokenizer: "Tokenizer", texts: list[str]) -> list[np.ndarray]:
    return [np.asarray(e.ids, np.int32) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _long(tokenizer: "Tokenizer", text: str, window: int, overlap: int, advance: Callable[[int], object]) -> np.ndarray:
    """The tokens of a long text, in windows that meet at seams.

    What stands far enough on either side of a seam does not change the tokens at it, unless something runs through the
    whole overlap (a word of thousands of letters, digits that are taken by threes): then the windows disagree there,
    and longer ones are taken, at last one of the whole.
    """
    if len(text) <= window:
        advance(len(text))
        return _encoded(tokenizer, [text])[0]
    parts, before, starts = list[np.ndarray](), np.zeros((3, 0), np.int32), range(0, len(text), window)
    whole = True
    together = max(1, AT_ONCE // window)
    for group in (starts[i : i + together] for i in range(0, len(starts), together)):
        firsts = [max(0, start - overlap) for start in group]
        windows = [text[first : _end(text, start + window + overlap)] for first, start in zip(firsts, group)]
        encodings = tokenizer.encode_batch(windows, add_special_tokens=False)
        for start, first, letters, encoding in zip(group, firsts, windows, encodings):
            after, whole_before = _tokens(encoding, first - start), whole
            whole = _is_whole(after[1:] - (first - start), letters)
            if start:
                before[1:] -= window  # letters are counted from the seam
                seam = _seam(before, after, overlap // 2, whole_before and whole)
                if seam is None:
                    advance(-group[0])
                    return _long(tokenizer, text, 4 * window, 4 * overlap, advance)
                parts.append(before[0, : seam[0]])
                after = after[:, seam[1] :]
            before = after
        advance(min(group[-1] + window, len(text)) - group[0])
    return np.concatenate([*parts, before[0]])


def _end(text: str, end: int) -> int:
    """Where a window ends that is to end about there, not in spaces."""
    spaces = len(text[end - 1 : end + OVERLAP]) - len(text[end - 1 : end + OVERLAP].lstrip())
    return end + spaces


def _tokens(encoding: "Encoding", shift: int) -> np.ndarray:
    """Number, first letter and end [3,t] of the tokens of a window, letters counted from `shift` on."""
    spans = np.asarray(encoding.offsets, np.int32).reshape(-1, 2).T + np.int32(shift)
    return np.stack([np.asarray(encoding.ids, np.int32), *spans])


def _is_whole(spans: np.ndarray, window: str) -> bool:
    """Whether tokens [2,t] cover a window to its end, but for spaces in it, which some tokenizers leave out."""
    if not spans.size or spans[1, -1] not in (len(window), len(window.rstrip())):
        return False
    changes = np.zeros(len(window) + 1, np.int32)
    np.add.at(changes, spans[0], 1)
    np.add.at(changes, spans[1], -1)
    uncovered = changes.cumsum()[:-1] <= 0
    return bool((np.frombuffer(window.encode("utf-32-le"), np.uint32)[uncovered] <= ord(" ")).all())


def _seam(before: np.ndarray, after: np.ndarray, near: int, whole: bool) -> tuple[int, int] | None:
    """How many tokens of a window, and from which on those of the next, are taken at a seam; None: they disagree.

    Both have the same tokens near it. Where the package passes over what a tokenizer has no token for, its letters are
    too few from there on, which a run of one token would not show: unless all letters have tokens, these must also be
    nowhere else.

    Args:
        before: Tokens of a window [3,t], letters counted from the seam.
        after: Those of the next.
        near: Letters on each side in which they must agree.
        whole: Whether `_is_whole` holds of both.
    """
    i, j = (np.flatnonzero((x[1] >= -near) & (x[2] <= near)) for x in (before, after))
    if not len(i) or len(i) != len(j) or (before[:, i] != after[:, j]).any():
        return None
    same = before[0, i].tobytes()
    if not whole and any((row := x[0].tobytes()).find(same, row.find(same) + 1) >= 0 for x in (before, after)):
        return None
    return int(i[len(i) // 2]), int(j[len(j) // 2])
