"""The command line."""

from dit_shd.cli.main import main

__all__ = ["main"]
