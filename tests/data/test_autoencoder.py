"""Every autoencoder class of diffusers: scaled as diffusers' pipelines do it, both ways, or refused in words."""

import importlib
import inspect
import json
import pkgutil

import diffusers
import pytest
import torch
from zoo import VERSION

from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import KINDS, Autoencoder, Scaling, read_autoencoder
from dit_shd.data.decoder import Decoder
from dit_shd.data.encoder import Encoder

CPU = torch.device("cpu")
BLOCKS = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
KL = dict(BLOCKS, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=2)
CAUSAL = dict(base_dim=4, z_dim=2, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False])
STATISTICS = dict(latents_mean=[1.5, -2.0], latents_std=[4.0, 0.5])


def channelwise(numbers):
    return torch.tensor(numbers).view(1, -1, 1, 1)


MEAN, STD = channelwise(STATISTICS["latents_mean"]), channelwise(STATISTICS["latents_std"])


def patches(z):
    """Flux2Pipeline._patchify_latents"""
    b, c, y, x = z.shape
    z = z.view(b, c, y // 2, 2, x // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return z.reshape(b, c * 4, y // 2, x // 2)


def by_batch_norm(vae, z):
    mean, variance = vae.bn.running_mean.view(1, -1, 1, 1), vae.bn.running_var.view(1, -1, 1, 1)
    return (patches(z) - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)


# class, keywords of it, what the pipelines that use it do to an encoded image before the diffusion model sees it
TAKEN = {
    "AutoencoderKL, Stable Diffusion": ("AutoencoderKL", dict(KL), lambda vae, z: z * 0.18215),
    "AutoencoderKL, SD3 and FLUX": (
        "AutoencoderKL", dict(KL, scaling_factor=0.36, shift_factor=0.12), lambda vae, z: (z - 0.12) * 0.36,
    ),
    "AutoencoderKL, SDXL with statistics": (
        "AutoencoderKL", dict(KL, scaling_factor=0.5, **STATISTICS), lambda vae, z: (z - MEAN) * 0.5 / STD,
    ),
    "AutoencoderKL, GLM-Image": (
        "AutoencoderKL", dict(KL, scaling_factor=None, **STATISTICS), lambda vae, z: (z - MEAN) / STD,
    ),
    "AutoencoderKL, nothing": ("AutoencoderKL", dict(KL, scaling_factor=None), lambda vae, z: z),
    "AsymmetricAutoencoderKL": (
        "AsymmetricAutoencoderKL",
        dict(
            BLOCKS, down_block_out_channels=(4, 4), up_block_out_channels=(8, 8), norm_num_groups=2, latent_channels=2,
        ),
        lambda vae, z: z * 0.18215,
    ),
    "AutoencoderTiny": (
        "AutoencoderTiny",
        dict(
            encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=2, scaling_factor=1.5, shift_factor=0.25,
        ),
        lambda vae, z: (z - 0.25) * 1.5,
    ),
    "AutoencoderDC": (
        "AutoencoderDC",
        dict(
            latent_channels=2, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), scaling_factor=0.41407,
        ),
        lambda vae, z: z * 0.41407,
    ),
    "AutoencoderKLFlux2": ("AutoencoderKLFlux2", dict(KL), by_batch_norm),
    "AutoencoderKLHunyuanImage": (
        "AutoencoderKLHunyuanImage",
        dict(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32), layers_per_block=1,
            spatial_compression_ratio=2, sample_size=16, scaling_factor=0.75,
        ),
        lambda vae, z: z * 0.75,
    ),
    "AutoencoderKLQwenImage": (
        "AutoencoderKLQwenImage", dict(CAUSAL, **STATISTICS), lambda vae, z: (z - MEAN) / STD,
    ),
    "AutoencoderKLWan": ("AutoencoderKLWan", dict(CAUSAL, **STATISTICS), lambda vae, z: (z - MEAN) / STD),
}  # fmt: skip
VIDEO = ("AutoencoderKLQwenImage", "AutoencoderKLWan")


def classes():
    """Every model in diffusers.models.autoencoders, by name."""
    import diffusers.models.autoencoders as package
    from diffusers.models.modeling_utils import ModelMixin

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == module.__name__:
                found[name] = value
    return found


@pytest.fixture(params=sorted(TAKEN))
def taken(request, tmp_path):
    """A saved autoencoder, the same in memory, and its pipelines' scaling."""
    name, config, scale = TAKEN[request.param]
    if name not in classes():
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    torch.manual_seed(0)
    vae = getattr(diffusers, name)(**config).eval()
    if name == "AutoencoderKLFlux2":
        torch.nn.init.normal_(vae.bn.running_mean)
        torch.nn.init.uniform_(vae.bn.running_var, 1e-4, 4)
        vae.bn.running_var[0] = 1e-4  # as its eps
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae", vae, scale


