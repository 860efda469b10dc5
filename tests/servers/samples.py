"""What a real server of each kind sends: its listing, its details, what it says while it loads.

A new kind in `known` needs a sample here. Shortened where a field tells nothing new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from llmgateway.servers.kind import Facts
from llmgateway.servers.models import Model


@dataclass(frozen=True, slots=True)
class Sample:
    """A server of one kind. `facts` is what is known once its listing and its pages have been read."""

    listing: Mapping[str, Any]
    facts: Facts
    pages: Mapping[str, Any] = field(default_factory=dict)
    proof: Any = None
    loading: tuple[int, Mapping[str, Any]] | None = None


LLAMACPP: Final = Sample(
    listing={
        "models": [{"name": "tiny", "model": "tiny", "type": "model", "capabilities": ["completion"]}],
        "object": "list",
        "data": [
            {
                "id": "tiny",
                "object": "model",
                "created": 1_790_000_000,
                "owned_by": "llamacpp",
                "meta": {"vocab_type": 1, "n_vocab": 1024, "n_ctx": 2048, "n_ctx_train": 32_768},
            }
        ],
    },
    pages={
        "/props": {
            "default_generation_settings": {"id": 0, "n_ctx": 2048, "is_processing": False},
            "total_slots": 4,
            "model_path": "/models/tiny.gguf",
        }
    },
    loading=(503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}),
    facts=Facts({"tiny": Model("tiny", 1_790_000_000, 2048)}, slots=4),
)
OLLAMA_MORE: Final = {
    "modified_at": "2026-09-21T18:26:41.5Z",
    "size": 5_225_388_164,
    "digest": "500a1f067a9f",
    "details": {"parent_model": "", "family": "qwen3", "families": ["qwen3"]},
    "capabilities": ["completion", "tools"],
}
OLLAMA_IN_MEMORY: Final = {
    "size": 6_591_830_464,
    "details": {"format": "gguf", "family": "qwen3", "parameter_size": "8.2B"},
    "expires_at": "2026-10-17T16:47:07.93355-07:00",
    "size_vram": 5_333_539_264,
    "context_length": 8192,
}
OLLAMA: Final = Sample(
    listing={
        "object": "list",
        "data": [
            {"id": "qwen3:8b", "object": "model", "created": 1_790_000_001, "owned_by": "library"},
            {"id": "alice/llama3.2:3b", "object": "model", "created": 1_790_000_002, "owned_by": "alice"},
        ],
    },
    proof={"version": "0.12.6"},
    pages={
        "/api/tags": {
            "models": [
                {
                    "name": "qwen3:8b",
                    "model": "qwen3:8b",
                    "modified_at": "2026-09-21T18:26:41.5Z",
                    "size": 5_225_388_164,
                    "digest": "500a1f067a9f",
                    "details": {"parent_model": "", "family": "qwen3", "families": ["qwen3"]},
                    "capabilities": ["completion", "tools"],
                }
            ]
        },
        "/api/ps": {
            "models": [
                {"name": "qwen3:8b", "model": "qwen3:8b", **OLLAMA_IN_MEMORY},
            ]
        },
    },
    facts=Facts(
        {
            "qwen3:8b": Model(
                "qwen3:8b", 1_790_000_001, 8192, loaded=True, more=OLLAMA_MORE, in_memory=OLLAMA_IN_MEMORY
            ),
            "alice/llama3.2:3b": Model("alice/llama3.2:3b", 1_790_000_002, loaded=False),
        }
    ),
)
LMSTUDIO_MORE: Final = {
    "type": "llm",
    "publisher": "lmstudio-community",  # the older API has the last word
    "arch": "qwen3",
    "compatibility_type": "gguf",
    "quantization": "Q4_K_M",
    "max_context_length": 40_960,
    "capabilities": ["tool_use"],
}
LMSTUDIO_MORE_OF_THE_OTHER: Final = {
    "type": "embeddings",
    "publisher": "nomic-ai",
    "compatibility_type": "gguf",
    "max_context_length": 2048,
}
LMSTUDIO: Final = Sample(
    listing={
        "data": [
            {"id": "qwen3-8b", "object": "model", "owned_by": "organization_owner"},
            {"id": "text-embedding-nomic", "object": "model", "owned_by": "organization_owner"},
        ],
        "object": "list",
    },
    pages={
        "/api/v1/models": {
            "models": [
                {
                    "type": "llm",
                    "publisher": "qwen",
                    "key": "qwen3-8b",
                    "display_name": "Qwen3 8B",
                    "architecture": "qwen3",
                    "quantization": {"name": "Q4_K_M", "bits_per_weight": 4},
                    "size_bytes": 5_027_783_488,
                    "params_string": "8B",
                    "loaded_instances": [
                        {
                            "id": "qwen3-8b",
                            "config": {"context_length": 4096, "eval_batch_size": 512, "parallel": 4},
                        }
                    ],
                    "max_context_length": 40_960,
                    "format": "gguf",
                    "capabilities": {"vision": False, "trained_for_tool_use": True},
                },
                {
                    "type": "embedding",
                    "publisher": "nomic-ai",
                    "key": "text-embedding-nomic",
                    "loaded_instances": [],
                    "max_context_length": 2048,
                    "format": "gguf",
                },
            ]
        },
        "/api/v0/models": {
            "object": "list",
            "data": [
                {
                    "id": "qwen3-8b",
                    "object": "model",
                    "type": "llm",
                    "publisher": "lmstudio-community",
                    "arch": "qwen3",
                    "compatibility_type": "gguf",
                    "quantization": "Q4_K_M",
                    "state": "loaded",
                    "max_context_length": 40_960,
                    "loaded_context_length": 4096,
                },
                {
                    "id": "text-embedding-nomic",
                    "object": "model",
                    "type": "embeddings",
                    "state": "not-loaded",
                    "max_context_length": 2048,
                },
            ],
        },
    },
    facts=Facts(
        {
            "qwen3-8b": Model("qwen3-8b", context_length=4096, loaded=True, slots=4, more=LMSTUDIO_MORE),
            "text-embedding-nomic": Model(
                "text-embedding-nomic", context_length=2048, loaded=False, more=LMSTUDIO_MORE_OF_THE_OTHER
            ),
        }
    ),
)
VLLM: Final = Sample(
    listing={
        "object": "list",
        "data": [
            {
                "id": "Qwen/Qwen3-8B",
                "object": "model",
                "created": 1_790_000_003,
                "owned_by": "vllm",
                "root": "Qwen/Qwen3-8B",
                "parent": None,
                "max_model_len": 40_960,
                "permission": [{"id": "modelperm-0", "object": "model_permission", "organization": "*"}],
            }
        ],
    },
    facts=Facts({"Qwen/Qwen3-8B": Model("Qwen/Qwen3-8B", 1_790_000_003, 40_960)}),
)
GENERIC: Final = Sample(
    listing={
        "object": "list",
        "data": [{"id": "m", "object": "model", "created": 1_790_000_004, "owned_by": "llama-swap"}],
    },
    facts=Facts({"m": Model("m", 1_790_000_004)}),
)
SAMPLES: Final[Mapping[str, Sample]] = {
    "ollama": OLLAMA,
    "llamacpp": LLAMACPP,
    "lmstudio": LMSTUDIO,
    "vllm": VLLM,
    "generic": GENERIC,
}
"""By the names of the kinds."""
