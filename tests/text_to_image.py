"""The values of a small run of text to image."""

HEADS = {"z_image": "n_heads", "prx": "num_heads"}


def values(kind, pipeline, latents, run, **changes):
    shd = {"name": "shd", "plan": "matched" if kind == "sd3" else "contiguous"}
    if kind == "sana":  # its self-attention is linear
        shd["layers"] = {f"transformer_blocks.{i}.attn2": f"transformer_blocks.{i}.attn2" for i in range(2)}
    losses = [{"name": "output"}, {"name": "feature"}, shd]
    return {
        "run": str(run),
        "task": {"name": "text_to_image", "text_dropout": 0.3},
        "data": {"name": "text_latents", "path": str(latents)},
        "teacher": str(pipeline),
        "student": {"like": "teacher", HEADS.get(kind, "num_attention_heads"): 2},
        "initialisation": {"weights": "random" if kind == "hunyuan_dit" else "teacher", "calibration": 4},
        "check_teacher": "no",
        "losses": losses,
        "steps": 3,
        "batch_size": 4,
        "micro_batch_size": 2,
        "log_every": 1,
        "checkpoint_every": 2,
        "ema": 0.5,
        "optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-3},
        **changes,
    }
