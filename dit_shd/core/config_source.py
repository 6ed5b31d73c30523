"""The keys of a config, read from its source without importing it, so that help does not import torch.

A config is a dataclass whose fields are `key: type = option(default, "meaning", ...)`; defaults and meanings may use
constants of the same file. tests/cli/test_specification.py compares what is read here with the classes themselves.
"""

import ast
import sys
from pathlib import Path, PurePath
from typing import Any

import yaml

from dit_shd.core.config import REQUIRED

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package dit_shd."""


def source_file(module: str) -> Path:
    """The file of a module of dit_shd, or of any module that has been imported."""
    imported = getattr(sys.modules.get(module), "__file__", None)
    if imported is not None:
        return Path(imported)
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported_from(tree: ast.Module, name: str, module: str) -> str:
    """The module in which a name of `module` is defined; `module` itself where it is not imported."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return node.module
    return module


def parse(module: str) -> ast.Module:
    """The syntax tree of such a module."""
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


def explain_source(module: str, name: str, indent: str = "  ") -> str:
    """One line for each key of the class `name` of a module: its default and meaning, for `--help`."""
    tree = parse(module)
    home = imported_from(tree, name, module)
    if home != module:
        return explain_source(home, name, indent)
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    known = _constants(tree)
    lines = []
    for node in cls.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_option(node.value)):
            continue
        key, call = node.target.id, node.value
        assert isinstance(call, ast.Call)
        doc = _value(call.args[1], known)
        nested = _nested(call.args[0], tree)
        if nested is not None:
            lines.append(f"{indent}{key}:  {doc}")
            lines.append(explain_source(imported_from(tree, nested, module), nested, indent + "  "))
            continue
        default = _value(call.args[0], known)
        shown = "needed" if default is REQUIRED else yaml.safe_dump(default, default_flow_style=True).splitlines()[0]
        lines.append(f"{indent}{key}={shown}  {doc}".rstrip())
    return "\n".join(lines)


def _is_option(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option"


def _nested(node: ast.expr, tree: ast.Module) -> str | None:
    """The name of the config class of dit_shd that a default constructs without arguments."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args or node.keywords:
        return None
    name = node.func.id
    here = any(isinstance(cls, ast.ClassDef) and cls.name == name for cls in tree.body)
    return name if here or imported_from(tree, name, "").startswith("dit_shd") else None


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The constants of a file whose values can be evaluated, and those that it imports from dit_shd."""
    known: dict[str, Any] = {
        "REQUIRED": REQUIRED,
        "Path": lambda path="": str(PurePath(path)),
        "Plugin": lambda name, options=None: {"name": name, **(options or {})},
        "map": map,
        "str": str,
    }
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dit_shd"):
            names = [alias.name for alias in node.names if alias.name.isupper()]
            known |= {name: _constants(parse(node.module)).get(name) for name in names}
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if len(targets) == 1 and isinstance(targets[0], ast.Name):
                try:
                    known[targets[0].id] = _value(node.value, known)
                except Exception:  # its value is known at run time only
                    continue
    return known


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """The value of an expression over constants, in source of dit_shd."""
    return eval(compile(ast.Expression(node), "source", "eval"), {"__builtins__": {}, **known})
