"""A tiny pipeline of every kind, made once."""

import pytest
from tiny_pipelines import KINDS, OTHERS, write_pipeline

from dit_shd.diffusion.adapters import Adapter, by_class
from dit_shd.diffusion.pipelines import open_pipeline


@pytest.fixture(scope="module", params=[*KINDS, *OTHERS])
def kind(request):
    return request.param


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """Kind -> its pipeline, of those that were asked for."""
    pipelines = {}

    def of(kind):
        if kind not in pipelines:
            pipelines[kind] = open_pipeline(write_pipeline(kind, tmp_path_factory.mktemp("pipelines") / kind))
            pipelines[kind].transformer.eval()
        return pipelines[kind]

    return of


@pytest.fixture(scope="module")
def pipeline(kind, opened):
    return opened(kind)


@pytest.fixture
def adapter(pipeline) -> Adapter:
    return by_class()[type(pipeline.transformer).__name__]
