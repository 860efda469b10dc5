"""Tells a collector of OpenTelemetry of each request whose caller is known: a span, with `gen_ai.*` names.

- Without a collector in the config nothing of OpenTelemetry is imported, and a request costs one look.
- A trace that the client began goes on in ours, and ours at the provider.
- Spans are sent by a thread of OpenTelemetry's own, from a queue with a bound; what is too much is lost.
- A span holds what the request log holds: never a key, a prompt or an answer.
"""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from llmgateway.api.endpoints import ENDPOINTS
from llmgateway.books.entry import Entry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_PATH: Final = "/v1/traces"
_CHARACTERS: Final = 256
_SEND_S: Final = 5.0
LAST_SPANS_S: Final = 2.0
"""How long the end waits for what was not sent yet."""
# As the semantic conventions for generative AI have them; what has no name there goes by ours.
_OPERATIONS: Final = {
    "messages": "chat",
    "responses": "chat",
    "ollama_chat": "chat",
    "completions": "text_completion",
    "ollama_generate": "text_completion",
    "ollama_embed": "embeddings",
    "ollama_embeddings": "embeddings",
}
_OPERATION_AT: Final = {each.path: _OPERATIONS.get(each.name, each.name) for each in ENDPOINTS if each.name}
_WELL: Final = ("ok", "client_gone")
_SERVER_FAULT: Final = 500
Value = str | int | float | bool


class Traces:
    """Begins and ends spans, while there is somebody to tell."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._place: tuple[str | None, str] = (None, "")
        self._provider: TracerProvider | None = None
        self.tracer: Tracer | None = None
        """None while nobody is to be told."""

    def adopt(self, collector: str | None, instance: str) -> None:
        """Tell another collector from now on, by its URL, or nobody; `instance` is who tells."""
        if (collector, instance) == self._place:
            return
        self._retire()
        self._place = collector, instance
        if collector is not None:
            self._provider = _provider(collector, instance, self._version)
            self.tracer = self._provider.get_tracer("llmgateway", self._version)

    def begin(self, tracer: "Tracer", entry: Entry, method: str, named: Mapping[bytes, bytes]) -> None:
        """Begin the span of a request, as a part of the trace that its header fields name, if they do."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        told = {
            name: named[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in named
        }
        before_ns = int((time.monotonic() - entry.began) * 1e9)
        entry.span = tracer.start_span(
            _operation_at(entry.endpoint),
            TraceContextTextMapPropagator().extract(told),
            SpanKind.SERVER,
            {"http.request.method": method},
            start_time=time.time_ns() - before_ns,
        )

    def end(self, span: "Span", entry: Entry) -> None:
        """End the span of a request that is over."""
        from opentelemetry.trace import StatusCode

        if span.is_recording():
            facts = {name: value for name, value in _facts_of(entry).items() if value not in ("", None)}
            span.set_attributes(facts)
            asked = entry.asked_model or entry.model
            span.update_name(f"{_operation_at(entry.endpoint)} {asked}".rstrip())
            if entry.status >= _SERVER_FAULT or entry.outcome == "truncated":
                span.set_status(StatusCode.ERROR, entry.outcome)
        span.end()

    async def close(self) -> None:
        """Send what is not sent yet, within some seconds."""
        ending = self._retire()
        if ending is not None:
            await asyncio.to_thread(ending.join, LAST_SPANS_S)

    def _retire(self) -> threading.Thread | None:
        """Have the rest sent by a thread, as that may take its time; nobody else has to wait for it."""
        provider, self._provider, self.tracer = self._provider, None, None
        if provider is None:
            return None
        ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        ending.start()
        return ending


def _operation_at(path: str) -> str:
    return _OPERATION_AT.get(path, path)


def passed_on(span: "Span") -> bytes:
    """Give the header lines that make what a provider does a part of a span (W3C Trace Context)."""
    context = span.get_span_context()
    lines = f"traceparent: 00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}\r\n"
    if context.trace_state:
        lines += f"tracestate: {context.trace_state.to_header()}\r\n"
    return lines.encode("latin-1")


def _facts_of(entry: Entry) -> dict[str, Value | None]:
    """Give the attributes of a span; what is not known is None or empty."""
    facts: dict[str, Value | None] = {
        "gen_ai.operation.name": _operation_at(entry.endpoint),
        "gen_ai.request.model": entry.asked_model or entry.model,
        "gen_ai.response.model": entry.model if entry.provider else None,
        "gen_ai.provider.name": entry.provider,
        "gen_ai.request.stream": entry.streams,
        "http.route": entry.endpoint,
        "http.response.status_code": entry.status,
        "error.type": None if entry.outcome in _WELL else entry.outcome,
        "user.name": entry.user,
        "llmgateway.request_id": entry.id,
        "llmgateway.outcome": entry.outcome,
        "llmgateway.attempts": entry.attempts,
        "llmgateway.queue_s": entry.queue_s,
    }
    if entry.streams and entry.first_byte_at is not None:
        facts["gen_ai.response.time_to_first_chunk"] = entry.first_byte_at - entry.began
    if (tokens := entry.reckon()) is not None:
        facts["gen_ai.usage.input_tokens"] = tokens.prompt
        facts["gen_ai.usage.output_tokens"] = tokens.completion
        facts["gen_ai.usage.cache_read.input_tokens"] = tokens.cached or None
        facts["gen_ai.usage.reasoning.output_tokens"] = tokens.reasoning or None
        facts["llmgateway.tokens_estimated"] = tokens.estimated
    return facts


def _provider(collector: str, instance: str, version: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    who = {"service.name": "llmgateway", "service.version": version}
    provider = TracerProvider(
        resource=Resource.create({**who, "service.instance.id": instance} if instance else who),
        span_limits=SpanLimits(max_span_attribute_length=_CHARACTERS),
        shutdown_on_exit=False,
    )
    target = collector if collector.endswith(_PATH) else collector.rstrip("/") + _PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(target, timeout=_SEND_S)))
    return provider
