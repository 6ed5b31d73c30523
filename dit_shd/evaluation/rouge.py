"""ROUGE-L of responses to instructions, by the rouge-score package."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from dit_shd.core.errors import UserError
from dit_shd.core.installation import install_command

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def other_letters(text: str) -> bool:
    """Whether most letters of a text are others than a to z, which are all that the package's words are made of.

    Against such a reference every response scores 0, or by the few words of it that are left.
    """
    letters = [letter for letter in text if letter.isalnum()]
    return sum(letter.isascii() for letter in letters) < len(letters) / 2


def rouge_l(response: str, references: Sequence[str]) -> float:
    """ROUGE-L, 0 to 1: the F measure of the longest common subsequence of stemmed words (Lin, 2004).

    Args:
        response: The response of a model.
        references: Right answers; the nearest one counts.

    Raises:
        UserError: The package is not installed.
    """
    return max(float(_scorer().score(reference, response)["rougeL"].fmeasure) for reference in references)


@lru_cache
def _scorer() -> "RougeScorer":
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        command = install_command("language")
        raise UserError(f"rouge: needs the package rouge-score; install it with: {command}") from error
    return RougeScorer(["rougeL"], use_stemmer=True)
