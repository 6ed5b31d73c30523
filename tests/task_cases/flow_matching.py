"""Rectified flow: MDTv2 with its masked pass, a teacher of another convention and SD3's timestep density."""

from dit_shd.models.families.mdt import MDTv2
from task_cases import Case
from task_cases.diffusion import MODEL, evaluation, images, random_model


def values(folder):
    data = images(folder / "images.npz")
    teacher = {**MODEL, "num_attention_heads": 4, "prediction": "velocity_sd3"}
    density = {"name": "logit_normal", "mean": 0.3, "shift": 2.0}
    return {
        "task": {
            "name": "flow_matching",
            "mask_ratio": 0.3,
            "timestep_density": density,
            "weighting": "cosmap",
            "evaluation": evaluation(data),
        },
        "data": {"name": "npz", "path": data, "flip": True},
        "student": {"name": "mdt", **MODEL},
        "teacher": random_model(MDTv2, folder / "teacher", **teacher),
        "check_teacher": "no",
        "losses": [{"name": "output"}, {"name": "shd", "plan": "matched"}],
    }


CASE = Case(values, {"plain/velocity", "masked/velocity", "plain/output", "plain/shd"}, "en_inblocks.0.mlp")
