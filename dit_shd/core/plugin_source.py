"""The plug-ins of a folder and their keys, read from their source, so that help and checks import nothing heavy."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from dit_shd.core.config_source import (
    Key,
    constants,
    defined_in,
    keys_inside,
    kind_of,
    parse,
    shown,
    source_file,
    value_of,
)


@dataclass(frozen=True)
class PluginSource:
    """A plug-in, as its source describes it."""

    name: str
    kind: str
    """What errors call plug-ins of its folder."""
    text: str
    """Its docstring up to the arguments."""
    keys: list[Key]
    open: bool
    """Whether it takes keys that its source does not name."""


def plugin_names(package: str) -> list[str]:
    """The plug-ins of a folder, by the names of its files."""
    files = source_file(package).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


@lru_cache(maxsize=256)
def plugin_source(package: str, name: str) -> PluginSource:
    """A plug-in that ships with dit_shd.

    Args:
        package: Dotted name of its folder.
        name: The name of its file.
    """
    base, kind = _base(package)
    module = f"{package}.{name}"
    tree = parse(module)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and _is_a(module, node, base)]
    if len(classes) != 1:  # its keys are checked when it is built
        return PluginSource(name, kind, ast.get_docstring(tree) or name, [], True)
    (cls,) = classes
    keys: dict[str, Key] = {}
    is_open = False
    docs: dict[str, str] = {}
    text = ast.get_docstring(cls) or ""
    for function in ("from_options", "__init__"):
        home = _method(module, cls, function)
        if home is None:
            continue
        where, node, owner = home
        docs = {**_documented(ast.get_docstring(owner) or ""), **_documented(ast.get_docstring(node) or ""), **docs}
        is_open |= function == "__init__" and node.args.kwarg is not None
        keys |= {key.name: key for key in _parameters(node, where, {**docs, **_documented(text)})}
    return PluginSource(name, kind, re.split(r"\n\s*Args:|\n\s*Raises:", text)[0].strip(), list(keys.values()), is_open)


def _base(package: str) -> tuple[str, str]:
    """The name of the class of which a folder's plug-ins are, and what errors call them."""
    call = _folder(package)
    return ast.unparse(call.args[1]).partition("[")[0], str(ast.literal_eval(call.args[2]))


def _folder(package: str) -> ast.Call:
    """The call of PluginFolder that a package makes."""
    for node in parse(package).body:
        match node:
            case ast.Assign(value=ast.Call() as call) | ast.AnnAssign(value=ast.Call() as call):
                if ast.unparse(call.func) == "PluginFolder":
                    return call
            case _:
                continue
    raise AssertionError(f"{package} defines no PluginFolder")


def plugin_synonyms(package: str) -> dict[str, str]:
    """Other names for the plug-ins of a folder, in lower case -> the plug-in that is meant."""
    for name in _folder(package).args[3:]:
        for node in parse(package).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [ast.unparse(name)]:
                return dict(ast.literal_eval(node.value))
    return {}


def _ancestors(module: str, cls: ast.ClassDef) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class and those that it is a subclass of, as far as they are of dit_shd, each with its module."""
    yield module, cls
    for base in cls.bases:
        name = ast.unparse(base).partition("[")[0]
        home = defined_in(name, module)
        if not home.startswith("dit_shd"):
            continue
        for node in parse(home).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                yield from _ancestors(home, node)


def _is_a(module: str, cls: ast.ClassDef, base: str) -> bool:
    """Whether a class is a subclass of `base`, which may be another library's."""
    return any(
        base in [ast.unparse(b).partition("[")[0] for b in ancestor.bases] for _, ancestor in _ancestors(module, cls)
    )


def _method(module: str, cls: ast.ClassDef, name: str) -> tuple[str, ast.FunctionDef, ast.ClassDef] | None:
    """The method of a class or of the first ancestor that has one, with its module and class."""
    for where, ancestor in _ancestors(module, cls):
        for node in ancestor.body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return where, node, ancestor
    return None


def _parameters(function: ast.FunctionDef, module: str, docs: dict[str, str]) -> Iterator[Key]:
    arguments, tree = function.args, parse(module)
    positional = [*arguments.posonlyargs, *arguments.args][1:]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += arguments.defaults[-len(positional) :] if positional else []
    pairs = [*zip(positional, defaults), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    for argument, default in pairs:
        kind, doc = kind_of(argument.annotation, tree), docs.get(argument.arg, "")
        inside = keys_inside(argument.annotation, module, argument.arg)
        yield Key(argument.arg, kind, _default(default, tree), doc, inside=inside)


def _default(node: ast.expr | None, tree: ast.Module) -> str:
    """A default as it can be given on the command line, or as the source has it where it is no constant."""
    if node is None:
        return "needed"
    try:
        return shown(value_of(node, constants(tree)))
    except Exception:  # whatever the expression needs is known at run time only
        made = _made(node.id, tree) if isinstance(node, ast.Name) else None
        return ast.unparse(node) if made is None else made


def _made(name: str, tree: ast.Module) -> str | None:
    """The keys of a config that a module constructs under a name; None where it does not."""
    for node in tree.body:
        if not isinstance(node, ast.Assign):
            continue
        (target, *_), value = node.targets, node.value
        pairs: Iterable[tuple[ast.expr, ast.expr]] = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = zip(target.elts, value.elts)
        for one, call in pairs:
            if isinstance(one, ast.Name) and one.id == name and isinstance(call, ast.Call) and not call.args:
                return shown({str(k.arg): value_of(k.value, constants(tree)) for k in call.keywords})
    return None


def _documented(docstring: str) -> dict[str, str]:
    """The meaning of each argument in a docstring's section `Args:`."""
    _, said, text = docstring.partition("Args:\n")
    if not said:
        return {}
    lines = text.splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    meanings: dict[str, str] = {}
    name = ""
    for line in lines:
        if not line.strip() or len(line) - len(line.lstrip()) < indent:
            break
        match = re.match(rf" {{{indent}}}(\w+): (.*)", line)
        if match:
            name = match[1]
        meanings[name] = f"{meanings.get(name, '')} {match[2] if match else line.strip()}".strip()
    return meanings
