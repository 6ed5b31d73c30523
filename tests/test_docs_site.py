"""Pages of the documentation: every link in a checkout leads somewhere, what the site lists is there.

The site itself is built by `make docs-site` (in .ci/run), with warnings and dead links as errors, and in the slow test.
"""

import re
import subprocess
import sys
from urllib.parse import unquote

import pytest
import yaml
from browser import window

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCES = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def pages(root):
    return [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("*/README.md")]


def slug(heading: str) -> str:
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


def test_no_link_is_dead(root):
    dead = []
    for page in pages(root):
        for target in LINK.findall(FENCES.sub("", page.read_text())):
            if re.match(r"\w+:", target):
                continue
            place, _, anchor = unquote(target).partition("#")
            file = page if not place else (page.parent / place).resolve()
            if not file.exists():
                dead.append(f"{page.name}: {target}")
            elif anchor and file.suffix == ".md" and file.name not in ("cli.md", "configs.md", "python.md"):
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                if anchor not in map(slug, headings):
                    dead.append(f"{page.name}: {target}: no such heading")
    assert not dead


def test_what_the_site_lists_is_there(root):
    nav = yaml.safe_load((root / "docs" / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w./-]+\.md", str(nav))
    assert len(listed) > 20 and all((root / page).is_file() for page in listed)
    assert "Project" in nav[-1], "pages that are not listed are added there"


@pytest.mark.parametrize("page", ["concepts", "glossary"])
def test_the_words_of_the_field_are_explained(page, root):
    text = (root / "docs" / f"{page}.md").read_text().lower()
    for word in ("alpha", "plan", "layer map", "residual", "clamped", "squeez", "merge"):
        assert word in text


def test_messages_that_are_explained_are_those_of_the_code(root):
    explained = re.findall(r"^\| `([^`]*)`", (root / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(explained) > 5
    sources = "".join(file.read_text() for file in (root / "dit_shd").rglob("*.py"))
    said = re.sub(r"\"\s*\n\s*f?\"", "", sources)
    parts = {message: message.removesuffix(": no") for message in explained}
    assert not [message for message, part in parts.items() if part not in said]


@pytest.mark.slow
def test_the_site_is_whole_and_is_searched_from_its_files(root):
    done = subprocess.run([sys.executable, root / "docs" / "make_site.py"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    with window() as shown:
        page = shown.show(root / "build" / "site" / "docs" / "concepts.html")
        page.keyboard.press("s")
        page.keyboard.type("residual")
        page.wait_for_selector(".md-search-result__item")
        assert "Glossary" in page.inner_text(".md-search-result__list")
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in shown.asked)
