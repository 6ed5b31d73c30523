"""What a cell is trained with, as plain values: settings in turn over a config, the seed in its places, one hash."""

import hashlib
import json
from typing import Any

from dit_shd.core.yaml_files import as_json, override

SEED = "{seed}"
"""A value that stands for the cell's seed, for keys other than `seed`."""


def seeded(value: object, seed: int) -> object:
    """Plain values with the seed in place of the text {seed}."""
    if isinstance(value, dict):
        return {key: seeded(entry, seed) for key, entry in value.items()}
    if isinstance(value, list):
        return [seeded(entry, seed) for entry in value]
    return seed if value == SEED else value


def canonical_sha256(values: object) -> str:
    """sha256 of plain values, whatever the order of keys."""
    try:
        text = json.dumps(values, sort_keys=True)
    except TypeError:  # steps and shares of a schedule are keys of two types
        text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def in_turn(*changes: dict[str, Any]) -> dict[str, Any]:
    """Settings in the order in which they count: a key that is set again stands where it was set last."""
    result: dict[str, Any] = {}
    for settings in changes:
        for key, value in settings.items():
            result.pop(key, None)
            result[key] = value
    return result


def applied(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A config with settings over it, by the rules of key=value on the command line."""
    return override(values, [f"{key}={as_json(value)}" for key, value in settings.items()])
