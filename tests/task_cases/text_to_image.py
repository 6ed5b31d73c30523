"""Text to image: half the heads of a transformer of SD3's kind, by rectified flow, with captions dropped."""

from encoded_text import encode
from tiny_pipelines import write_pipeline

from task_cases import Case

CAPTIONS = {str(number): f"a {word}" for number, word in enumerate(["one", "two", "three", "four", "five", "six"])}


def values(folder):
    pipeline = write_pipeline("sd3", folder / "pipeline")
    latents = {"name": "text_latents", "path": str(encode(folder, pipeline, captions=CAPTIONS, text_tokens=6))}
    density = {"name": "mode", "scale": 0.8}
    evaluation = {"data": {**latents}, "count": 4}
    return {
        "task": {"name": "text_to_image", "text_dropout": 0.3, "timestep_density": density, "evaluation": evaluation},
        "data": latents,
        "student": {"like": "teacher", "num_attention_heads": 2},
        "teacher": str(pipeline),
        "check_teacher": "no",
        "losses": [{"name": "output"}, {"name": "shd", "plan": "matched"}],
    }


CASE = Case(values, {"plain/velocity", "plain/output", "plain/shd"}, "transformer_blocks.0.ff")
