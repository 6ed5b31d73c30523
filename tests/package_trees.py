"""The files of the package, parsed."""

import ast

from plugin_folders import PACKAGE

TREES = {file.relative_to(PACKAGE): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
