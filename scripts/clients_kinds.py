"""The clients that scripts/clients runs, and with what each is tried.

A new client is a page in docs/clients with its settings, and a row here. A library has a program in
scripts/clients_programs as well; a command is run by the last line of its page's blocks, without a terminal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

TINY: Final = "tiny"  # quick, and calls tools
LONG: Final = "long"  # reads the long prompts of agents, and calls no tools: its words would be commands
EMBEDS: Final = "tiny-embeddings"
OF_OLLAMA: Final = "llama3.2:latest"
CHAT: Final = ("chat", "stream", "tools")
HELLO: Final = "hello world"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One program that somebody might put in front of the gateway."""

    name: str
    """The title of its page."""
    packages: tuple[str, ...]
    """The first is the client, and tells the version."""
    npm: bool = False
    """Packages of npm, not of PyPI."""
    program: str = ""
    """A file in scripts/clients_programs; the page's settings are a module beside it."""
    tries: tuple[str, ...] = ()
    arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What each try adds to the command of the page, where there is no program."""
    model: str = TINY
    embeddings: str = EMBEDS
    quick: bool = False
    """True if the tests run it, too: what it needs is among what they need."""

    @property
    def slug(self) -> str:
        """Its name in paths, that of its page among them, and as a user of the gateway."""
        return self.name.lower().replace(",", "").replace(" ", "-")


def library(
    name: str, program: str, packages: str, *tries: str, quick: bool = False, model: str = TINY
) -> Client:
    return Client(
        name=name,
        packages=tuple(packages.split()),
        npm=program.endswith(".mjs"),
        program=program,
        tries=tries,
        model=model,
        quick=quick,
        embeddings=OF_OLLAMA if model == OF_OLLAMA else EMBEDS,
    )


def agent(name: str, package: str, *arguments: str, npm: bool = True) -> Client:
    """A command that is asked one thing, and streams what it asks for or does not, as it pleases."""
    return Client(name=name, packages=(package,), npm=npm, arguments={"chat": arguments}, model=LONG)


_EVERY: Final = ("models", *CHAT, "embeddings")
CLIENTS: Final = (
    library("OpenAI, Python", "openai_py.py", "openai", *_EVERY, "responses", quick=True),
    library("OpenAI, JavaScript", "openai_js.mjs", "openai", *_EVERY, "responses"),
    library("Anthropic, Python", "anthropic_py.py", "anthropic", "models", *CHAT, "tokens"),
    library("Anthropic, JavaScript", "anthropic_js.mjs", "@anthropic-ai/sdk", "models", *CHAT, "tokens"),
    library("Ollama, Python", "ollama_py.py", "ollama", *_EVERY, quick=True, model=OF_OLLAMA),
    library("Ollama, JavaScript", "ollama_js.mjs", "ollama", *_EVERY, model=OF_OLLAMA),
    library("LangChain", "langchain_py.py", "langchain-openai", *CHAT, "embeddings"),
    library(
        "LlamaIndex",
        "llamaindex_py.py",
        "llama-index-llms-openai-like llama-index-embeddings-openai-like",
        *CHAT,
        "embeddings",
    ),
    library("LiteLLM", "litellm_py.py", "litellm", *_EVERY),
    Client(name="LLM", packages=("llm",), arguments={"chat": ("--no-stream",), "stream": ()}),
    library("Pydantic AI", "pydantic_ai_py.py", "pydantic-ai-slim[openai]", *CHAT, "embeddings"),
    library("OpenAI Agents SDK", "openai_agents_py.py", "openai-agents", *CHAT),
    library("Vercel AI SDK", "ai_sdk.mjs", "ai @ai-sdk/openai-compatible", *CHAT, "embeddings"),
    agent(
        "aider", "aider-chat", "--no-git", "--yes-always", "--no-check-update", "--message", HELLO, npm=False
    ),
    agent("opencode", "opencode-ai", "run", HELLO),
    agent("Codex", "@openai/codex", "exec", "--skip-git-repo-check", HELLO),
    agent("Continue", "@continuedev/cli", "-p", HELLO),
    agent("Qwen Code", "@qwen-code/qwen-code", "-p", HELLO),
)
