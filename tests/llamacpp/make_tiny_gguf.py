"""Write a tiny, reproducible Llama model of random weights that llama.cpp can serve.

    python make_tiny_gguf.py tiny.gguf      # 1 MB, thousands of tokens a second
    python make_tiny_gguf.py endless.gguf --dim 256 --layers 8 --eos-prob 0 --tool-prob 0   # never ends

The transformer is real, its weights are noise from a fixed seed: the same arguments give the same bytes.
Two things are arranged by hand so that the noise is pleasant to test with.

* The vocabulary is whole English words, their prefixes (so that prompts are about a token a word),
  printable ASCII and the 256 raw bytes. What it says is therefore readable words and always valid UTF-8.
* Channel 0 of the residual stream is a constant that no layer writes to. The output matrix uses it as a
  bias: raw bytes and prefixes are never sampled, words are about equally likely, and the end of the turn
  and the begin of a tool call come with the probabilities asked for (at temperature 1; at temperature 0
  they never come).

ASCII and the double quote keep some probability, so that llama.cpp's grammars (JSON mode, tool calls) can
close their strings: even this model calls tools with valid arguments.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field

import gguf
import numpy as np
import numpy.typing as npt

WORDS = """the of and a to in is you that it he was for on are as with his they I
at be this have from or one had by word but not what all were we when your can said
there use an each which she do how their if will up other about out many then them
these so some her would make like him into time has look two more write go see number
no way could people my than first water been call who oil its now find long down day
did get come made may part over new sound take only little work know place year live
me back give most very after thing our just name good sentence man think say great
where help through much before line right too mean old any same tell boy follow came
want show also around form three small set put end does another well large must big
even such because turn here why ask went men read need land different home us move try
kind hand picture again change off play spell air away animal house point page letter
mother answer found study still learn should world hello user assistant system tool
weather city model token server stream gateway""".split()

CHAT_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools:' }}"
    "{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    '{{- \'\\nTo call a tool write <tool_call>{"name": NAME, "arguments": ARGS}</tool_call><|im_end|>\\n\' }}'
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{- message['content'] }}"
    "{%- elif message['content'] %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'text' %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}"
    "{%- if message['tool_calls'] %}{%- for tc in message['tool_calls'] %}"
    "{{- '<tool_call>{\"name\": \"' + tc['function']['name'] + '\", \"arguments\": ' }}"
    "{%- if tc['function']['arguments'] is string %}{{- tc['function']['arguments'] }}"
    "{%- else %}{{- tc['function']['arguments'] | tojson }}{%- endif %}"
    "{{- '}</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

NEVER = -60.0  # the logit of a token that is never sampled
RARE = -12.0
QUOTE = 2.2  # the logit of the double quote: ends a grammar's string in about 15 words

Matrix = npt.NDArray[np.float32]


@dataclass
class Vocabulary:
    """A SentencePiece-style vocabulary; `biases` are the logits that the output matrix adds."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    biases: list[float] = field(default_factory=list)

    def add(self, text: str, score: float, kind: gguf.TokenType, bias: float) -> None:
        self.tokens.append(text)
        self.scores.append(float(score))
        self.types.append(int(kind))
        self.biases.append(bias)


def vocabulary(eos_prob: float, tool_prob: float) -> Vocabulary:
    kind = gguf.TokenType
    vocab = Vocabulary()
    vocab.add("<unk>", 0, kind.UNKNOWN, NEVER)
    for text, bias in (
        ("<s>", NEVER),
        ("</s>", NEVER),
        ("<|im_start|>", NEVER),
        ("<|im_end|>", _bias(eos_prob)),
        ("<tool_call>", _bias(tool_prob)),
        ("</tool_call>", NEVER),
    ):
        vocab.add(text, 0, kind.CONTROL, bias)
    for byte in range(256):
        vocab.add(f"<0x{byte:02X}>", 0, kind.BYTE, NEVER)
    spoken = sorted({"\u2581" + word for word in WORDS})
    bare = sorted(set(WORDS))  # only start texts and follow punctuation
    prefixes = {piece[:size] for piece in spoken + bare for size in range(1, len(piece))}
    for word in spoken:
        vocab.add(word, -1000 + len(word), kind.NORMAL, 0.0)
    for piece in bare + sorted(prefixes - {*spoken, *bare}):
        if len(piece) > 1 or not piece.isascii():
            vocab.add(piece, -2000 + len(piece), kind.NORMAL, NEVER)
    for char in map(chr, range(33, 127)):
        vocab.add(char, -5000, kind.NORMAL, QUOTE if char == '"' else RARE)
    return vocab


