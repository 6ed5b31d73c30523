"""timm's classifiers: what is exported is what timm loads, and the other way round; folders that are none."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL.Image import fromarray
from safetensors.torch import load_file, save_file
from timm.layers.drop import DropPath

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.pretrained import of_hub
from dit_shd.data.augmentation import EvaluationTransform
from dit_shd.models import loading
from dit_shd.models.blocks import named_blocks
from dit_shd.models.families import FAMILIES
from dit_shd.models.stochastic_depth import StochasticDepth
from dit_shd.profiling import meta

TINY = dict(patch_size=7, embed_dim=24, depth=2, num_heads=3)
GRAY = dict(num_classes=10, in_chans=1, img_size=28, mean=[0.3], std=[0.4], crop_pct=0.95, options=TINY)


def build(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return FAMILIES.build(Plugin("timm", {"model": name, **GRAY, **options}), "student").eval()


@pytest.fixture
def folder(tmp_path):
    build(drop_path_rate=0.2, class_names=list("abcdefghij")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def x():
    return torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"]
)
def test_what_is_saved_is_read_by_timm_and_by_us(name, tmp_path, x):
    model = build(name)
    model.save_pretrained(tmp_path / "m")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    ours = loading.load(tmp_path / "m").eval()
    assert torch.equal(model(x), theirs(x)) and torch.equal(model(x), ours(x))
    told = timm.data.resolve_model_data_config(theirs)
    assert (tuple(told["input_size"]), tuple(told["mean"]), tuple(told["std"])) == ((1, 28, 28), (0.3,), (0.4,))
    assert ours.input == model.input and told["crop_pct"] == ours.input.crop == 0.95
    assert named_blocks(ours).keys() == {"network.blocks.0", "network.blocks.1"}


@pytest.mark.parametrize("size", [28, (28, 28)])
def test_what_timm_saves_is_read(tmp_path, x, size):
    torch.manual_seed(0)
    arguments = dict(num_classes=10, in_chans=1, img_size=size, **TINY)
    theirs = timm.create_model("deit3_small_patch16_224", **arguments).eval()
    timm.models.save_for_hf(theirs, tmp_path, model_args=arguments, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.5], "std": [0.5]}  # timm leaves those of three channels
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = loading.load(tmp_path).eval()
    assert torch.equal(model(x), theirs(x))
    assert model.input.mean == (0.5,) and model.config.num_classes == 10 and model.config.img_size == 28


@pytest.mark.parametrize("fixed", [False, True])
def test_images_need_not_be_square(tmp_path, fixed):
    """A person's crop, a spectrogram; also where timm says their size by the weights alone (fixed_input_size)."""
    torch.manual_seed(0)
    size = {"input_size": (1, 28, 42), "mean": (0.5,), "std": (0.5,), "fixed_input_size": fixed}
    arguments = dict(num_classes=10, in_chans=1, img_size=(28, 42), **TINY)
    theirs = timm.create_model("deit3_small_patch16_224", pretrained_cfg_overlay=size, **arguments).eval()
    kept = {key: value for key, value in arguments.items() if key != "img_size" or not fixed}
    timm.models.save_for_hf(theirs, tmp_path / "theirs", model_args=kept, safe_serialization=True)
    model = loading.load(tmp_path / "theirs").eval()
    model.save_pretrained(tmp_path / "ours")
    x = torch.randn(2, 1, 28, 42, generator=torch.Generator().manual_seed(0))
    for each in (model, loading.load(tmp_path / "ours").eval()):
        assert each.input.shape == (1, 28, 42) and torch.equal(each(x), theirs(x))
    image = EvaluationTransform(model.input)(np.zeros((60, 60, 1), np.uint8))
    assert image.shape == (1, 28, 42)
    with pytest.raises(UserError, match=r"img_size: wanted a number, or height and width, found \[28\]"):
        build(img_size=[28])


def test_tensors_under_other_names_are_renamed_by_timm(tmp_path, x):
    """The public code of DeiT III calls its layer scales gamma_1 and gamma_2."""
    model = build("deit3_small_patch16_224")
    model.save_pretrained(tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    public = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state.items()}
    assert public.keys() != state.keys()
    save_file(public, tmp_path / "m" / "model.safetensors")
    assert torch.equal(loading.load(tmp_path / "m").eval()(x), model(x))


def test_a_folder_keeps_what_a_student_was_but_for_its_stochastic_depth(folder):
    told = loading.load(folder).config
    assert told.class_names == list("abcdefghij") and told.drop_path_rate == 0
    assert {key: told[key] for key in GRAY} == GRAY


def test_without_weights_it_is_built_on_the_meta_device():
    with meta.META:
        model = build()
    again = meta.ModelSpec.of(model).skeleton()
    assert all(p.is_meta for p in again.parameters())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in build().state_dict().items()}


