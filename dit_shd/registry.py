"""Plug-ins by name: `dit_shd/<kind>/<name>.py` is the plug-in called `<name>`, and there is no list to edit.

A name with a dot (`my_package.my_loss.MyLoss`) imports somebody's own class, but only from packages that the
command line trusts (`--trust my_package`): configs come from strangers and must not import code by themselves.
"""

import difflib
import importlib
import importlib.util
import pkgutil

from dit_shd.errors import UserError

KINDS = {
    "losses": "dit_shd.losses.Loss",
    "data": "dit_shd.data.Dataset",
    "models": "diffusers.ModelMixin",
    "features": "dit_shd.features.FeatureNetwork",
    "metrics": "dit_shd.metrics.Metric",
}
_trusted: set[str] = set()


def trust(package: str) -> None:
    """Allow dotted plug-in names below the top-level `package` in this process."""
    _trusted.add(package)


def names(kind: str) -> list[str]:
    """The plug-ins that ship with dit_shd, by looking into the folder."""
    package = importlib.import_module(f"dit_shd.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> type:
    """The class called `name` among the plug-ins of `kind`.

    Raises:
        UserError: no such file, a dotted name of an untrusted package, or a module without a class of that kind.
    """
    if "." in name:
        return _foreign(kind, name)
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"{kind}: no plug-in called '{name}'"
            + (f", did you mean '{near[0]}'?" if near else "")
            + f" Available: {', '.join(known)}."
        )
    module = importlib.import_module(f"dit_shd.{kind}.{name}")
    base = _base(kind)
    for member in vars(module).values():
        if isinstance(member, type) and issubclass(member, base) and member.__module__ == module.__name__:
            return member
    raise AssertionError(f"{module.__name__} defines no subclass of {KINDS[kind]}")


def _foreign(kind: str, name: str) -> type:
    package = name.split(".")[0]
    if package not in _trusted:
        raise UserError(
            f"{kind}: '{name}' would import code of '{package}'; if you trust it, add --trust {package} to the command"
        )
    module, _, attribute = name.rpartition(".")
    try:
        member = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{kind}: cannot import '{name}': {error}") from error
    if not (isinstance(member, type) and issubclass(member, _base(kind))):
        raise UserError(f"{kind}: '{name}' is not a subclass of {KINDS[kind]}")
    return member


def _base(kind: str) -> type:
    module, _, attribute = KINDS[kind].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
