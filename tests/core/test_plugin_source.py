"""What is read from a plug-in's source is what its class says: for every plug-in that ships."""

import inspect

import pytest

from dit_shd.core.plugin_source import plugin_names, plugin_source
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.losses import LOSSES
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.metrics import METRICS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks import TASKS

FOLDERS = (DATASETS, FAMILIES, FEATURES, LOSSES, METRICS, TASKS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.package)
def test_the_keys_of_a_plugin_are_those_of_its_class(folder):
    assert plugin_names(folder.package) == folder.names()
    for name in folder.names():
        source, cls = plugin_source(folder.package, name), folder.find(name)
        functions = [cls, *([cls.from_options] if hasattr(cls, "from_options") else [])]
        parameters = {p.name: p for f in functions for p in inspect.signature(f).parameters.values()}
        named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        assert {key.name for key in source.keys} == set(named), name
        needed = {key.name for key in source.keys if key.default == "needed"}
        assert needed == {n for n, p in named.items() if p.default is p.empty}, name
        assert source.kind == folder.kind
        assert source.text


def test_defaults_that_a_module_constructs_are_shown_as_keys():
    """Their names in Python had been shown, which no config can hold."""
    defaults = {key.name: key.default for key in plugin_source("dit_shd.tasks", "text_to_image").keys}
    assert defaults["timestep_density"] == "{name: logit_normal}" and defaults["evaluation"] == "{}"