def test_blocks_computed_again_give_the_same_gradients(x):
    grads = []
    for again in (False, True):
        model = build().train()
        if again:
            model.enable_gradient_checkpointing()
        model(x).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def damaged(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(architecture="deit_tinny"), "no architecture called 'deit_tinny'"),
        (
            lambda c: c["model_args"].update(checkpoint_path="x.pth"),
            "options: wanted arguments .* found checkpoint_path",
        ),
        (lambda c: c["model_args"].update(pretrained_cfg={}), "found pretrained_cfg"),
        (lambda c: c["model_args"].update(embed_dim=3 * 10**6), r"wanted \[.*3000000.*\], found"),
        (lambda c: c["model_args"].update(depth=3), "the tensors are not those of deit_tiny_patch16_224"),
        (lambda c: c["model_args"].update(num_heads="x"), "cannot be made with"),
        (lambda c: c["model_args"].update(nonsense=1), "cannot be made with"),
        (lambda c: c.update(num_classes=7), r"head.*: wanted \[7"),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "mean: wanted 1 numbers, one for each channel"),
    ],
)
def test_a_folder_that_is_not_as_it_says_is_refused(folder, change, message):
    with pytest.raises(UserError, match=message) as error:
        loading.load(damaged(folder, change))
    assert "\n" not in str(error.value)


def test_nothing_but_safetensors_is_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"wanted model\.safetensors beside config\.json, found pytorch_model\.bin"):
        loading.load(folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UserError, match=r"model\.safetensors is no readable safetensors file"):
        loading.load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "deit_tinny_patch16_224"}, "no architecture called 'deit_tinny_patch16_224'; timm has deit"),
        ({"options": {"pretrained": True}}, "options: wanted arguments of the architecture, found pretrained"),
        ({"drop_path_rate": 1.0}, "drop_path_rate: wanted a number from 0 and below 1, found 1.0"),
        ({"mean": None}, "mean: wanted 1 numbers, one for each channel, found"),
        ({"options": {"drop_path_rate": 0.3}}, r"wanted student\.drop_path_rate=0\.3, not student\.options\.drop_path"),
        (
            {"options": {"num_classes": 7}},
            r"options: num_classes is a key beside options; wanted student\.num_classes=7",
        ),
        ({"options": {"img_size": 56}}, r"wanted student\.img_size=56"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises(UserError, match=message):
        build(**{"name": options.pop("model", "deit_tiny_patch16_224"), **options})


@pytest.mark.parametrize(("rate", "rates"), [(0.0, []), (0.2, [0.1, 0.1, 0.2, 0.2])])
def test_stochastic_depth_is_what_the_config_says(rate, rates):
    """timm's Swin has a rate of 0.1 where none is given."""
    sizes = dict(embed_dim=16, depths=[1, 2], num_heads=[2, 2])
    model = build("swin_tiny_patch4_window7_224", img_size=56, options=sizes, drop_path_rate=rate)
    assert [round(m.rate, 6) for m in model.modules() if isinstance(m, StochasticDepth)] == rates
    assert not any(isinstance(module, DropPath) for module in model.modules())


def test_a_folder_of_timm_may_repeat_its_classes(folder, x):
    def repeat(config):
        config["model_args"] |= {"num_classes": 10, "drop_path_rate": 0.1}

    expected = loading.load(folder).eval()(x)
    assert torch.equal(loading.load(damaged(folder, repeat)).eval()(x), expected)


def test_a_repository_of_timm_on_the_hub(folder, monkeypatch):
    """Its config and safetensors are fetched, nothing else."""
    fetched = []

    class Name:
        def files(self):
            return ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"]

        def download(self, files):
            fetched.extend(files)
            return folder

        def __str__(self):
            return "hub:timm/deit"

    assert of_hub(Name()) == folder
    assert sorted(fetched) == ["README.md", "config.json", "model.safetensors"]


def test_images_are_scaled_and_cropped_as_the_folder_says(tmp_path):
    """Not as timm's default weights of that architecture want it."""
    timm.models.save_for_hf(
        timm.create_model("resnet18", num_classes=4), tmp_path / "theirs", {"num_classes": 4}, safe_serialization=True
    )
    said = {"input_size": [3, 64, 48], "interpolation": "bilinear", "crop_mode": "squash"}
    damaged(tmp_path / "theirs", lambda c: c["pretrained_cfg"].update(said))
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    model = loading.load(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")
    for folder in ("theirs", "ours"):
        network = timm.create_model(f"local-dir:{tmp_path / folder}", pretrained=True)
        want = timm.data.create_transform(**timm.data.resolve_model_data_config(network))(fromarray(image))
        got = EvaluationTransform(loading.load(tmp_path / folder).input)(image)
        assert got.shape == (3, 64, 48)
        torch.testing.assert_close(got, want)
    with pytest.raises(UserError, match="preprocessing: wanted input_size, interpolation, crop_mode, found size"):
        build(preprocessing={"size": 3})


def test_an_architecture_whose_blocks_are_not_recomputed_is_refused_in_a_line():
    build().enable_gradient_checkpointing()
    with torch.device("meta"):
        model = FAMILIES.build(Plugin("timm", {"model": "vgg11"}), "student")
    with pytest.raises(
        UserError, match=r"^gradient_checkpointing: timm recomputes no blocks of vgg11; wanted .*=false"
    ):
        model.enable_gradient_checkpointing()
