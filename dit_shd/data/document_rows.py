"""Documents in rows of tables: which column has the text, and what stands before it."""

import re
from dataclasses import dataclass
from typing import Any

from dit_shd.core.errors import UserError

FIELD = re.compile(r"\{([^{}\":,\n]+)\}")
"""A column in a prompt."""
HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A text, and what stands before it that is not to be learned: an instruction."""

    text: str
    prompt: str = ""
    others: tuple[str, ...] = ()
    """Further texts that would do as well, for figures that compare with any of them."""
    template: tuple[tuple[int, int], ...] = ()
    """From where to where the prompt is its template's own, and not a row's."""

    @property
    def halves(self) -> tuple[str, str]:
        """What is encoded as prompt and as text: spaces between them begin the text, as tokenizers have them."""
        prompt = self.prompt.rstrip(" ")
        return prompt, self.prompt[len(prompt) :] + self.text


@dataclass(frozen=True)
class Blank(Document):
    """A row without a text, which is left out."""

    where: str = ""
    """The row, to a user."""


@dataclass(frozen=True)
class Columns:
    """Where a document is in a row of a table."""

    text: str = "text"
    """The column of the text, or of a list of them."""
    prompt: str | None = None
    """What comes before it, with columns in braces: "Question: {question} Answer: "; None for nothing."""

    def document(self, row: dict[str, Any], where: str) -> Document:
        """The document of a row; a Blank where its text is null, or empty but for spaces.

        Raises:
            UserError: A column is missing, or holds no text.
        """
        texts = row.get(self.text)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            text, *others = (_whole(text, where, self.text) for text in texts)
        else:
            text, others = self._text(row, self.text, where), []
        prompt, template = "", []
        for i, piece in enumerate(FIELD.split(self.prompt or "")):  # its own letters, a column, its own letters, ...
            if i % 2:
                prompt += self._text(row, piece, where)
            elif piece:
                template.append((len(prompt), len(prompt) + len(piece)))
                prompt += piece
        parts = text, prompt, tuple(others), tuple(template)
        return Document(*parts) if text.strip() else Blank(*parts, where)

    def _text(self, row: dict[str, Any], column: str, where: str) -> str:
        if column not in row:
            remedy = "; data.column=NAME says which one has the text" if column == self.text else ""
            raise UserError(f"{where}: wanted a column '{column}', found {', '.join(map(str, row))}{remedy}")
        if row[column] is None and column == self.text:
            return ""
        if not isinstance(row[column], str):
            raise UserError(f"{where}: {column}: wanted text, found {type(row[column]).__name__}")
        return _whole(row[column], where, column)


def _whole(text: str, where: str, column: str) -> str:
    """A text that can be encoded.

    Raises:
        UserError: It was cut in the middle of a letter, as JSON can write it.
    """
    if HALF.search(text):
        raise UserError(f"{where}: {column}: wanted text, found half a letter in it (a surrogate without the other)")
    return text
