"""The command line."""

from dit_shd.cli.program import main

__all__ = ["main"]
