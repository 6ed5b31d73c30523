"""Words of other programs, and what says the same here: --flags, learning_rate, device, num_gpus."""

import difflib

from dit_shd.cli.specification import Specification
from dit_shd.core.errors import UserError

LAUNCHER = (
    "processes are the launcher's: accelerate launch --num_processes N -m dit_shd {command} ..., and "
    "configs/accelerate/ has its configs for 1, 8 and 64 GPUs"
)
EVERYWHERE = {
    "device": "the GPU is used if there is one, else the CPU; CUDA_VISIBLE_DEVICES=1 chooses another, and "
    'CUDA_VISIBLE_DEVICES="" the CPU',
    "num_gpus": LAUNCHER,
    "gpus": LAUNCHER,
    "n_gpus": LAUNCHER,
    "ngpus": LAUNCHER,
    "devices": LAUNCHER,
    "num_processes": LAUNCHER,
    "nproc_per_node": LAUNCHER,
    "num_nodes": LAUNCHER,
    "config": "the config is a word of its own: dit-shd {command} CONFIG",
    "verbose": "what is said goes to standard error; 2>FILE keeps it",
    "quiet": "what is said goes to standard error; 2>FILE keeps it",
    "overwrite": "force",
}
"""Word -> a key, or what to do, in any command; `synonyms` of a command come first."""


def advice(word: str, command: Specification) -> UserError | None:
    """The error for a key of other programs; None where the word is not known.

    Args:
        word: As it was given: learning_rate, learning-rate.
        command: That does not have it.
    """
    said = _meaning(word, command)
    if said is None:
        return None
    keys = {key.name for key in command.keys}
    instead = f"here it is {said}; as {said}=..." if said in keys else said.replace("{command}", command.name)
    return UserError(f"{word}: {instead}")


def flag(given: tuple[str, str], command: Specification) -> UserError:
    """The error for --flag VALUE, which is key=value here.

    Args:
        given: The flag and the value after it, which may be empty.
        command: The name of the command.
    """
    option, value = given
    word = option.lstrip("-").replace("-", "_")
    keys = {key.name: key for key in command.keys if not key.nested}
    last = {name.rpartition(".")[2]: name for name in sorted(keys, key=lambda name: -name.count("."))}
    said = _meaning(word, command)
    key = word if word in keys else said if said in keys else last.get(word)
    if key is None and said is not None:
        return UserError(f"{option}: {said.replace('{command}', command.name)}")
    if key is None:
        near = difflib.get_close_matches(word, [*last, *command.synonyms], 1, 0.6)
        key = _meaning(near[0], command) or last.get(near[0]) if near else None
    if key not in keys:
        return UserError(
            f"{option}: settings are written key=value; the keys are listed by dit-shd {command.name} --help"
        )
    value = value or ("true" if keys[key].kind == "true | false" else "...")
    return UserError(f"{option}: settings are written key=value here: {key}={value}")


def _meaning(word: str, command: Specification) -> str | None:
    word = word.lower().replace("-", "_")
    return command.synonyms.get(word) or EVERYWHERE.get(word)
