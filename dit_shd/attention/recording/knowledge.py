"""What the first forward of a model has shown, kept for later ones: which modules are attention, and their layouts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import cast
from weakref import WeakKeyDictionary, ref

from torch import nn

from dit_shd.attention.recording.discovery import attention_like, is_cross, names_attention, section_of, why_silent
from dit_shd.attention.recording.instrument import plain_class
from dit_shd.attention.recording.joined_calls import joined, places_of_rows
from dit_shd.attention.recording.joint import Layout, edge_of, projections_of, with_gaps
from dit_shd.attention.recording.kinds import kind_of_forward
from dit_shd.attention.recording.lineage import Segments
from dit_shd.attention.recording.projection import PassingProjection
from dit_shd.attention.recording.results import Part
from dit_shd.attention.recording.roles import Order, TextLength, image_streams, order_at, order_of, role_of, text_length
from dit_shd.attention.recording.sdpa_calls import Call
from dit_shd.attention.recording.site import Kind, Site, kind_of
from dit_shd.attention.recording.sites import ALIKE, Key, Sites, numbered, together
from dit_shd.attention.recording.structure import Number
from dit_shd.attention.recording.survey import SeenCall, Survey

LOOKS = 3
"""Surveys of a model in whose forwards other layers are idle each time."""
WAKING = 12
"""Surveys until a layer that was idle, and ran once, is waited for no more."""
_KNOWN: "WeakKeyDictionary[nn.Module, dict[Key, Sites]]" = WeakKeyDictionary()


def key_of(model: nn.Module, door: str, inputs: Mapping[str, object], training: bool, structure: Number) -> Key:
    """The kind of a forward; see kind_of_forward."""
    return kind_of_forward(_KNOWN.get(model, {}), door, inputs, training, structure)


def known(model: nn.Module, key: Key) -> Sites | None:
    """The attention of a model, unless weights that are read of it are others than they were (moved, quantised)."""
    sites = _KNOWN.get(model, {}).get(key)
    return sites if sites is not None and _holds(sites) and numbers(sites) == sites.numbers else None


def _holds(sites: Sites) -> bool:
    """Whether what a survey has shown is that of later forwards."""
    return sites.settled and not sites.again and not sites.shifting


def numbers(sites: Sites) -> Key:
    """What the weights are that are read of some attention between forwards."""
    return tuple(p.numbers for site in sites.values() for p in site.projections)


def all_known(model: nn.Module, structure: Number) -> list[Sites]:
    """The attention of a model in all kinds of forwards that were seen."""
    return [sites for key, sites in _KNOWN.get(model, {}).items() if key[-1] == structure and _holds(sites)]


def remember(model: nn.Module, key: Key, sites: Sites, ran: Collection[str]) -> None:
    """Keep what a survey has shown; what other modules had shown is forgotten.

    Layers that were idle may run in the next forward: there are up to LOOKS surveys while others are idle each time
    (layers dropped at random), and what each has shown is kept. If one that was idle in all runs later on, it is looked
    for again (`woken`).

    Args:
        model: That was looked at.
        key: Of the forward.
        sites: What it has shown.
        ran: The names of all modules that ran in it.
    """
    kept = {k: v for k, v in _KNOWN.get(model, {}).items() if _modules(k) == _modules(key)}
    before = kept.get(key)
    if sites.idle or (before is not None and before.again):
        valid = before is not None and before.settled and numbers(before) == before.numbers
        sites = together(before, sites, ran) if before is not None and valid else sites
        sites.numbers = numbers(sites)
        _look_again(sites, before)
    if before is not None and before.shifting:
        sites.shifting = before.shifting - 1 if _places(before) == _places(sites) else ALIKE
    _KNOWN[model] = {**kept, key: sites}


def _modules(key: Key) -> object:
    """Which modules a model has had, whatever adapters are at work."""
    return cast("Number", key[-1])[0]


def _places(sites: Sites) -> Key:
    """Where the W^O of some attention are."""
    return tuple(p.identity for site in sites.values() for p in site.projections)


def _look_again(sites: Sites, before: Sites | None) -> None:
    """Whether the next forward is looked at in search of layers that are idle still; before: what was known of them."""
    sites.looks = 1 if before is None else before.looks + 1
    if before is not None and before.waking:
        seen = len(sites.idle) < len(before.idle)
        sites.looks = LOOKS if seen else sites.looks
        sites.waking = sites.again = not seen and sites.looks < WAKING
    else:
        differs = before is None or before.idle != sites.idle
        sites.again = bool(sites.idle) and sites.looks < LOOKS and differs


def woken(sites: Sites) -> bool:
    """A layer that was idle in all surveys ran: whether the next forward is one, that may show it."""
    sites.waking = sites.again = sites.looks < WAKING
    return sites.again


def learn(survey: Survey) -> Sites:
    """The attention that ran while a survey was made, in the order in which it ran."""
    by_name: dict[str, list[tuple[int, list[SeenCall]]]] = {}
    places: dict[str, int] = {}
    for place, run in enumerate(runs(survey)):
        by_name.setdefault(run[0].name, []).append((place, run))
    modules = {name: calls[0][1][0].module for name, calls in by_name.items()}
    survey.image = image_streams((call.query for call in survey.calls), survey.outputs)
    splits = _splits(survey, list(by_name))
    sites = Sites()
    for name, calls in by_name.items():
        layouts, of_calls, reason = list[Layout](), list[Kind](), ""
        for place, run in calls:
            try:
                tokens = run[0].tokens
                given = [Call.of(each.raw, tokens) for each in run]
                merged = joined(given, tokens)
            except ValueError as error:
                reason = str(error)
                break
            rows, ends = merged[0].query.shape[2], accumulate(each.query.shape[2] for each in given)
            chunks = [each for each, end in zip(run, ends) if end <= rows]  # of the first sample
            parts_of = [chunks] if len(chunks) > 1 else [[each] for each in run]
            places |= {name + numbered(len(layouts) + i): place for i in range(len(merged))}
            of_calls += [kind_of(each, i, tokens) for i, each in enumerate(merged)]
            layouts.extend(_layout(survey, seen, call, splits, list(by_name)) for call, seen in zip(merged, parts_of))
            sites.settled = sites.settled and not any(survey.arrivals.silent(each.raw[2]) for each in run)
        site = Site(name, ref(modules[name]), tuple(layouts), reason, tuple(of_calls))
        holders = _holders(site, survey)
        asleep = _asleep(modules[name], holders, survey)
        sites[name] = replace(site, holders=tuple(map(ref, holders)), asleep=tuple(map(ref, asleep)))
    for name, reason in _heads_apart(survey).items():
        sites[name] = sites[name] if sites[name].reason else replace(sites[name], reason=reason)
    inside = {each for module in modules.values() for each in module.modules() if each is not module}
    sites.nested = not inside.isdisjoint(modules.values())
    others = attention_like(_without(survey, sites))
    kinds = {(plain_class(modules[name]), section_of(name)) for name in by_name}
    asleep = [(name, module) for module, name in survey.names.items() if name not in survey.ran]
    sites.silent = {name: f"{name} {why_silent(module)}" for name, module in others.items()}
    sites.idle = tuple(name for name, module in asleep if (plain_class(module), section_of(name)) in kinds)
    sites.by_hand = {name: why_silent(module) for name, module in _siblings(survey, sites)}
    sites.numbers = numbers(sites)
    sites.rewritten = tuple(dict.fromkeys(each.name for each in survey.calls if each.inputs_written))
    sites.places, sites.shapes = places, survey.shapes
    return sites


def _holders(site: Site, survey: Survey) -> list[nn.Module]:
    """The modules that hold a layer's W^O and ran as such: not the layer itself, or what it is in."""
    ran, module = {*survey.ran.values()}, site.module()
    holders = {p.holder for p in site.projections if not isinstance(p, PassingProjection)}
    return [x for x in holders if x is not None and x in ran and module not in {*x.modules()}]


