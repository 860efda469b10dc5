"""Write a Llama of random weights that talks in bytes: `python chat.py FOLDER`."""

import sys
from pathlib import Path

import torch
from bytewise import bytewise, saved
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
torch.manual_seed(1)
tokenizer = bytewise(("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"))
config = LlamaConfig(
    vocab_size=tokenizer.get_vocab_size(),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,  # vLLM wants heads of 32 numbers at least
    num_key_value_heads=2,
    max_position_embeddings=2048,
    bos_token_id=tokenizer.token_to_id("<s>"),
    eos_token_id=tokenizer.token_to_id("</s>"),
)
LlamaForCausalLM(config).save_pretrained(folder)
saved(tokenizer, folder, bos_token="<s>", eos_token="</s>", pad_token="</s>")
