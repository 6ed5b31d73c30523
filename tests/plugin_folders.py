"""The plug-in folders of the package; there is no list to edit."""

import ast
import importlib
from pathlib import Path

import dit_shd
from dit_shd.core.plugins import PluginFolder

PACKAGE = Path(dit_shd.__file__).parent


def makes_a_folder(tree: ast.Module) -> bool:
    """Whether a file assigns a PluginFolder."""
    values = [node.value for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return any(isinstance(value, ast.Call) and ast.unparse(value.func) == "PluginFolder" for value in values)


def plugin_folders() -> list[PluginFolder]:
    """Every PluginFolder that an __init__.py of ours defines."""
    files = [file for file in sorted(PACKAGE.rglob("__init__.py")) if makes_a_folder(ast.parse(file.read_text()))]
    names = [".".join(file.parent.relative_to(PACKAGE.parent).parts) for file in files]
    return [v for name in names for v in vars(importlib.import_module(name)).values() if isinstance(v, PluginFolder)]
