"""The pictures of pages, each as PNG bytes, for light and for dark pages.

Here is what all of them share; training.py, attention.py, heads.py and alpha.py draw. matplotlib is imported only when
something is drawn.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

from dit_shd.core.errors import UserError

T = TypeVar("T")

COLOURS = ("#d9822b", "#3a87c8", "#5a9e5a", "#a569bd")
"""One for each student, the same in every picture."""
FRAME = "#31d0c6"
"""Around what is meant."""
PANELS = 6
"""Panels side by side."""
DPI = 144
LIGHT = {"ink": "#333333", "faint": "#d8d8d8"}
DARK = {"ink": "#cfcfcf", "faint": "#484848"}


def require_matplotlib() -> None:
    """Refuse early where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UserError('the page needs the package matplotlib; install it with: pip install "dit_shd[demo]"')


def both(draw: Callable[..., bytes], *args: Any, **kwargs: Any) -> tuple[bytes, bytes]:
    """A figure for light and for dark pages."""
    return draw(*args, **kwargs, dark=False), draw(*args, **kwargs, dark=True)


def bare(ax: Any, title: str = "") -> Any:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.set_title(title, loc="left", fontsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def mark(ax: Any, token: int, tokens: tuple[int, int], pixels: tuple[int, int]) -> None:
    """A frame around the query token; tokens and pixels: how many rows and columns there are of each."""
    from matplotlib.patches import Rectangle

    high, wide = pixels[0] / tokens[0], pixels[1] / tokens[1]
    corner = (token % tokens[1] * wide - 0.5, token // tokens[1] * high - 0.5)
    ax.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=FRAME, linewidth=1.6))


def panels(figure: Any, items: Sequence[T], **kwargs: Any) -> Iterator[tuple[Any, T]]:
    """Axes for each item, up to PANELS side by side."""
    columns = min(len(items), PANELS)
    axes = figure.subplots(-(-len(items) // columns), columns, squeeze=False, **kwargs).ravel()
    for ax in axes[len(items) :]:
        ax.remove()
    return zip(axes, items)


def panels_size(count: int, wide: float, high: float) -> tuple[float, float]:
    """Inches of a figure of panels of this size."""
    return min(count, PANELS) * wide, -(-count // PANELS) * high


def png(draw: Callable[[Any], None], inches: tuple[float, float], dark: bool) -> bytes:
    """Draw into a figure of its own (no pyplot, no global state) and give the PNG."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    ink = theme["ink"]
    settings = {
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": ink,
        "axes.titlesize": 10,
        "axes.titlecolor": ink,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme["faint"],
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
        "figure.facecolor": "none",
    }
    stream = io.BytesIO()
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="png", dpi=DPI, transparent=True)
    return stream.getvalue()