def _asleep(layer: nn.Module, holders: Sequence[nn.Module], survey: Survey) -> list[nn.Module]:
    """Modules with weights of their own that did not run, in the parts of a layer that hold its W^O inside."""
    ran, parts = {*survey.ran.values()}, [x for x in layer.children() if x not in holders]
    inside = [x for part in parts if not set(holders).isdisjoint(part.modules()) for x in part.modules()]
    return [x for x in inside if x not in ran and any(True for _ in x.parameters(recurse=False))]


def _heads_apart(survey: Survey) -> dict[str, str]:
    """Modules that are the heads of one layer, and why they are not recorded unless they are named.

    They stand in one list, are given the very same tensor, and have one head each: layers are given what the one before
    has made.
    """
    lists: dict[str, dict[str, None]] = {}
    for one, other in pairwise(survey.calls):
        (home, _, number), (list_, _, after) = one.name.rpartition("."), other.name.rpartition(".")
        alike = home == list_ and number != after and number.isdecimal() and after.isdecimal()
        if alike and other.beside and _one_head(one) == _one_head(other) != ():
            lists.setdefault(home, {}).update({one.name: None, other.name: None})
    reasons: dict[str, str] = {}
    for home, names in lists.items():
        first, *_, last = names
        reasons |= dict.fromkeys(
            names,
            f"{first} ... {last} are {len(names)} modules of one head each that are given the same tensor, so the "
            "heads of one layer, and a map of a layer is of all; give scaled_dot_product_attention all heads at once, "
            f"or name them to take each for a layer: layers=['{section_of(f'{home}.0')}']",
        )
    return reasons


