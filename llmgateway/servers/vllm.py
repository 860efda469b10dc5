"""vLLM: one model for each server, which is in memory as soon as anybody answers.

Its listing tells all there is: the length of the context as `max_model_len`. How many requests it works on at
once depends on their lengths, and is told nowhere.
"""

from typing import Final

from llmgateway.servers.kind import Kind

KIND: Final = Kind(
    name="vllm",
    title="vLLM",
    wrote=lambda listing: "vllm" in listing.owners,
    speaks=frozenset({"openai", "responses", "anthropic"}),
    lacks=frozenset({"moderations", "apply_template"}),
    ports=(8000,),
    idle_s=5.0,  # uvicorn's, and it does not say so
)