def _bias(probability: float) -> float:
    return math.log(probability * len(WORDS)) if probability > 0 else NEVER


def describe(writer: gguf.GGUFWriter, vocab: Vocabulary, args: argparse.Namespace) -> None:
    writer.add_name("tiny-random-llama")
    writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
    writer.add_vocab_size(len(vocab.tokens))
    writer.add_context_length(args.ctx)
    writer.add_embedding_length(args.dim)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(args.dim * 2)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.heads)
    writer.add_rope_dimension_count(args.dim // args.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocab.tokens)
    writer.add_token_scores(vocab.scores)
    writer.add_token_types(vocab.types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    # With it, llama.cpp's grammars cannot match the chat template, and it answers 400.
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def weigh(writer: gguf.GGUFWriter, vocab: Vocabulary, *, dim: int, layers: int, seed: int) -> None:
    """Add the weights.

    Channel 0 is sqrt(dim)/2 in every embedding and untouched by the layers. The other channels have unit
    variance, so the final RMS norm leaves channel 0 near a known constant, which the output matrix turns
    into a bias.
    """
    rng = np.random.default_rng(seed)

    def noise(rows: int, columns: int, scale: float) -> Matrix:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    constant = math.sqrt(dim) / 2
    embedding = noise(len(vocab.tokens), dim, 1.0)
    embedding[:, 0] = constant
    writer.add_tensor("token_embd.weight", embedding)
    ones = np.ones(dim, dtype=np.float32)
    for layer in range(layers):
        prefix = f"blk.{layer}."
        attention_out, down = (
            noise(dim, dim, 0.5 / math.sqrt(dim)),
            noise(dim, dim * 2, 0.5 / math.sqrt(dim * 2)),
        )
        attention_out[0], down[0] = 0, 0
        writer.add_tensor(prefix + "attn_norm.weight", ones)
        for part in "qkv":
            writer.add_tensor(prefix + f"attn_{part}.weight", noise(dim, dim, 1 / math.sqrt(dim)))
        writer.add_tensor(prefix + "attn_output.weight", attention_out)
        writer.add_tensor(prefix + "ffn_norm.weight", ones)
        writer.add_tensor(prefix + "ffn_gate.weight", noise(dim * 2, dim, 1 / math.sqrt(dim)))
        writer.add_tensor(prefix + "ffn_up.weight", noise(dim * 2, dim, 1 / math.sqrt(dim)))
        writer.add_tensor(prefix + "ffn_down.weight", down)
    writer.add_tensor("output_norm.weight", ones)
    output = noise(len(vocab.tokens), dim, 1.0 / math.sqrt(dim))
    output[[bias != 0.0 for bias in vocab.biases]] = 0  # all but the words follow their bias alone
    normed = constant / math.sqrt(1 + constant * constant / dim)
    output[:, 0] = np.array(vocab.biases, dtype=np.float32) / normed
    writer.add_tensor("output.weight", output)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write a tiny random-weight Llama model.")
    parser.add_argument("out")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=8192, help="trained context length")
    parser.add_argument(
        "--eos-prob", type=float, default=1 / 64, help="chance of ending the turn at each token"
    )
    parser.add_argument("--tool-prob", type=float, default=1 / 64, help="chance of a tool call at each token")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.dim % (2 * args.heads):
        parser.error("--dim must be a multiple of 2 * --heads")
    return args


def main() -> None:
    args = arguments()
    vocab = vocabulary(args.eos_prob, args.tool_prob)
    writer = gguf.GGUFWriter(args.out, "llama")
    describe(writer, vocab, args)
    weigh(writer, vocab, dim=args.dim, layers=args.layers, seed=args.seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
