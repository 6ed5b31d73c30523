"""Tiny random text encoders and tokenizers of every kind that a pipeline may hold, of our making."""

import torch

WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("a", "digits", "thin", "thick", "left", "right", "and", "with"),
]
CHAT = "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}<assistant>"


def tokenizer(length=32, side="right", ends=True):
    """A tokenizer of words, with `</s>` at the end, as T5's; or without ends, as Qwen's."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", "<s>", "<user>", "<assistant>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    if ends:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
        )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    names["model_input_names"] = ["input_ids", "attention_mask"]
    made = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, padding_side=side, **names)
    made.chat_template = CHAT
    return made


def vocabulary_size():
    return len(tokenizer())


def clip(width=16, projection=None, length=32):
    """A CLIP text encoder, with a projection if its width is given."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary_size(),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=projection or width,
        eos_token_id=1,
        bos_token_id=3,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def tiny_clip(folder):
    """A whole tiny CLIP, of pictures and of text, as save_pretrained writes it."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 32, "eos_token_id": 1, "pad_token_id": 0}
    text, vision = {**text, "bos_token_id": 3}, {**sizes, "image_size": 24, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def t5(width=32):
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": width, "d_kv": 8, "d_ff": 2 * width, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=vocabulary_size(), pad_token_id=0, eos_token_id=1, **sizes))


def umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return UMT5EncoderModel(UMT5Config(vocab_size=vocabulary_size(), pad_token_id=0, eos_token_id=1, **sizes))


def llama(width=16):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary_size(), num_key_value_heads=1, pad_token_id=0, **sizes))


def gemma(width=32):
    from transformers import Gemma2Config, Gemma2Model

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Gemma2Model(
        Gemma2Config(vocab_size=vocabulary_size(), num_key_value_heads=2, head_dim=8, pad_token_id=0, **sizes)
    )


def qwen3(width=32):
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Qwen3Model(Qwen3Config(vocab_size=vocabulary_size(), num_key_value_heads=2, head_dim=8, **sizes))


def qwen_vl(width=32):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": vocabulary_size(),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    tokens = {"image_token_id": 2, "video_token_id": 2, "vision_start_token_id": 2, "vision_end_token_id": 2}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


IMAGE_TOKENS = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def mistral(width=16):
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    sizes = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}
    text = {"model_type": "mistral", "vocab_size": vocabulary_size() + len(IMAGE_TOKENS), "num_hidden_layers": 31}
    text |= {"num_key_value_heads": 1, "pad_token_id": 0}
    vision = {"model_type": "pixtral", "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    configs = {"text_config": {**text, **sizes}, "vision_config": {**vision, **sizes}}
    return Mistral3ForConditionalGeneration(Mistral3Config(**configs, image_token_index=vocabulary_size()))


def pixtral_processor(length=64):
    """Of images and text, which takes images first and has the tokenizer in it."""
    from transformers import PixtralImageProcessor, PixtralProcessor

    words = tokenizer(length, "left")
    words.add_tokens(IMAGE_TOKENS)
    parts = "{% for part in message['content'] %}{{ part['text'] }} {% endfor %}"
    chat = "<s>{% for message in messages %}<user> " + parts + "{% endfor %}"
    return PixtralProcessor(PixtralImageProcessor(), words, patch_size=14, chat_template=chat)
