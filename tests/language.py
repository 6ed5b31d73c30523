"""Tiny language models and texts for tests."""

import torch

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 257}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": 257}
GPT_NEOX = {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT_NEOX |= {"intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": 257}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": 257}
MISTRAL = {"model_type": "mistral", "sliding_window": 5, **SMALL}
OPT = {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 257}
OPT |= {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 40}
TEXT = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse.\n"


def causal_lm(config, seed=0, std=0.3):
    """A model whose weights are large enough to tell its inputs apart."""
    from dit_shd.models.families.transformers import CausalLM

    torch.manual_seed(seed)
    model = CausalLM(config=config)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=std)
    return model.eval()


def lines(folder, count=40):
    """A text of lines of many lengths."""
    file = folder / "lines.txt"
    file.write_text("".join(f"{i} " + TEXT[: 7 + (i * 13) % 60] + "\n" for i in range(count)))
    return str(file)
