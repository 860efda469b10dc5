"""Write a Whisper of random weights, as faster-whisper reads it: `python whisper.py FOLDER`."""

import sys
import tempfile
from pathlib import Path

import torch
from bytewise import bytewise, saved
from ctranslate2.converters import TransformersConverter
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
)

folder = Path(sys.argv[1])
torch.manual_seed(1)
tokenizer = bytewise(SPECIALS)
end = tokenizer.token_to_id("<|endoftext|>")
config = WhisperConfig(
    vocab_size=tokenizer.get_vocab_size(),
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    bos_token_id=end,
    eos_token_id=end,
    pad_token_id=end,
    decoder_start_token_id=tokenizer.token_to_id("<|startoftranscript|>"),
    suppress_tokens=[],
    begin_suppress_tokens=[end],
)
with tempfile.TemporaryDirectory() as draft:
    model = WhisperForConditionalGeneration(config)
    decoder = model.model.decoder
    with (
        torch.no_grad()
    ):  # it ends after its first words: noise would go on for 448 tokens, at six temperatures
        decoder.layer_norm.bias.copy_(400 * decoder.embed_tokens.weight[end])
    model.generation_config.suppress_tokens = []
    model.generation_config.begin_suppress_tokens = [end]
    model.generation_config.no_timestamps_token_id = tokenizer.token_to_id("<|notimestamps|>")
    model.save_pretrained(draft)
    saved(tokenizer, Path(draft), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    WhisperFeatureExtractor().save_pretrained(draft)
    TransformersConverter(draft, copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(
        str(folder), force=True
    )
