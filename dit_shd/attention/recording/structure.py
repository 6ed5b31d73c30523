"""Which modules a model has: what is known of its attention holds while they stay the same."""

from collections.abc import Sequence

from torch import nn

from dit_shd.attention.recording.instrument import plain_class
from dit_shd.attention.recording.sites import Key, Sites

Number = tuple[int, int]
"""Of the modules of a model, and of the adapters at work."""
Place = tuple[nn.Module, int, str, nn.Module]
"""A module with so many children, and which child of it another one is."""


class Structure:
    """A number for the modules of a model, their kinds and the adapters of peft that are at work.

    Args:
        model: Which may be changed between forwards.
    """

    def __init__(self, model: nn.Module):
        self.model, self.number = model, (0, 0)
        self.places: list[Place] = []
        """The places on the way to its attention and projections, by which a change is noticed."""
        self._modules = 0
        self._adapters: list[nn.Module] = []

    def look(self) -> Number:
        """The number as it is now."""
        if not self._modules or not all(map(_is_as_it_was, self.places)):
            modules, self.places = list(self.model.modules()), []
            kinds = ((plain_class(m), plain_class(vars(m).get("processor"))) for m in modules)
            self._modules = hash(tuple((id(m), kind, "_hf_hook" in vars(m)) for m, kind in zip(modules, kinds)))
            self._adapters = [module for module in modules if hasattr(module, "_disable_adapters")]
        self.number = self._modules, hash(_at_work(self._adapters))
        return self.number

    def add(self, sites: Sites) -> None:
        """Watch the places of some attention and its projections, too."""
        layers = [site.module() for site in sites.values()]
        holders = [projection.holder for site in sites.values() for projection in site.projections]
        wanted, unique = {*layers, *holders}, dict[Place, None]()
        for path, module in self.model.named_modules():
            parent = self.model
            for key in path.split(".") if module in wanted and path else ():
                child = parent.get_submodule(key)
                unique[parent, len(parent._modules), key, child] = None
                parent = child
        self.places += unique


def _is_as_it_was(place: Place) -> bool:
    parent, children, key, child = place
    return len(parent._modules) == children and parent._modules.get(key) is child


def _at_work(adapters: Sequence[nn.Module]) -> Key:
    """Which adapters of peft are at work: that changes from forward to forward."""
    names = ("_disable_adapters", "_active_adapter", "merged_adapters")
    return tuple(str(vars(module).get(name)) for module in adapters for name in names)
