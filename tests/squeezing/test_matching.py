"""Which heads are alike: cosines of maps over several batches."""

import dataclasses

import torch
from random_captures import random_capture

from dit_shd.squeezing.matching import MapSimilarity


def test_similarity_is_of_all_batches_every_sample_alike():
    whole = random_capture(b=4, h=5, bias=False)
    want = MapSimilarity()
    want.add(whole)
    found = MapSimilarity(chunk_mib=1e-3)
    for part in (slice(0, 1), slice(1, 4)):
        q, k, v = (x[part] for x in (whole.query, whole.key, whole.value))
        found.add(dataclasses.replace(whole, query=q, key=k, value=v))
    torch.testing.assert_close(torch.from_numpy(found.cosines()), torch.from_numpy(want.cosines()))
