"""Public classes, tiny: timm, transformers, torchvision, open_clip, vit-pytorch, x-transformers, peft, torchao."""

import importlib
from typing import Any

import torch
from torch import nn

from .entry import Client, sequence, tokens


def vit(cls: str = "vision_transformer.VisionTransformer", **more: Any) -> nn.Module:
    file, _, name = cls.rpartition(".")
    kind = getattr(importlib.import_module(f"timm.models.{file}"), name)
    size = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    return kind(**{**size, **more})


def timm(name: str, **more: Any) -> nn.Module:
    return importlib.import_module("timm").create_model(name, num_classes=5, **more)


def hugging(name: str, config: str, **more: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    return getattr(transformers, name)(getattr(transformers, config)(**more, attn_implementation="sdpa"))


LLAMA = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
BERT = dict(LLAMA, max_position_embeddings=32)
VIT = dict(LLAMA, image_size=32, patch_size=8)
VIT.pop("vocab_size")
BART = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=50,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)  # fmt: skip


def tuned(kind: str, **more: Any) -> nn.Module:
    peft = importlib.import_module("peft")
    return peft.get_peft_model(hugging("LlamaForCausalLM", "LlamaConfig", **LLAMA), getattr(peft, kind)(**more))


def quantised() -> nn.Module:
    quantization = importlib.import_module("torchao.quantization")
    model = hugging("LlamaForCausalLM", "LlamaConfig", **LLAMA).requires_grad_(False)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def clip() -> nn.Module:
    open_clip = importlib.import_module("open_clip.model")
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=8, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=9, vocab_size=50, width=32, heads=4, layers=2)
    return open_clip.CLIP(16, vision, text)


def vision() -> nn.Module:
    kind = importlib.import_module("torchvision.models").VisionTransformer
    return kind(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=32)


def decoder() -> nn.Module:
    x = importlib.import_module("x_transformers")
    layers = x.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, attn_flash=True)
    return x.TransformerWrapper(num_tokens=50, max_seq_len=32, attn_layers=layers)


def pytorch_vit() -> nn.Module:
    kind = importlib.import_module("vit_pytorch").ViT
    return kind(image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, heads=4, dim_head=8, mlp_dim=32)


def simple_flash() -> nn.Module:
    kind = importlib.import_module("vit_pytorch.simple_flash_attn_vit").SimpleViT
    size = dict(image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=32, dim_head=8)
    return kind(**size, use_flash=True)


IMAGE = sequence(2, 3, 32, 32)
PHOTO = sequence(1, 3, 64, 64)
TEXT = tokens()
T, HF = ("timm",), ("transformers",)
CLIENTS = [
    Client("timm VisionTransformer", vit, IMAGE, 2, needs=T),
    Client("timm VisionTransformer, layer scale and registers", lambda: vit(init_values=0.1, reg_tokens=2), IMAGE, 2,
           needs=T),
    Client("timm VisionTransformer, attention pooling", lambda: vit(global_pool="map"), IMAGE, 2, 1, needs=T),
    Client("timm forward_features", vit, IMAGE, 2, call="forward_features", needs=T),
    Client("timm get_intermediate_layers", vit, IMAGE, 2, call="get_intermediate_layers", needs=T),
    Client("timm DeiT distilled", lambda: vit("deit.VisionTransformerDistilled"), IMAGE, 2, needs=T),
    Client("timm BEiT", lambda: vit("beit.Beit", use_rel_pos_bias=True), IMAGE, 2, needs=T),
    Client("timm EVA", lambda: vit("eva.Eva", use_rot_pos_emb=True), IMAGE, 2, needs=T),
    Client("timm CaiT", lambda: vit("cait.Cait", depth_token_only=1), IMAGE, 0, needs=T, reason="computed by hand"),
    Client("timm PVT v2", lambda: timm("pvt_v2_b0"), PHOTO, 8, needs=T),
    Client("transformers LLaMA", lambda: hugging("LlamaModel", "LlamaConfig", **LLAMA, num_key_value_heads=2), TEXT, 2,
           needs=HF),
    Client("transformers GPT-2", lambda: hugging("GPT2Model", "GPT2Config", n_embd=32, n_layer=2, n_head=4,
           vocab_size=50, n_positions=32), TEXT, 2, needs=HF),
    Client("transformers BERT", lambda: hugging("BertModel", "BertConfig", **BERT), TEXT, 2, needs=HF),
    Client("transformers RoBERTa", lambda: hugging("RobertaModel", "RobertaConfig", **BERT), TEXT, 2, needs=HF),
    Client("transformers Qwen2", lambda: hugging("Qwen2Model", "Qwen2Config", **LLAMA, num_key_value_heads=2), TEXT, 2,
           needs=HF),
    Client("transformers Mistral", lambda: hugging("MistralModel", "MistralConfig", **LLAMA, num_key_value_heads=2,
           head_dim=8), TEXT, 2, needs=HF),
    Client("transformers ViT", lambda: hugging("ViTModel", "ViTConfig", **VIT), IMAGE, 2, needs=HF),
    Client("transformers DINOv2", lambda: hugging("Dinov2Model", "Dinov2Config", **VIT), IMAGE, 2, needs=HF),
    Client("transformers BART", lambda: hugging("BartModel", "BartConfig", **BART), TEXT, 2, 1, needs=HF),
    Client("transformers BART, both given", lambda: hugging("BartModel", "BartConfig", **BART),
           tokens(9, decoder_input_ids=9), 2, 1, needs=HF),
    Client("peft LoRA on W^O", lambda: tuned("LoraConfig", r=2, target_modules=["o_proj"], init_lora_weights=False),
           TEXT, 2, needs=("transformers", "peft")),
    Client("peft LoRA on queries", lambda: tuned("LoraConfig", r=2, target_modules=["q_proj"]), TEXT, 2,
           needs=("transformers", "peft")),
    Client("peft prefix tuning", lambda: tuned("PrefixTuningConfig", task_type="CAUSAL_LM", num_virtual_tokens=3), TEXT,
           2, needs=("transformers", "peft")),
    Client("torchao int8 weights", quantised, TEXT, 2, needs=("transformers", "torchao")),
    Client("torchvision VisionTransformer", vision, IMAGE, 2, exact=False, needs=("torchvision",)),
    Client("open_clip encode_image", clip, IMAGE, 2, exact=False, call="encode_image", needs=("open_clip",)),
    Client("open_clip encode_text", clip, lambda: {"args": (torch.arange(18).view(2, 9),)}, 2, exact=False,
           call="encode_text", needs=("open_clip",)),
    Client("x-transformers Decoder", decoder, lambda: {"args": (torch.arange(18).view(2, 9),)}, 2,
           needs=("x_transformers",)),
    Client("vit-pytorch ViT", pytorch_vit, IMAGE, reason="computed by hand", needs=("vit_pytorch",)),
    Client("vit-pytorch SimpleViT, flash", simple_flash, IMAGE, 2, needs=("vit_pytorch",)),
]  # fmt: skip