@torch.no_grad()
def test_a_class_is_scaled_as_its_pipelines_do_it_both_ways(taken):
    folder, vae, scale = taken
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    video = type(vae).__name__ in VIDEO
    out = vae.encode(x[:, :, None] if video else x)
    z, std = (out.latent_dist.mean, out.latent_dist.std) if hasattr(out, "latent_dist") else (out[0], None)
    decoded = vae.decode(z, return_dict=False)[0]
    if video:
        z, std, decoded = z[:, :, 0], std[:, :, 0], decoded[:, :, 0]
    encode = Encoder.load(str(folder), "no", CPU)
    found = encode(x)
    assert found.shape == (2, 1 if std is None else 2, *encode.shape(16))
    torch.testing.assert_close(found[:, 0], scale(vae, z), rtol=1e-4, atol=1e-5)
    if std is not None:
        torch.testing.assert_close(found[:, 1], scale(vae, z + std) - scale(vae, z), rtol=1e-3, atol=1e-4)
        assert (found[:, 1] > 0).all()
    decode = Decoder.load(str(folder), encode.shape(16)[0], CPU)
    assert decode.digest == encode.digest
    torch.testing.assert_close(decode(scale(vae, z)), decoded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decode(found[1:, 0]), decode(found[:, 0])[1:], rtol=0, atol=0)
    assert read_autoencoder(str(folder)).scaling == Scaling.of_record(
        json.loads(json.dumps(Autoencoder(vae).scaling.record()))
    )
    with pytest.raises(UserError, match=r"sizes that are multiples of [24]"):
        encode.shape(17)


def test_the_table_is_of_all_that_are_taken():
    assert {name for name, _, _ in TAKEN.values()} == set(KINDS)
    if diffusers.__version__ == VERSION:
        assert KINDS.keys() <= classes().keys()


@pytest.mark.parametrize("name", sorted(classes().keys() - KINDS.keys()))
def test_every_other_class_is_refused_in_words(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    for load in (lambda: Encoder.load(str(tmp_path), "no", CPU), lambda: Decoder.load(str(tmp_path), 4, CPU)):
        with pytest.raises(
            UserError, match=f"vae: .*: {name} is not supported: .*; supported are AutoencoderKL, "
        ) as error:
            load()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(latents_mean=[0.0, 1.0]), "one of latents_mean and latents_std; wanted both"),
        (dict(latents_std=[1.0, 1.0]), "one of latents_mean and latents_std; wanted both"),
        (dict(STATISTICS, shift_factor=0.5), "has shift_factor and latents_mean; wanted one of them"),
        (dict(STATISTICS, latents_mean=[0.0]), "latents_mean: wanted 2 numbers, one for each channel"),
        (dict(STATISTICS, latents_std=[1.0, 0.0]), "wanted no zeros"),
        (dict(STATISTICS, latents_std=[1.0, -1.0]), "wanted no zeros"),
        (dict(STATISTICS, latents_std=[1.0, None]), "found null among them"),
        (dict(STATISTICS, latents_mean="12"), "latents_mean: wanted 2 numbers"),
        (dict(scaling_factor=0), "wanted no zeros"),
        (dict(scaling_factor="0.5"), "scaling_factor: wanted a number, found '0.5'"),
        (dict(scaling_factor=True), "scaling_factor: wanted a number"),
        (dict(shift_factor=float("nan")), "shift_factor: wanted a number"),
    ],
)
def test_a_config_that_tells_no_scaling_is_refused(changes, message, tmp_path):
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**KL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=message) as error:
        read_autoencoder(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_an_autoencoder_of_something_else_is_refused():
    """RGB with depth; a decoder of masks."""
    torch.manual_seed(0)
    for changes in (dict(in_channels=4, out_channels=4), dict(out_channels=2)):
        with pytest.raises(UserError, match=r"vae: wanted an autoencoder of (gray or RGB )?images"):
            Encoder(diffusers.AutoencoderKL(**KL, **changes)).shape(16)
    gray = diffusers.AutoencoderKL(**KL, in_channels=1, out_channels=1)
    with pytest.raises(UserError, match="encodes images of 1 channels"):
        Encoder(gray).shape(16)
    assert Decoder(gray)(torch.zeros(1, 2, 4, 4)).shape == (1, 1, 8, 8)


def test_the_autoencoder_of_a_pipeline_that_ships_with_dit_shd():
    assert read_autoencoder("asset:captioned_digits").image == (3, 2)
    with pytest.raises(UserError, match="'asset:digits_teacher': wanted a folder with a diffusers autoencoder"):
        read_autoencoder("asset:digits_teacher")
