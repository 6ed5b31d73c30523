"""Elements that all figures share. A figure is PNG bytes, for light and for dark pages.

matplotlib is imported only when a figure is drawn.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dit_shd.core.installation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

COLOURS = ("#d9822b", "#3a87c8", "#5a9e5a", "#a569bd")
"""One for each student, the same in every picture."""
FRAME = "#31d0c6"
"""Colour of frames around tokens and groups."""
PANELS = 6
"""Largest number of panels side by side."""
DPI = 144
LIGHT = {"ink": "#333333", "faint": "#d8d8d8"}
DARK = {"ink": "#cfcfcf", "faint": "#484848"}


def require_matplotlib() -> None:
    """Refuse early if matplotlib is missing.

    Raises:
        UserError: It is.
    """
    require(["matplotlib"], "pages", "the page")


def both(draw: Callable[..., bytes], *args: Any, **kwargs: Any) -> tuple[bytes, bytes]:
    """A figure for light and for dark pages."""
    return draw(*args, **kwargs, dark=False), draw(*args, **kwargs, dark=True)


def bare(ax: "Axes", title: str = "") -> "Axes":
    """Remove ticks, grid and frame of axes, and set the title."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.set_title(title, loc="left", fontsize=8)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def mark(ax: "Axes", token: int, tokens: tuple[int, int], pixels: tuple[int, int]) -> None:
    """Draw a frame around the query token.

    Args:
        ax: Axes with an image.
        token: Number of the token.
        tokens: Rows and columns of tokens.
        pixels: Rows and columns of the image.
    """
    from matplotlib.patches import Rectangle

    high, wide = pixels[0] / tokens[0], pixels[1] / tokens[1]
    corner = (token % tokens[1] * wide - 0.5, token // tokens[1] * high - 0.5)
    ax.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=FRAME, linewidth=1.6))


def panels(figure: "Figure", items: Sequence[T], **kwargs: Any) -> "Iterator[tuple[Axes, T]]":
    """Axes for each item, up to PANELS side by side."""
    columns = min(len(items), PANELS)
    axes = figure.subplots(-(-len(items) // columns), columns, squeeze=False, **kwargs).ravel()
    for ax in axes[len(items) :]:
        ax.remove()
    return zip(axes, items)


def panels_size(count: int, wide: float, high: float) -> tuple[float, float]:
    """Width and height in inches of a figure of panels of this size."""
    return min(count, PANELS) * wide, -(-count // PANELS) * high


def png(draw: "Callable[[Figure], None]", inches: tuple[float, float], dark: bool) -> bytes:
    """Draw a figure without pyplot or global state.

    Args:
        draw: Draws into an empty figure.
        inches: Width and height.
        dark: Whether it is for a dark page.

    Returns:
        The PNG.
    """
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
