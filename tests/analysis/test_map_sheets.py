"""Maps kept in bytes: within the budget, and those of the models to the bytes' precision."""

import numpy as np
import pytest
import torch
from small_runs import STUDENT

from dit_shd.analysis.agreement import model_sheets, noised
from dit_shd.analysis.inputs import DatasetInputs, FileInputs
from dit_shd.analysis.map_sheets import (
    BUDGET,
    QUERIES,
    Extent,
    LayerSheets,
    chosen_tokens,
    extent,
    head_sheets,
    spread,
)
from dit_shd.analysis.survey import Scope, layer_maps
from dit_shd.attention.recording.attach import capture
from dit_shd.data.datasets.npz import Npz
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.models.families.mdt import MDTv2
from dit_shd.squeezing.squeeze import squeeze

STEP = 1 / 255
"""Distance of two levels, as a share of the root of the highest value."""


@pytest.mark.parametrize(
    ("layers", "timesteps", "maps", "tokens"),
    [(6, 10, 6, 49), (12, 10, 18, 256), (28, 10, 24, 256), (57, 10, 36, 4096), (1, 1, 1, 1), (24, 10, 36, 1178)],
)
def test_what_is_kept_fits_and_is_enough_to_look_at(layers, timesteps, maps, tokens):
    size = extent(layers, timesteps, maps, tokens, tokens)
    assert size.layers * size.timesteps * size.queries * size.keys * maps <= BUDGET
    assert size.queries >= min(tokens, QUERIES)
    assert size.timesteps >= min(3, timesteps) and size.layers >= min(3, layers)


def test_small_models_are_kept_whole():
    assert extent(6, 10, 6, 49, 49) == Extent(6, 10, 49, 49)


def test_numbers_and_tokens_are_spread_evenly():
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(9, 3) == [0, 4, 8]
    assert chosen_tokens((3, 4), 12) == list(range(12))
    assert chosen_tokens((7, 7), 9) == [0, 3, 6, 21, 24, 27, 42, 45, 48]
    assert chosen_tokens((1, 100), 3) == [0, 50, 99] or chosen_tokens((1, 100), 3)[::2] == [0, 99]


@pytest.mark.parametrize(("grid", "keys"), [((8, 8), (4, 4)), (None, (1, 16))])
def test_areas_of_keys_are_means(grid, keys):
    torch.manual_seed(0)
    maps = torch.randn(3, 64, 64, dtype=torch.float64).softmax(-1)
    sheets = LayerSheets.begin("x", 64, 64, (grid, grid), Extent(1, 1, 64, 16))
    assert sheets.keys == keys and sheets.pooled
    sheets.add(maps[:, sheets.tokens], grid, [""] * 3)
    whole = maps[:, sheets.tokens].transpose(0, 1)
    parts = whole.reshape(-1, 3, 4, 2, 4, 2).mean((3, 5)).flatten(2) if grid else whole.unflatten(2, (16, 4)).mean(3)
    error = np.abs(np.sqrt(sheets.values(0)) - np.sqrt(parts.numpy())).max()
    assert error <= 0.51 * STEP * np.sqrt(sheets.tops[0])


@pytest.mark.parametrize(("grid", "m"), [((24, 24), 576), (None, 77)])
def test_uniform_attention_is_a_uniform_map_also_in_areas_of_unequal_size(grid, m):
    sheets = LayerSheets.begin("x", m, m, (grid, grid), Extent(1, 1, 16, 256 if grid else 64))
    assert sheets.pooled
    sheets.add(torch.full((2, len(sheets.tokens), m), 1 / m, dtype=torch.float64), grid, ["", ""])
    np.testing.assert_allclose(sheets.values(0), 1 / m)


@pytest.fixture
def model(teacher):
    return loading.load(teacher).eval()


def near(kept: np.ndarray, maps: torch.Tensor, top: float) -> bool:
    return np.abs(np.sqrt(kept) - maps.double().sqrt().numpy()).max() <= 0.51 * STEP * top**0.5 + 1e-6


@pytest.mark.parametrize("of_file", [False, True])
def test_heads_and_merged_heads_are_those_of_the_model(of_file, model, shapes, tmp_path):
    """Of the first of several samples, which of a file all go through one forward."""
    inputs = DatasetInputs(model, Npz(shapes), Schedule.linear(), [range(2)], 0)
    if of_file:
        arrays = inputs.keywords(range(2), 500)
        np.savez(tmp_path / "two.npz", **{name: array.numpy() for name, array in arrays.items()})
        inputs = FileInputs(model, tmp_path / "two.npz", "steps")
    scope, maps = layer_maps(model, inputs, Scope(), 300)
    sheets = head_sheets(model, inputs, scope, maps, [100, 500, 900])
    assert sheets.timesteps == [100, 500, 900]
    assert sheets.groups == {"heads": [f"head {i}" for i in range(4)], "merged heads": ["0+1", "2+3"]}
    assert [layer.layer for layer in sheets.layers] == list(maps)
    with torch.no_grad(), capture(model) as captures:
        model(**inputs.keywords(range(1), 500))
    for layer in sheets.layers:
        whole = captures[layer.layer].detach().map()
        squeezed = squeeze(captures[layer.layer], 2)
        assert layer.tokens == list(range(16)) and not layer.pooled
        kept = layer.values(1).transpose(1, 0, 2)
        assert near(kept[:4], whole[0], layer.tops[1])
        assert near(kept[4:], squeezed.mix(whole)[0], layer.tops[1])
        weight = squeezed.weight[0, :, 0]
        assert layer.notes[1][4:] == [f"{weight[i]:.2f} A{i} + {weight[i + 1]:.2f} A{i + 1}" for i in (0, 2)]


def test_with_all_heads_nothing_is_merged(model, shapes):
    inputs = DatasetInputs(model, Npz(shapes), Schedule.linear(), [range(1)], 0)
    scope, maps = layer_maps(model, inputs, Scope(), 300)
    assert list(head_sheets(model, inputs, scope, maps, [300], heads=4).groups) == ["heads"]


def test_teacher_squeezed_and_student_stand_side_by_side(model, shapes):
    torch.manual_seed(1)
    student = MDTv2(**{k: v for k, v in STUDENT.items() if k != "name"}).eval()
    batches = [noised(Npz(shapes), 3, t, 0) for t in (200, 800)]
    sheets = model_sheets(model, {"small": student}, batches)
    assert sheets.timesteps == [200, 800]
    assert {name: len(maps) for name, maps in sheets.groups.items()} == {
        "teacher": 4,
        "teacher, squeezed": 2,
        "small": 2,
    }
    batch = batches[1]
    with torch.no_grad(), capture(model) as of_teacher, capture(student) as of_student:
        for each in (model, student):
            each(batch.x_t, batch.t, class_labels=batch.labels)
    for layer in sheets.layers:
        kept = layer.values(1).transpose(1, 0, 2)
        whole = of_teacher[layer.layer].detach().map()
        assert near(kept[:4], whole[0], layer.tops[1])
        assert near(kept[4:6], squeeze(of_teacher[layer.layer], 2).mix(whole)[0], layer.tops[1])
        assert near(kept[6:], of_student[layer.layer].detach().map()[0], layer.tops[1])
