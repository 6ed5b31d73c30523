"""Words of the command line: key=value, and files between them."""

import argparse
import re
from typing import Any


def values_of(options: argparse.Namespace, **given: Any) -> dict[str, Any]:
    from dit_shd.core.yaml_files import override

    return override(given, options.assignments)


def sorted_words(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Files and key=value, in any order, where a command takes several files (./a=b is a file)."""
    words = [*options.first, *options.assignments]
    assignments = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return [word for word in words if word not in assignments], assignments