def _one_head(seen: SeenCall) -> tuple[int, ...]:
    """The shape of what a call with one head gave, [b,n,d] or [b,1,n,d]; nothing of one with several."""
    shape = tuple(seen.raw[2].shape)
    return shape if len(shape) == 3 or (len(shape) == 4 and shape[1] == 1) else ()


def _without(survey: Survey, sites: Sites) -> dict[str, nn.Module]:
    """Modules that ran without calling attention, in them or in what they hold, by name."""
    ran = {name: module for name, module in survey.ran.items() if name not in sites and not is_cross(module)}
    return {name: module for name, module in ran.items() if not any(site.startswith(f"{name}.") for site in sites)}


def _siblings(survey: Survey, sites: Sites) -> list[tuple[str, nn.Module]]:
    """Modules that ran where other blocks have a layer that called attention, and called none.

    By names of attention, or a softmax: hybrid models have mixers in that place (of state spaces) that are not meant.
    """
    sections = {section_of(name) for name, site in sites.items() if not site.unasked}
    there = {name: module for name, module in _without(survey, sites).items() if section_of(name) in sections}
    named = attention_like(there).keys() | {name for name in there if names_attention(name.rpartition(".")[2])}
    return [(name, module) for name, module in there.items() if name in named | survey.softmaxes]


def _layout(
    survey: Survey,
    chunks: Sequence[SeenCall],
    call: Call,
    splits: dict[Segments, tuple[Order, int]],
    layers: Sequence[str],
) -> Layout:
    """What is known of a call; of one whose queries came in chunks, each chunk's rows may arrive somewhere else."""
    n, m = call.query.shape[2], call.key.shape[2]
    seen, mixed, parts = chunks[0], chunks[0].raw[2], list[Part]()
    for chunk, rows in zip(chunks, places_of_rows([Call.of(each.raw, each.tokens) for each in chunks])):
        arrived = survey.arrivals.parts(chunk.raw[2], chunk.name, layers)
        parts += [replace(part, tokens=rows.to(part.tokens.device)[part.tokens]) for part in arrived]
    parts.sort(key=lambda part: int(part.tokens[0]))
    order, text = splits.get(_segments(seen), ("unknown" if len(projections_of(parts)) > 1 else "plain", 0))
    projections, several = with_gaps(parts, n, order, text), len(projections_of(parts))
    return Layout(
        projections,
        order,
        role_of(seen.query, seen.key, n, m),
        n == m,
        _text_length(survey, seen, splits, text, n) if text else None,
        f"its rows arrive at {several} projections, not at one of a text and one of an image, each in one run of tokens"
        if several and not projections
        else survey.arrivals.reason(mixed, survey.failure),
        any(chunk.result_written for chunk in chunks),
    )


def _text_length(
    survey: Survey, seen: SeenCall, splits: Mapping[Segments, tuple[Order, int]], text: int, n: int
) -> TextLength:
    """From what the number of text tokens among n follows: an input, or else a layer that ran before."""
    words = frozenset[str]().union(*(streams - survey.image for _, streams in _segments(seen)))
    length = text_length(text, n, survey.image, words, seen.given, survey.inputs)
    if length.place != "fixed":
        return length
    before = dict[str, SeenCall]()
    for call in survey.calls:
        if call is seen:
            break
        before.setdefault(call.name, call)
    for name, call in before.items():
        segments, tokens = _segments(call), call.raw[2].shape[-2]
        if call.query is not None and segments:
            if splits[segments][1] == text:
                return replace(length, place="layer", name=name)
        elif call.query is not None and call.query.streams:
            if tokens == text and not call.query.streams & survey.image:
                return replace(length, place="layer", name=name)
            if tokens == n - text and call.query.streams <= survey.image:
                return replace(length, place="layer", name=name, of="image")
    return length


def _splits(survey: Survey, layers: Sequence[str]) -> dict[Segments, tuple[Order, int]]:
    """How text and image stand in each kind of joint sequence: as the projections of some layer say, or the inputs."""
    splits: dict[Segments, tuple[Order, int]] = {}
    for seen in survey.calls:
        segments, edge = _segments(seen), edge_of(survey.arrivals.parts(seen.raw[2], seen.name, layers))
        if segments and edge is not None:
            splits[segments] = order_at(segments, survey.image, edge[1])
    for segments in map(_segments, survey.calls):
        if segments:
            splits.setdefault(segments, order_of(segments, survey.image))
    return splits


def _segments(seen: SeenCall) -> Segments:
    """The segments of a call's queries, if it is known that they are all of them."""
    n = seen.raw[2].shape[-2]
    return seen.query.segments if seen.query is not None and seen.query.tokens == n else ()


def runs(survey: Survey) -> list[list[SeenCall]]:
    """The calls of each run of a module, in the order in which the runs ended up calling attention."""
    by_run: dict[int, list[SeenCall]] = {}
    for call in survey.calls:
        by_run.setdefault(call.run, []).append(call)
    return list(by_run.values())
