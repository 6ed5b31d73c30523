"""Plug-in folders: a file is a class of the base, nothing else lies there, and CONTRIBUTING.md names each."""

import importlib
import inspect

import pytest
from plugin_folders import PACKAGE, plugin_folders


def test_contributing_says_where_each_plugin_goes(root):
    """A row of its table for each plug-in folder: the new file, and the base class."""
    rows = [line.split(" | ") for line in (root / "CONTRIBUTING.md").read_text().splitlines() if line.count(" | ") > 1]
    told = {row[1]: row[2].strip("`").rpartition(".")[2] for row in rows}
    folders = plugin_folders()
    assert len(folders) >= 6
    assert {f"`{f.package.replace('.', '/')}/x.py`": f.base.__name__ for f in folders}.items() <= told.items()


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.package)
def test_a_plugin_is_a_file_with_one_class(folder):
    """Each module of a plug-in folder defines exactly one subclass of its base, whose name a config finds."""
    for name in folder.names():
        module = importlib.import_module(f"{folder.package}.{name}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        plugins = [c for c in classes if issubclass(c, folder.base)]
        assert len(plugins) == 1, f"{module.__name__}: {plugins}"
        assert not inspect.isabstract(plugins[0])
        assert folder.find(name) is plugins[0]
        assert not name.startswith("_")


def test_a_plugin_folder_holds_plugins_only():
    for folder in plugin_folders():
        path = PACKAGE.parent / folder.package.replace(".", "/")
        names = {entry.name for entry in path.iterdir() if entry.name not in ("__init__.py", "__pycache__")}
        assert names == {f"{name}.py" for name in folder.names()}
