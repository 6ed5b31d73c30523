"""Public models and patterns of other people's code, tiny: what capture() is tried on outside diffusers (tests/zoo)."""

from . import patterns, public
from .entry import Client

__all__ = ["CLIENTS", "Client"]

CLIENTS: dict[str, Client] = {client.name: client for room in (patterns, public) for client in room.CLIENTS}
