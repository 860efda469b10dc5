"""Write a BERT of random weights that embeds bytes: `python embeddings.py FOLDER`."""

import sys
from pathlib import Path

import torch
from bytewise import bytewise, saved
from transformers import BertConfig, BertModel

folder = Path(sys.argv[1])
torch.manual_seed(1)
tokenizer = bytewise(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
config = BertConfig(
    vocab_size=tokenizer.get_vocab_size(),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=512,
    pad_token_id=tokenizer.token_to_id("[PAD]"),
)
BertModel(config).save_pretrained(folder)
saved(tokenizer, folder, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
