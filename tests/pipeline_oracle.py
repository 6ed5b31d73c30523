"""What pipelines of diffusers ask their transformers, and the losses of the public scripts that train these."""

import inspect
from dataclasses import dataclass

import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, QwenImagePipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids
from torch import Tensor

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import ADAPTERS
from dit_shd.diffusion.prompt_generation import ONE_BY_ONE

PROMPTS = ["a thin seven", "two digits : four and seven with a zero"]
"""Of unequal length."""


def known_of(pipeline):
    """The arguments of a pipeline's call."""
    return inspect.signature(type(pipeline).__call__).parameters


def sides(pipeline, adapter):
    """Height and width of latents that are not square."""
    of_eight = isinstance(adapter, (ADAPTERS.find("sana"), ADAPTERS.find("wan")))
    multiple = 8 if of_eight else adapter.multiple(pipeline.transformer.config)
    return 6 * multiple, 4 * multiple


def asked_by_the_pipeline(pipeline, adapter, guidance_scale=None, **keywords):
    """Latents, timesteps and predictions that a scheduler is given."""
    record, step = [], pipeline.scheduler.step

    def recorded(output, t, sample, *args, **kwargs):
        record.append((sample.clone(), t.clone(), output.clone()))
        return step(output, t, sample, *args, **kwargs)

    factor = pipeline.vae_scale_factor_spatial if "num_frames" in known_of(pipeline) else pipeline.vae_scale_factor
    factor *= 2 if isinstance(adapter, ADAPTERS.find("flux2")) else 1  # its latents are patches of 2 x 2
    factor //= 2 if isinstance(adapter, ADAPTERS.find("bria")) else 1  # it counts patches
    height, width = (factor * side for side in sides(pipeline, adapter))
    size = adapter.size_arguments(pipeline, (height, width))
    known, alone = known_of(pipeline), type(pipeline).__name__ in ONE_BY_ONE
    keywords |= {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    keywords |= {"num_frames": 1} if "num_frames" in known else {}
    keywords |= {"enable_prompt_rewrite": False} if "enable_prompt_rewrite" in known else {}
    keywords |= {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    if "negative_prompt" in keywords:
        keywords["negative_prompt"] = [keywords["negative_prompt"]] * len(PROMPTS)
    pipeline.scheduler.step = recorded
    options = {"num_inference_steps": 3, "output_type": "latent", **size, **keywords}
    records = []
    try:
        for number, prompts in enumerate([[prompt] for prompt in PROMPTS] if alone else [list(PROMPTS)]):
            pipeline(prompt=prompts, generator=torch.Generator().manual_seed(number), **options)
            records.append([*record])
            record.clear()
    finally:
        pipeline.scheduler.step = step
    return [(torch.cat([x for x, _, _ in s]), s[0][1], torch.cat([y for _, _, y in s])) for s in zip(*records)]


def unpacked(x, pipeline, adapter):
    """Latents [b,c,y,x] of what a pipeline's scheduler holds."""
    if x.ndim == 4:
        return x
    if x.ndim == 5:
        return x[:, :, 0]
    height, width = sides(pipeline, adapter)
    if isinstance(adapter, ADAPTERS.find("flux2")):
        return x.transpose(1, 2).unflatten(2, (height, width))
    return FluxPipeline._unpack_latents(x, 2 * height, 2 * width, 2)


@dataclass(frozen=True)
class Noised:
    """A batch as a training script has it."""

    x: Tensor
    """Noised latents [b,c,y,x]."""
    t: Tensor
    """[b], of flow the share of noise."""
    text: TextCondition

    @property
    def prompt(self):
        return {"encoder_hidden_states": self.text.embeddings}

    @property
    def size(self):
        return self.x.shape[-2:]


def sd3(model, given):
    return model(given.x, timestep=1000 * given.t, pooled_projections=given.text.pooled, **given.prompt).sample


def flux(model, given):
    (b, c, height, width), text = given.x.shape, given.text
    output = model(
        hidden_states=FluxPipeline._pack_latents(given.x, b, c, height, width),
        timestep=1000 * given.t / 1000,
        guidance=torch.tensor([3.5]).expand(b),
        pooled_projections=text.pooled,
        txt_ids=torch.zeros(text.embeddings.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, height // 2, width // 2, given.x.device, given.x.dtype),
        **given.prompt,
    ).sample
    return FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)


def chroma(model, given):
    (b, c, height, width), text = given.x.shape, given.text
    own = text.mask.cumprod(1).float()
    output = model(
        hidden_states=FluxPipeline._pack_latents(given.x, b, c, height, width),
        timestep=1000 * given.t / 1000,
        attention_mask=torch.cat([own, torch.ones(b, height * width // 4)], 1),
        txt_ids=torch.zeros(text.embeddings.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, height // 2, width // 2, given.x.device, given.x.dtype),
        **given.prompt,
    ).sample
    return FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)


def qwen_image(model, given):
    b, c, height, width = given.x.shape
    output = model(
        hidden_states=QwenImagePipeline._pack_latents(given.x[:, None], b, c, height, width),
        timestep=1000 * given.t / 1000,
        encoder_hidden_states_mask=given.text.mask.long(),
        img_shapes=[[(1, height // 2, width // 2)]] * b,
        **given.prompt,
    ).sample
    return QwenImagePipeline._unpack_latents(output, 2 * height, 2 * width, 2)[:, :, 0]


def longcat_image(model, given):
    b, c, height, width = given.x.shape
    output = model(
        hidden_states=FluxPipeline._pack_latents(given.x, b, c, height, width),
        timestep=1000 * given.t / 1000,
        txt_ids=prepare_pos_ids(0, "text", num_token=512),
        img_ids=prepare_pos_ids(1, "image", (512, 512), height=height // 2, width=width // 2),
        **given.prompt,
    ).sample
    return FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)


def ovis_image(model, given):
    (b, c, height, width), tokens = given.x.shape, given.text.tokens
    output = model(
        hidden_states=FluxPipeline._pack_latents(given.x, b, c, height, width),
        timestep=1000 * given.t / 1000,
        txt_ids=prepare_pos_ids(0, "text", num_token=tokens),
        img_ids=prepare_pos_ids(0, "image", height=height // 2, width=width // 2),
        **given.prompt,
    ).sample
    return FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)


def bria(model, given):
    b, c, height, width = given.x.shape
    output = model(
        hidden_states=FluxPipeline._pack_latents(given.x, b, c, height, width),
        timestep=1000 * given.t,
        txt_ids=torch.zeros(b, given.text.tokens, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(b, height // 2, width // 2, given.x.device, given.x.dtype),
        **given.prompt,
    ).sample
    return FluxPipeline._unpack_latents(output, 2 * height, 2 * width, 2)


def z_image(model, given):
    images = list(given.x.unsqueeze(2).unbind(0))
    prompts = [e[m] for e, m in zip(given.text.embeddings, given.text.mask)]
    return -torch.stack(model(images, (1000 - 1000 * given.t) / 1000, prompts, return_dict=False)[0]).squeeze(2)


def flux2(model, given, guidance=None):
    ids = Flux2KleinPipeline._prepare_latent_ids(given.x)
    output = model(
        hidden_states=Flux2KleinPipeline._pack_latents(given.x),
        timestep=1000 * given.t / 1000,
        guidance=guidance,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(given.text.embeddings),
        img_ids=ids,
        **given.prompt,
    ).sample
    return Flux2KleinPipeline._unpack_latents_with_ids(output, ids)


def flux2_dev(model, given):
    return flux2(model, given, torch.tensor([3.5]).expand(len(given.t)))


def wan(model, given):
    return model(given.x[:, :, None], timestep=1000 * given.t, **given.prompt).sample[:, :, 0]


def aura_flow(model, given):
    return model(given.x, timestep=given.t, **given.prompt).sample


def lumina2(model, given):
    mask = given.text.mask.long()
    return -model(given.x, timestep=1.0 - given.t, encoder_attention_mask=mask, **given.prompt).sample


def sana(model, given):
    mask = given.text.mask.long()
    return model(given.x, timestep=1000 * given.t, encoder_attention_mask=mask, **given.prompt).sample


def hidream(model, given):
    t5, *llama = given.text.embeddings.split([32, 16, 16], dim=-1)
    options = {"encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": torch.stack(llama)}
    return -model(given.x, 1000 * given.t, pooled_embeds=given.text.pooled, **options).sample


def hunyuan_image(model, given):
    glyphs, text = given.text.embeddings[:, :128, :16], given.text.embeddings[:, 128:]
    return model(
        given.x,
        1000 * given.t,
        encoder_hidden_states=text,
        encoder_attention_mask=given.text.mask[:, 128:].long(),
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=given.text.mask[:, :128].long(),
    ).sample


def prx(model, given):
    return model(given.x, timestep=1000 * given.t / 1000, attention_mask=given.text.mask, **given.prompt).sample


FLOWS = (
    sd3,
    flux,
    chroma,
    longcat_image,
    ovis_image,
    bria,
    qwen_image,
    z_image,
    flux2,
    flux2_dev,
    wan,
    aura_flow,
    lumina2,
    sana,
    hidream,
    hunyuan_image,
    prx,
)
VELOCITIES = {f.__name__: f for f in FLOWS}
"""By kind: the velocity as diffusers' examples/dreambooth/train_dreambooth*.py compute it (SD3, FLUX, FLUX.2,
Qwen-Image, Z-Image, Lumina 2, Sana), or as the pipelines' calls do (AuraFlow, Wan, HiDream,
HunyuanImage, PRX, and those of FLUX's
kind that have no such script)."""


def pixart(model, given):
    """The noise, of which its repository's training loss takes the error by IDDPM."""
    output = model(
        given.x,
        encoder_hidden_states=given.text.embeddings,
        encoder_attention_mask=given.text.mask,
        timestep=given.t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return output.chunk(2, dim=1)[0]


def hunyuan_dit(model, given):
    """v of DDPM."""
    (height, width), text = given.size, given.text
    region = get_resize_crop_region_for_grid((height // 2, width // 2), 32)
    output = model(
        given.x,
        given.t.float(),
        encoder_hidden_states=text.embeddings[:, :77, :24],
        text_embedding_mask=text.mask[:, :77].long(),
        encoder_hidden_states_t5=text.embeddings[:, 77:].contiguous(),
        text_embedding_mask_t5=text.mask[:, 77:].long(),
        image_meta_size=torch.tensor([[1024.0, 1024.0, 8 * height, 8 * width, 0, 0]] * len(given.t)),
        style=torch.zeros(len(given.t), dtype=torch.long),
        image_rotary_emb=get_2d_rotary_pos_embed(8, region, (height // 2, width // 2), output_type="pt"),
    ).sample
    return output.chunk(2, dim=1)[0]


def public_loss(kind, pipeline, x_0, noise, t, text):
    """The loss [b] as the public training script of a class computes it, with the pipeline's own helpers.

    Weighting none; the variational term of PixArt and min-SNR of HunyuanDiT are tested apart.
    """
    if kind in VELOCITIES:
        sigmas = t.view(-1, 1, 1, 1)
        given = Noised((1.0 - sigmas) * x_0 + sigmas * noise, t, text)
        output, target = VELOCITIES[kind](pipeline.transformer, given), noise - x_0
    else:
        given = Noised(pipeline.scheduler.add_noise(x_0, noise, t), t, text)
        of_noise = kind == "pixart"
        output = (pixart if of_noise else hunyuan_dit)(pipeline.transformer, given)
        target = noise if of_noise else pipeline.scheduler.get_velocity(x_0, noise, t)
    return (output - target).square().mean((1, 2, 3))
