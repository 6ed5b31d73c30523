"""Which attention of a model is wanted: names, patterns or depths of layers, and which part of a joint map."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from dit_shd.attention.capture import IMAGE, Capture
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.joint import BlockChoice, Layout
from dit_shd.attention.recording.site import Site
from dit_shd.attention.recording.sites import Sites
from dit_shd.attention.recording.survey import Survey
from dit_shd.core.errors import UserError

Layers = str | int | Sequence[str | int] | None
"""Names, patterns or depths of attention modules; None for all self-attention."""


@dataclass(frozen=True)
class Selection:
    """What of a model is to be recorded."""

    layers: Layers
    block: BlockChoice
    projections: bool
    """Whether W^O is wanted."""

    def __post_init__(self) -> None:
        items: object = [self.layers] if isinstance(self.layers, (str, int)) else self.layers
        whole = items is None or (
            isinstance(items, Collection) and all(isinstance(x, (str, int)) and not isinstance(x, bool) for x in items)
        )
        if not whole:
            raise UserError(
                f"capture: layers: wanted names, patterns or numbers of layers, found {self.layers!r}; for example "
                "layers=['blocks.*.attn'] or layers=range(4)"
            )

    def reduced(self, capture: Capture) -> Capture:
        """A layer's capture, without W^O where that is not wanted: it may be one of several, chosen by step."""
        return capture if self.projections else capture.without_out("projections=False left it out")

    def check_settings(self, model: nn.Module) -> None:
        """Refuse a wanted layer that is set up in a way that hides its maps.

        Raises:
            UserError: Naming the layer and the setting.
        """
        for path, module in model.named_modules():
            name = discovery.plain(path)
            reason = discovery.refusal(module) if self.layers is None or self._named([name]) else None
            if reason is not None:
                raise UserError(f"capture: {name} would not call scaled_dot_product_attention: {reason}")

    def of_ours(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The wanted layers of a model of dit_shd, all of which are self-attention."""
        self._check_names(list(layers), list(layers))
        return {name: layers[name] for name in self._wanted(list(layers), list(layers))}

    def check(self, sites: Sites, ran: Mapping[str, nn.Module] = MappingProxyType({})) -> None:
        """Refuse names that fit nothing, and layers that other layers of their kind are not.

        Raises:
            UserError: Naming the layer.
        """
        if not sites:
            return
        self._check_names(list(sites), _selfs(sites))
        kinds = {type(module) for site in sites.values() if (module := site.module()) is not None}
        for name, module in ran.items():
            silent = type(module) in kinds and name not in sites and hasattr(module, "set_processor")
            if silent and not discovery.is_cross(module) and (self.layers is None or self._named([name])):
                raise UserError(f"capture: {name}: {discovery.why_silent(module)}")

    def chosen(self, sites: Sites) -> list[str]:
        """The names of the layers to record."""
        if self.layers is None:
            return _selfs(sites)
        return self._wanted(list(sites), _selfs(sites))

    def wants(self, layout: Layout) -> bool:
        """Whether a call of a chosen layer is to be recorded."""
        return self.layers is not None or not layout.unasked

    def left_out(self, site: Site) -> str:
        """Why a layer, or a call of it, is not recorded."""
        if site.reason:
            return site.reason
        if self.layers is not None:
            return "not asked for"
        roles = " and ".join(dict.fromkeys(f"{layout.role}-attention" for layout in site.layouts if layout.unasked))
        return f"{roles or 'nothing of it'} is recorded when it is named: layers=..."

    def why_nothing(self, sites: Sites, survey: Survey | None) -> str:
        """Why none of the attention that ran was recorded; survey: of the forward, if one was made."""
        if survey is not None and not survey.calls:
            return discovery.why_nothing(survey.ran)
        if self.block.block != "joint":
            return (
                f"no layer that ran is known to join text and image tokens: there is no block '{self.block.block}'; "
                f"use block='joint', or say where the image tokens stand, as in {IMAGE}"
            )
        refused = [f"{name}: {site.reason}" for name, site in sites.items() if site.reason]
        if refused:
            return refused[0]
        silent = [*sites.silent.values(), ""][0]
        return (
            f"{silent}{'. ' if silent else ''}No self-attention that can be recorded ran; cross-attention has to be "
            f"named: layers={', '.join(sites)}"
        )

    def _check_names(self, names: Sequence[str], depths: Sequence[str]) -> None:
        for each in self._items():
            if isinstance(each, int):
                if not -len(depths) <= each < len(depths):
                    raise UserError(f"capture: no layer {each}: there are {len(depths)} of self-attention")
            elif not fnmatch.filter(names, each):
                raise UserError(f"capture: no layer fits '{each}'. Layers: {', '.join(names)}")

    def _wanted(self, names: Sequence[str], depths: Sequence[str]) -> list[str]:
        if self.layers is None:
            return list(names)
        wanted = set(self._named(names))
        wanted |= {
            depths[each] for each in self._items() if isinstance(each, int) and -len(depths) <= each < len(depths)
        }
        return [name for name in names if name in wanted]

    def _named(self, names: Iterable[str]) -> list[str]:
        patterns = [each for each in self._items() if isinstance(each, str)]
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    def _items(self) -> Sequence[str | int]:
        if self.layers is None:
            return []
        return [self.layers] if isinstance(self.layers, (str, int)) else self.layers


def _selfs(sites: Sites) -> list[str]:
    """The layers that are not cross-attention alone."""
    return [name for name, site in sites.items() if not site.unasked and not site.reason]
