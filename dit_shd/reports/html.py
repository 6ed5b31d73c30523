"""Self-contained pages: one HTML file with its style, script and pictures inside, that asks nobody for anything.

The style is static/page.css, the script static/page.js: our own, since what it does is small (sorting, copying,
enlarging, reading charts, exploring maps) and chart libraries weigh 50 kB to 4 MB a page.
"""

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from dit_shd.core.files import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

STATIC = Path(__file__).parent / "static"
LISTED = 4
"""Number of sections from which a page has a list of contents."""
GENERATOR = "dit_shd"
"""What pages name as their maker, by which their own are known."""


@dataclass(frozen=True)
class Link:
    """A file that a page links to.

    Args:
        text: What is shown.
        file: The file.
    """

    text: str
    file: Path


@cache
def style() -> str:
    """The CSS of every page."""
    return (STATIC / "page.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """The JavaScript of every page."""
    return (STATIC / "page.js").read_text(encoding="utf-8")


def write_page(out: Path, title: str, body: Sequence[str], reload_seconds: int = 0) -> None:
    """Write the page atomically.

    Args:
        out: The file.
        title: Its title.
        body: HTML of its parts: a header, sections, a footer.
        reload_seconds: Interval in which the page reloads itself; 0 for never.

    Raises:
        UserError: It could not be written.
    """
    write_text(out, page_html(title, body, reload_seconds), "make room or choose another out=FILE")


def is_page(file: Path, title: str = "") -> bool:
    """Whether a path is a page that dit_shd wrote, with a title that begins so."""
    if not file.is_file():
        return False
    with open(file, encoding="utf-8", errors="replace") as stream:
        head = stream.read(2000)
    return f'name="generator" content="{GENERATOR}"' in head and f"<title>{html.escape(title)}" in head


def page_html(title: str, body: Sequence[str], reload_seconds: int = 0) -> str:
    """A whole page. Its policy lets a browser run the page's own script and load nothing."""
    content = "\n".join(part for part in body if part)
    contents = _contents(content)
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    reload = f' data-reload="{reload_seconds}"' if reload_seconds else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{GENERATOR}">'
        f"<title>{html.escape(title)}</title><style>{style()}</style></head>\n<body{reload}>\n"
        f'<a class="skip" href="#main">to the page</a><div class="page{" listed" if contents else ""}">{contents}'
        f'<main id="main">\n{content}\n</main></div><script>{script()}</script></body></html>\n'
    )


def _contents(content: str) -> str:
    """The list of a page's sections, if there are several."""
    sections = re.findall(r'<section id="([^"]*)"><h2>(.*?)</h2>', content)
    if len(sections) < LISTED:
        return ""
    items = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in sections)
    listed = f'<nav aria-label="contents"><ul>{items}</ul></nav>'
    return f'<details class="contents"><summary>Contents</summary>{listed}</details>'


def header(kind: str, title: str, findings: Sequence[str], tiles: Mapping[str, str] | None = None, *parts: str) -> str:
    """The head of a page: what it is, its title, what was found, in words and in a handful of numbers.

    Args:
        kind: One or two words above the title.
        title: The title of the page.
        findings: Sentences, the most important first.
        tiles: What it is -> number.
        parts: HTML below.
    """
    words = "".join(f'<p class="finding">{html.escape(text)}</p>' for text in findings)
    numbers = "".join(f"<li><b>{html.escape(n)}</b>{html.escape(w)}</li>" for w, n in (tiles or {}).items())
    tiled = f'<ul class="tiles">{numbers}</ul>' if numbers else ""
    above = f'<p class="kind">{html.escape(kind)}</p><h1>{html.escape(title)}</h1>'
    return f"<header>{above}{words}{tiled}{''.join(parts)}</header>"


def section(title: str, *parts: str) -> str:
    """A heading and ready-made HTML below it."""
    name = re.sub(r"[^\w]+", "-", title.lower()).strip("-") or "section"
    return f'<section id="{name}"><h2>{html.escape(title)}</h2>\n' + "\n".join(parts) + "</section>"


def paragraph(text: str, css: str = "") -> str:
    """Plain text, escaped."""
    return f'<p class="{css}">{html.escape(text)}</p>' if css else f"<p>{html.escape(text)}</p>"


def figure(inner: str, what: str, caption: str = "", css: str = "") -> str:
    """A figure that can be enlarged.

    Args:
        inner: Its HTML.
        what: Its name for the button, in plain text.
        caption: Above it.
        css: Classes.
    """
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    label = html.escape(f"enlarge: {what}", quote=True)
    button = f'<button class="enlarge" type="button" aria-label="{label}">⤢</button>'
    return f'<figure class="{css}">{words}{button}{inner}</figure>'


def picture(image: bytes, alt: str, caption: str = "", css: str = "crisp", columns: Sequence[str] = ()) -> str:
    """A figure from PNG bytes, with its caption (or what it is) and the names of its columns above it."""
    names = "".join(f"<span>{html.escape(name)}</span>" for name in columns)
    above = f'<div class="columns" style="grid-template-columns: repeat({len(columns)}, 1fr)">{names}</div>'
    shown = f'<img src="{data_uri(image)}" alt="{html.escape(alt, quote=True)}">'
    return figure(f'<div class="sheet">{above if columns else ""}{shown}</div>', alt, caption or alt, css)


def wide(inner: str, what: str = "table") -> str:
    """HTML that scrolls sideways on a narrow screen, also by keys."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(what, quote=True)}">{inner}</div>'


def side_by_side(figures: Sequence[str]) -> str:
    """Figures in a row that wraps on a narrow screen."""
    return f'<div class="row">{"".join(figures)}</div>'


def charts(figures: Sequence[str], small: bool = False) -> str:
    """Charts in as many columns as fit."""
    return f'<div class="charts{" small" if small else ""}">{"".join(figures)}</div>'


def legend(names: Mapping[str, str], dots: bool = False) -> str:
    """Series by name -> classes of their lines, or of their dots."""
    mark = '<circle class="dot {}" cx="24" cy="6" r="5"/>' if dots else '<polyline class="{}" points="0,6 30,6"/>'
    shown = f'<svg viewBox="0 0 30 12" aria-hidden="true">{mark}</svg>'
    items = (f"<li>{shown.format(css)}{html.escape(name)}</li>" for name, css in names.items())
    return f'<ul class="legend">{"".join(items)}</ul>'


def linked(link: Link, page: Path) -> str:
    """A link to a file, relative to the page, so that the folder may be moved."""
    target = quote(os.path.relpath(link.file, page.parent))
    return f'<a href="{target}">{html.escape(link.text)}</a>'


def png(image: "Image | np.ndarray", optimize: bool = True) -> bytes:
    """A picture, or its pixels uint8 [y,x] or [y,x,3], as a PNG.

    Args:
        image: The picture.
        optimize: Whether to search for the smallest file; of noise, that of the search is no smaller.
    """
    from PIL import Image

    stream = io.BytesIO()
    shown = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    shown.save(stream, format="PNG", optimize=optimize)
    return stream.getvalue()


def data_uri(image: bytes, kind: str = "image/png") -> str:
    """An image file inside of a page."""
    return f"data:{kind};base64," + base64.b64encode(image).decode("ascii")
