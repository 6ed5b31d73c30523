"""The keys of a config, read from its source without importing it, so that help does not import torch.

A config is a dataclass whose fields are `key: type = option(default, "meaning", ...)`; defaults and meanings may use
constants of the same file. tests/cli/test_specification.py compares what is read here with the classes themselves.
"""

import ast
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path, PurePath
from typing import Any

import yaml

from dit_shd.core.config import LARGE, REQUIRED

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
            package = module if source_file(module).name == "__init__.py" else module.rpartition(".")[0]
            return resolve_name("." * node.level + node.module, package)
    return module


def defined_in(name: str, module: str) -> str:
    """The module that defines a name, through those of dit_shd that only hand it on.

    Args:
        name: As `module` calls it.
        module: Where it is used.
    """
    home = imported_from(parse(module), name, module)
    return home if home == module or not home.startswith("dit_shd") else defined_in(name, home)


@lru_cache(maxsize=256)
def parse(module: str) -> ast.Module:
    """The syntax tree of such a module."""
    return ast.parse(source_file(module).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Key:
    """A key of a config, as its source describes it."""

    name: str
    """With the keys that it is inside of: optimizer.lr."""
    kind: str
    """The values that it takes, in a few words; empty for a group of keys."""
    default: str
    """As YAML; empty for a group of keys."""
    doc: str
    heading: str = ""
    """The heading above it in help."""
    nested: bool = False
    """Whether it is a group of keys, which follow it."""
    inside: "tuple[Key, ...]" = ()
    """The keys of its value, where that is a mapping with keys of its own."""

    @property
    def depth(self) -> int:
        """The number of keys that it is inside of."""
        return self.name.count(".")

    def line(self) -> str:
        """The key, its default, what it takes, and its meaning."""
        last = self.name.rpartition(".")[2]
        if self.nested:
            return f"{last}:  {self.doc}".rstrip()
        return f"{last}={self.default}  [{self.kind}] {self.doc}".rstrip()


def keys_of(module: str, name: str, prefix: str = "") -> list[Key]:
    """The keys of the config class `name` of a module, those of the configs inside of it after the key they are in.

    Args:
        module: Its dotted name.
        name: The name of the class.
        prefix: The prefix of the names of its keys.
    """
    tree = parse(module)
    home = imported_from(tree, name, module)
    if home != module:
        return keys_of(home, name, prefix)
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    known = constants(tree)
    keys: list[Key] = []
    for node in cls.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_option(node.value)):
            continue
        key, call = f"{prefix}{node.target.id}", node.value
        assert isinstance(call, ast.Call)
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        heading = str(value_of(options["heading"], known)) if "heading" in options else ""
        doc = str(value_of(call.args[1], known))
        nested = _nested(call.args[0], tree)
        if nested is not None:
            keys.append(Key(key, "", "", doc, heading, nested=True))
            keys += keys_of(imported_from(tree, nested, module), nested, f"{key}.")
            continue
        default = value_of(call.args[0], known)
        bounds = _bounds(options["range"], known) if "range" in options else None
        kind = kind_of(node.annotation, tree) + (_range(*bounds) if bounds else "")
        keys.append(Key(key, kind, shown(default), doc, heading, inside=keys_inside(node.annotation, module, key)))
    return keys


def keys_inside(annotation: ast.expr | None, module: str, key: str) -> tuple[Key, ...]:
    """The keys of the configs of dit_shd that an annotation names.

    Args:
        annotation: As in the source of `module`; None where there is none.
        module: Where it stands.
        key: The key whose annotation it is.
    """
    keys: list[Key] = []
    for node in ast.walk(annotation) if annotation is not None else ():
        if not isinstance(node, ast.Name):
            continue
        home = defined_in(node.id, module)
        if home.startswith("dit_shd") and any(
            isinstance(cls, ast.ClassDef) and cls.name == node.id for cls in parse(home).body
        ):
            keys += keys_of(home, node.id, f"{key}.")
    return tuple(keys)


def shown(default: object) -> str:
    """A default as it can be given on the command line."""
    if isinstance(default, str) and default:
        return default
    default = list(default) if isinstance(default, tuple) else default
    return "needed" if default is REQUIRED else yaml.safe_dump(default, default_flow_style=True).splitlines()[0]


def _bounds(node: ast.expr, known: dict[str, Any]) -> tuple[float, float] | None:
    """The range of a number; None where one of its ends is known at run time only."""
    try:
        return value_of(node, known)
    except NameError:
        return None


def _range(low: float, high: float) -> str:
    return f", {low:g} or more" if high >= LARGE else f", {low:g} to {high:g}"


WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true | false",
    "str": "text",
    "Path": "path",
    "Place": "path or hub:OWNER/NAME",
    "Plugin": "plug-in",
    "None": "null",
}
"""What help calls the types of keys."""


def kind_of(annotation: ast.expr | None, tree: ast.Module) -> str:
    """The values that an annotation allows, in a few words.

    Args:
        annotation: As in the source; None where there is none.
        tree: Of the file in which it stands, for names that stand for other types.
    """
    match annotation:
        case None:
            return "any"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if name in WORDS:
            return WORDS[name]
        case ast.Name(id=name):
            return _alias(name, tree)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return " | ".join(dict.fromkeys((kind_of(left, tree), kind_of(right, tree))))
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=choices)):
            return " | ".join(str(ast.literal_eval(choice)) for choice in choices)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choice):
            return str(ast.literal_eval(choice))
        case ast.Subscript(value=ast.Name(id="list" | "Sequence" | "tuple"), slice=item):
            item = item.elts[0] if isinstance(item, ast.Tuple) else item
            return f"[{kind_of(item, tree)}, ...]"
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[key, value])):
            return f"{{{kind_of(key, tree)}: {kind_of(value, tree)}}}"
        case _:
            return "any"


def _alias(name: str, tree: ast.Module) -> str:
    """What a name of a type stands for, in this file of dit_shd or the one that it is imported from."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return kind_of(value, tree)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if target == name:
                return kind_of(value, tree)
            case _:
                continue
    home = imported_from(tree, name, "")
    return _alias(name, parse(defined_in(name, home))) if home.startswith("dit_shd") else name


def _is_option(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option"


def _nested(node: ast.expr, tree: ast.Module) -> str | None:
    """The name of the config class of dit_shd that a default constructs without arguments."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args or node.keywords:
        return None
    name = node.func.id
    here = any(isinstance(cls, ast.ClassDef) and cls.name == name for cls in tree.body)
    return name if here or imported_from(tree, name, "").startswith("dit_shd") else None


def constants(tree: ast.Module) -> dict[str, Any]:
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
            known |= {name: constants(parse(node.module)).get(name) for name in names}
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if len(targets) == 1 and isinstance(targets[0], ast.Name):
                try:
                    known[targets[0].id] = value_of(node.value, known)
                except Exception:  # its value is known at run time only
                    continue
    return known


def value_of(node: ast.expr, known: dict[str, Any]) -> Any:
    """The value of an expression over constants, in source of dit_shd."""
    return eval(compile(ast.Expression(node), "source", "eval"), {"__builtins__": {}, **known})
