"""Small LLaMA, GPT-2 and what is written like them, by their heads and widths."""

from language import causal_lm

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_positions": 32, "vocab_size": 64, "resid_pdrop": 0.0}
GPT2 |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0}


def lm(kind, heads=8, keys=4, width=32, **changes):
    """A model of heads of width 8, and an MLP of 48 units where the stream is 32 wide."""
    sizes = {"hidden_size": width, "intermediate_size": width * 3 // 2, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": 8, "max_position_embeddings": 32}
    options = {"tie_word_embeddings": False, "vocab_size": 64, "pad_token_id": None}
    return causal_lm({"model_type": kind, **sizes, **options, **changes})


def gpt2(heads=4, width=32, **changes):
    return causal_lm({**GPT2, "n_embd": width, "n_head": heads, "tie_word_embeddings": False, **changes})
