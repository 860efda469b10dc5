"""Any other server, and every one that has not told yet who it is: it may speak whatever is widely spoken.

It claims no listing: who is not recognised as another is taken for this one.
"""

from typing import Final

from llmgateway.servers.kind import Kind

KIND: Final = Kind(
    name="generic",
    title="OpenAI-compatible",
    wrote=lambda listing: False,
    speaks=frozenset({"openai", "responses", "anthropic"}),
)
