"""Build the documentation site in build/site, which needs no server: `make docs-site`, or python docs/make_site.py.

The pages are the Markdown files of the repository, at their own places, so that their links work as they do in a
checkout; what they link to is copied beside them. The reference of commands, configs and Python is made from the code.
Warnings are errors, and so are dead links (mkdocs --strict, docs/mkdocs.yml).
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

from reference import cli_page, configs_page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE, SITE = ROOT / "build" / "site_source", ROOT / "build" / "site"
LINK = re.compile(r"(\[[^\[\]]*\])\(([^)\s#]+)(#[^)\s]*)?\)")
"""A link or a picture in Markdown: its text, its target and its anchor."""
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md", "experiments/README.md",
         "sampling/README.md", "eval/README.md", "docs/*.md")  # fmt: skip
MODULES = {
    "The public names": "dit_shd",
    "Models by name, path or hub": "dit_shd.models.loading",
    "Sampling": "dit_shd.diffusion.sampler",
    "Evaluation": "dit_shd.evaluation.evaluate",
    "Training": "dit_shd.training.trainer",
    "What a loss is": "dit_shd.distillation.losses",
    "What a task is": "dit_shd.tasks",
}
"""Heading of the reference of Python -> module; of the first its public names."""


def assemble() -> None:
    """Copy every page and what it links to into SOURCE, and make the reference of Python."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    for page in sorted({page for pattern in PAGES for page in ROOT.glob(pattern)}):
        text = LINK.sub(lambda match, page=page: _kept(page, match), page.read_text(encoding="utf-8"))
        _write(page.relative_to(ROOT), text.encode())
    for page, text in {"cli": cli_page(), "configs": configs_page(), "python": python_page()}.items():
        _write(Path(f"docs/{page}.md"), text.encode())
    for name in ("extra.css", "file_worker.js"):
        _write(Path("docs") / name, (DOCS / name).read_bytes())


def _kept(page: Path, match: re.Match[str]) -> str:
    """A link as the site has it; the file that it leads to is copied, unless it is a page. A folder is its README."""
    text, target, anchor = match[1], match[2], match[3] or ""
    if re.match(r"\w+:", target):
        return match[0]
    file = (page.parent / unquote(target)).resolve()
    if file.is_dir() and (file / "README.md").is_file():
        return f"{text}({target.rstrip('/')}/README.md{anchor})"
    if file.is_dir():
        return text[1:-1]
    if file.is_file() and file.suffix != ".md":
        _write(file.relative_to(ROOT), file.read_bytes())
    return match[0]


def python_page() -> str:
    """The reference of Python: what mkdocstrings makes of docstrings."""
    sys.path.insert(0, str(ROOT))
    import dit_shd

    shapes = "b batch, h teacher heads, g student heads, n query tokens, m key tokens, d head width, e model width"
    parts = ["# Python", f"Shapes are in brackets: {shapes}."]
    for heading, module in MODULES.items():
        parts.append(f"## {heading}")
        names = (
            [f"{dit_shd._HOME[name]}.{name}" for name in sorted(dit_shd.__all__)] if module == "dit_shd" else [module]
        )
        parts += [f"::: {name}" for name in names]
    return "\n\n".join(parts) + "\n"


def _write(place: Path, content: bytes) -> None:
    file = SOURCE / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def from_elsewhere() -> list[str]:
    """Scripts, styles and pictures that a page of the site would load from another host."""
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*src=[\"']?(https?:[^\"' >]*)|<link[^>]*rel=[\"']?stylesheet[^>]*(https?:[^\"' >]*)"
    )
    return sorted(
        {f"{page.name}: {match[0]}" for page in SITE.rglob("*.html") for match in loaded.finditer(page.read_text())}
    )


def build() -> int:
    """Build the site; the exit code of mkdocs, or 1 where a page is not whole by itself."""
    assemble()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(DOCS / "mkdocs.yml"),
    ]
    code = subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode
    outside = from_elsewhere() if not code else []
    print("\n".join(f"loaded from elsewhere: {line}" for line in outside), file=sys.stderr)
    return code or int(bool(outside))


if __name__ == "__main__":
    code = build()
    if not code:
        print(f"open {SITE / 'index.html'}")
    sys.exit(code)
