"""Any other server, and every one that has not told yet who it is: all that is known is OpenAI's API,
and that others may be had.

It claims no listing: who is not recognised as another is taken for this one.
"""

from typing import Final

from llmgateway.servers.kind import Kind

KIND: Final = Kind(
    name="generic",
    title="OpenAI-compatible",
    wrote=lambda listing: False,
    speaks=frozenset({"openai"}),
    may_speak=frozenset({"responses", "anthropic"}),
)
