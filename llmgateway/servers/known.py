"""All kinds of LLM servers that are known, and which one is met.

To add a kind, write its file and put it here; the contract in tests/servers/test_kinds.py holds for it then.
"""

from typing import Final

from llmgateway.servers import generic, llamacpp, lmstudio, ollama, vllm
from llmgateway.servers.kind import Kind
from llmgateway.servers.models import Listing

# In the order in which they are looked for on a machine: the first one found has its model shown in examples.
KINDS: Final[tuple[Kind, ...]] = (ollama.KIND, llamacpp.KIND, lmstudio.KIND, vllm.KIND, generic.KIND)

BY_KIND: Final = {kind.name: kind for kind in KINDS}


def who_wrote(listing: Listing) -> Kind:
    """Tell which kind of server wrote a listing."""
    return next((kind for kind in KINDS if kind.wrote(listing)), generic.KIND)


def is_loading(kind: Kind, status: int, body: bytes) -> bool:
    """Tell from an answer whether the server loads its model; one that is not known may be of any kind."""
    suspects = KINDS if kind is generic.KIND else (kind,)
    return any(suspect.is_loading(status, body) for suspect in suspects)
