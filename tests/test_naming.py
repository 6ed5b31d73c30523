"""Names and first words in the package: a variable by its noun, a config by its type, an entry by a capital."""

import ast
import re

from package_trees import TREES

PLACEHOLDERS = {"few", "found", "ours", "own", "theirs", "told"}
"""Names that say who has something and not what it is; captures, settings, student, teacher say it."""


def test_a_config_has_a_type():
    """`config: Any` is a config of a room above, seen from below."""
    assert not [
        f"{file}:{node.lineno}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.arg) and node.arg == "config" and _is_any(node.annotation))
        or (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "config" and _is_any(node.annotation))
    ]


def test_a_variable_is_named_by_its_noun():
    places = {
        f"{file}:{node.lineno}: {name}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if (name := _assigned(node)) in PLACEHOLDERS
    }
    assert not sorted(places)


def _assigned(node: ast.AST) -> str | None:
    """The variable that is assigned or the argument that is declared by a node."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id
    return node.arg if isinstance(node, ast.arg) else None


def small_entries(docstring: str) -> list[str]:
    """Entries of Args and Raises, and first lines of Returns, that begin with a small word; a symbol or `code` may."""
    strange, section, first = [], "", False
    for line in docstring.splitlines():
        indent = len(line) - len(line.lstrip())
        if not indent and line:
            section, first = line, True
        elif indent == 4 and section in ("Args:", "Raises:", "Returns:", "Yields:", "Attributes:"):
            entry = r" +(.+)" if section in ("Returns:", "Yields:") and first else r" +\*{0,2}\w+: +(.+)"
            match = re.match(entry, line) if first or section not in ("Returns:", "Yields:") else None
            strange += [line] if match and re.match(r"[a-z][a-z-]+([ ,.;:']|$)", match[1]) else []
            first = False
    return strange


def test_entries_of_docstrings_begin_with_a_capital():
    assert small_entries(
        "A\n\nArgs:\n    x: small\n        y: of x\n    z: A b\n\nReturns:\n    w [b].\n    it: is"
    ) == ["    x: small"]
    assert small_entries("A\n\nReturns:\n    the sum") == ["    the sum"]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [(f, node) for f, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kinds)]
    assert not {f"{f}: {line}" for f, node in documented for line in small_entries(ast.get_docstring(node) or "")}


def _is_any(annotation: ast.expr | None) -> bool:
    return annotation is not None and "Any" in [n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)]
