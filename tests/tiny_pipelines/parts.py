"""Autoencoders and schedulers of tiny pipelines."""


def kl(channels=4, shift=0.1, depth=2, **options):
    """An autoencoder of a factor of two, or of a higher power of it."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=(8,) * depth,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        scaling_factor=0.7,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **options,
    )


def flow(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)
