"""Optional packages: which are missing, and the command that installs them into this installation of dit_shd."""

import json
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from urllib.parse import unquote, urlparse

from dit_shd.core.errors import UserError


def require(packages: Sequence[str], extra: str, what: str) -> None:
    """Refuse to begin without some packages; all that are missing are named at once.

    Args:
        packages: The packages, by the names under which they are imported.
        extra: The extra of dit_shd that installs them.
        what: Needs them, for the error.

    Raises:
        UserError: Some are missing.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        several = "packages" if len(missing) > 1 else "package"
        raise UserError(f"{what} needs the {several} {' and '.join(missing)}; install with: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The pip command that adds an extra to dit_shd as it was installed: from an index, an address, or a source tree.

    Args:
        extra: Its name in pyproject.toml.
    """
    requirement = f"dit_shd[{extra}]"
    try:
        origin = json.loads(distribution("dit_shd").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    vcs = origin.get("vcs_info", {}).get("vcs")
    if url.startswith("file:") and not vcs:
        path = unquote(urlparse(url).path)
        editable = "--editable " if origin.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{path}[{extra}]')}"
    if url:
        return f"pip install {shlex.quote(f'{requirement} @ {vcs}+{url}' if vcs else f'{requirement} @ {url}')}"
    return f'pip install "{requirement}"'
