"""Language modeling: a GPT-2 learns from a LLaMA, packed lines of text."""

from language import GPT2, LLAMA, causal_lm, lines

from task_cases import Case


def values(folder):
    teacher = folder / "teacher"
    causal_lm(LLAMA).save_pretrained(teacher)
    student = {k: v for k, v in GPT2.items() if k != "vocab_size"}
    return {
        "task": {"name": "language_modeling", "evaluation": {"batch_size": 4}},
        "data": {"name": "text", "path": lines(folder), "document": "line", "length": 16},
        "student": {"name": "transformers", "config": {**student, "n_head": 2}},
        "teacher": str(teacher),
        "check_teacher": "no",
        "losses": [{"name": "shd", "plan": "matched"}],
    }


CASE = Case(values, {"plain/cross_entropy", "plain/shd"}, "network.transformer.h.0.mlp")
