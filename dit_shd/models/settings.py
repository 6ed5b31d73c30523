"""What is said beside the weights of how they are used: the same weights under other settings are another model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

TIED, BY_DEPTH = "tie_word_embeddings", "scale_attn_by_inverse_layer_idx"
MEANING = re.compile(
    rf"rope|rotary|theta|act(_fn|ivation\w*)?$|eps(ilon)?$|window|{TIED}|norm_type|qk_norm|soft_?cap|per_tok(en)?$|"
    r"^n_group$|top_?k|attention_chunk"
)
"""Keys of configs that the meaning of weights depends on; of diffusers no others are compared."""
SIZES = re.compile(
    r"(^|_)(n|num|d|number_of)_|size|(^|_)(dims?|dff|heads?|headdim|layers?|width|length|rank|channels|kernel|cache|state|"
    r"expand|inner|ngroups|seq_len|(position_|^)embeddings|positions|ratio|ids|idxs|indices)$|dim_(ff|head|multiplier)|proj_factor|"
    r"multiple_of|per_layer|bias|(layers?|block|attention|indexer|prompt|segment)_(block_)?types?$|"
    r"layer_(interval|start|end|offset|period)|dense_replace|sparse_step|sparsity_pattern"
)
"""Keys of transformers' configs that are sizes, or say of what kind each layer is; what is lacking, tensors tell."""
UNUSED = re.compile(
    r"dropout|pdrop|layerdrop|init|std(_dev)?$|loss|jitter|seed|vocab|token(izer)?_|(token|unk|mask)_index|lang|"
    r"^(summary|classifier|mask|forced|suppress|begin|start|end|return|projector|quantization|linear_dt|linear_a)_|"
    r"output_router|time_step_(min|max|floor)|use_(cache|mem_eff|mems|mamba|associative)|pretraining_tp|to_keep|fp32|dtype|"
    r"device|upcast|slow_but|gradient_checkpointing|rescale_prenorm|repeat_ngram|spec_augment|_implementation|auto_map"
)
"""Keys of transformers' configs that say nothing of a forward, but of training, tokens, or how it is computed."""
NONE = (None, False)


def differing_settings(model: nn.Module, other: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Such keys in the configs of two models -> the values of both, where they differ.

    Args:
        model: Of any family, which takes weights of the other. It may untie embeddings that are tied there.
        other: Likewise.
    """
    one, two = _settings(model), _settings(other)
    pairs = {key: (one[key], two[key]) for key in one if key in two and (one[key] or not key.endswith(TIED))}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and not (a in NONE and b in NONE)}


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differing settings, in a few words: key: here, there."""
    return ", ".join(f"{key}: {here} here, {there} there" for key, (here, there) in differing.items())


def by_depth(student: nn.Module, layers: Mapping[str, str]) -> Iterator[str]:
    """A line where layers divide their scores by their number (an option of GPT-2), which is another in the teacher.

    Args:
        student: Whose layers take weights.
        layers: The student's blocks -> those of the teacher.
    """
    moved = [block for block, source in layers.items() if block != source]
    if moved and _settings(student).get(BY_DEPTH):
        yield (
            f"{BY_DEPTH}: {len(moved)} of the student's layers divide their scores by another number than those whose "
            f"weights they take (first {moved[0]}, of {layers[moved[0]]})"
        )


def _settings(model: nn.Module) -> dict[str, Any]:
    """What weights depend on: of a model's config, of transformers the network's inside; of timm, of its modules."""
    network: Any = getattr(model, "network", None)
    values: Any = getattr(network, "config", None) or getattr(model, "config", None)
    if hasattr(values, "to_dict"):
        return dict(_of_transformers(values.to_dict()))
    if isinstance(network, nn.Module) and not hasattr(network, "config"):
        return {**_of_input(model), **_of_modules(network)}
    return {key: value for key, value in values.items() if MEANING.search(key)} if isinstance(values, Mapping) else {}


def _of_transformers(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys but those that are known to say nothing: what a new class calls its settings is not known beforehand."""
    for key, value in values.items():
        if key != TIED and (key in _any_config() or UNUSED.search(key)):
            continue
        if SIZES.search(key) and not MEANING.search(key):
            continue
        if key.endswith("_config") and isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", each) for inner, each in _of_transformers(value))
        else:
            yield key, value


@lru_cache(maxsize=1)
def _any_config() -> frozenset[str]:
    """The keys that every config of transformers has."""
    from transformers import PretrainedConfig

    return frozenset(PretrainedConfig().to_dict())


def _of_input(model: nn.Module) -> dict[str, Any]:
    """How the pixels are normalised that a classifier takes."""
    taken: Any = getattr(model, "input", None)
    return {key: getattr(taken, key) for key in ("mean", "std") if hasattr(taken, key)}


def _of_modules(network: nn.Module) -> dict[str, Any]:
    """What a network of timm does without parameters, where weights fit whatever it does."""
    modules = [*network.modules()]
    pool = getattr(network, "global_pool", None) or getattr(getattr(network, "head", None), "global_pool", None)
    rope, eps = getattr(network, "rope", None), [getattr(each, "eps", None) for each in modules]
    return {
        "activation": _listed(_activation(each) for each in modules),
        "norm_eps": _listed(str(each) for each in eps if isinstance(each, float)),
        "global_pool": getattr(pool, "pool_type", pool),
        "rope": None if rope is None else type(rope).__name__,
        "blocks": _listed(name for each in modules if "Block" in (name := type(each).__name__)),
    }


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted({*names} - {""}))


def _activation(module: nn.Module) -> str:
    """The name of an activation; empty for other modules."""
    home = type(module).__module__
    if not home.startswith(("torch.nn.modules.activation", "timm.layers.activations")) or [*module.children()]:
        return ""
    return f"{type(module).__name__}{'Tanh' if getattr(module, 'approximate', '') == 'tanh' else ''}"
