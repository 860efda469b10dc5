"""OpenAI's Responses: its errors are those of OpenAI's other endpoints, all else has words of its own."""

from typing import Final

from llmgateway.api.dialect import SSE, Counts, Dialect, Ends, Fields, Piece, Row, sse_comment, sse_event
from llmgateway.api.dialects.openai import error

DIALECT: Final = Dialect(
    name="responses",
    root="/v1/responses",
    endpoints=(
        Row("/v1/responses", "responses", streams=True, keeps=True),
        Row("/v1/responses/input_tokens", "responses_input_tokens", reads=False),
    ),
    error=error,
    stream=SSE,
    error_event=sse_event,
    keepalive=sse_comment,
    fields=Fields(
        system=("instructions",),
        turns=("input",),
        tools=("tools",),
        limits=("max_output_tokens",),
        follows=("previous_response_id",),
    ),
    pieces=(Piece("delta"),),  # of text, thoughts or arguments: the event's type says which
    counts=(
        Counts(
            prompt="input_tokens",
            completion="output_tokens",
            total="total_tokens",
            cached=("input_tokens_details", "cached_tokens"),
            reasoning=("output_tokens_details", "reasoning_tokens"),
        ),
    ),
    ends=Ends(types=("response.completed", "response.incomplete"), failures=("response.failed",)),
    kept=(
        Row("/v1/responses/{id}", body="none", streams=True, reads=False, method="GET"),
        Row("/v1/responses/{id}", body="none", reads=False, method="DELETE"),
        Row("/v1/responses/{id}/input_items", body="none", reads=False, method="GET"),
        Row("/v1/responses/{id}/cancel", body="none", reads=False),
    ),
)
