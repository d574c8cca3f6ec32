"""A causal language model of four random blocks and a tokenizer of letters, saved like any Hugging Face folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["[END]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]


def save_tiny_llama(folder: Path) -> Path:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64, **heads, "initializer_range": 0.2}
    config = LlamaConfig(vocab_size=len(WORDS), eos_token_id=0, bos_token_id=None, pad_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    letters = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="[END]", unk_token="[UNK]", pad_token="[END]"
    ).save_pretrained(folder)
    return folder
