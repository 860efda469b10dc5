"""What can be configured: the models of the file, with the default and the meaning of every setting.

Rules:

- The models hold only what the gateway acts upon; a key that does nothing is unknown.
- No message and no repr shows a key, an api_key, a header's value or anything that came from the environment.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Final

from pydantic import (
    Field,
)

from llmgateway.config.extra import ExtraEntry
from llmgateway.config.fields import (
    BasePath,
    Collector,
    Count,
    Duration,
    FilePath,
    Flag,
    FolderPath,
    Format,
    FreeName,
    HeaderName,
    Hosts,
    Instances,
    Level,
    ListOf,
    LogCount,
    LogPath,
    LogSize,
    MappingOf,
    ModelName,
    Name,
    Network,
    Origin,
    OrNothing,
    Port,
    PositiveDuration,
    Redis,
    Reference,
    Section,
    Size,
    SocketPath,
    SomeModels,
    UnavailableStatus,
)
from llmgateway.config.providers import ProviderConfig
from llmgateway.config.users import UserConfig

# --- The file -------------------------------------------------------------------------------------


class TlsConfig(Section):
    """The certificate with which the gateway speaks HTTPS itself."""

    cert: FilePath = Field(description="The file of the certificate and its chain, in PEM.")
    key: FilePath = Field(description="The file of its private key, in PEM, without a passphrase.")


LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


class ServerConfig(Section):
    """Where the gateway listens, and what it lets in."""

    host: Hosts = Field(
        ("127.0.0.1",),
        description="Address to listen on, or a list; 0.0.0.0 is every IPv4 address here, :: every address.",
    )
    port: Port = Field(8900, description="TCP port to listen on; 0 is any free one.")
    listen: SocketPath | None = Field(
        None, description="A Unix socket to listen on, unix:PATH, in the place of host and port."
    )
    reuse_port: Flag = Field(
        False,
        description="Whether other gateways may listen on this port too; connections are shared out.",
    )
    base_path: BasePath = Field(
        "", description="What stands before every path, such as /llm, when a reverse proxy passes it on."
    )
    tls: TlsConfig | None = Field(None, description="Speak HTTPS with this certificate; unset: plain HTTP.")
    max_body: Size = Field(100_000_000, description="Largest request body; larger ones get 413.")
    min_rate: Size = Field(
        1024, description="How much of a body has to come in a second, over 20 s; slower ones get 408."
    )
    bodies_memory: Size = Field(
        1_000_000_000, description="What the bodies of all requests may hold of memory; past it comes 503."
    )
    spool: FolderPath = Field(
        None,
        description="Folder for large uploads that do not name their model first; none: the system's own.",
    )
    connections_per_address: Count | None = Field(
        None,
        description="How many connections an address may have; unset: a quarter of all, this machine any.",
    )
    cors: ListOf[Origin] = Field(
        (), description='Web pages that may call from a browser: their origins, or "*" for all.'
    )
    trusted_proxies: ListOf[Network] = Field(
        (), description="Networks whose reverse proxies are believed when they name the client's address."
    )
    metrics_from: ListOf[Network] = Field(
        LOOPBACK, description="Networks that may read /metrics without a key; none: only an admin's key may."
    )
    extra_paths: ListOf[ExtraEntry] = Field(
        (),
        description="More paths to forward: those whose JSON bodies name a model, or path, method and model.",
    )
    ollama_api: Flag = Field(
        False, description="Whether programs that speak Ollama's own API may, below /api."
    )
    default_model: ModelName | None = Field(
        None, description="The model of requests that name none; unset: they are refused."
    )
    unavailable_status: UnavailableStatus = Field(
        404, description="What a request gets for a model whose servers are all away: 404, or 503."
    )
    drain_delay: Duration = Field(
        0.0,
        description="How long new requests are still taken when the gateway stops, while /readyz says no.",
    )
    drain_timeout: Duration = Field(
        30.0, description="How long requests may take to finish when the gateway stops."
    )


class HealthConfig(Section):
    """How providers are watched."""

    interval: PositiveDuration = Field(10.0, description="Time between two probes of a provider.")
    timeout: PositiveDuration = Field(5.0, description="How long a probe may take.")
    fall: Count = Field(2, description="Failed probes in a row until a provider is offline.")
    rise: Count = Field(1, description="Good probes in a row until it is online again.")


class QueueConfig(Section):
    """Where requests wait when all slots are taken."""

    size: Count = Field(100, description="How many requests may wait for one model; more get 503.")
    timeout: PositiveDuration = Field(300.0, description="How long a request may wait.")


class StreamsConfig(Section):
    """What happens while a stream says nothing."""

    keepalive: Duration = Field(
        15.0,
        description="Silence after which a stream gets an SSE comment, so that no proxy cuts it; 0: never. "
        "A WebSocket gets a ping.",
    )


SESSION_HEADERS: Final = (
    "x-session-id",
    "x-session-affinity",
    "x-claude-code-session-id",
    "x-opencode-session",
    "x-openwebui-chat-id",
    "x-open-webui-chat-id",
    "x-amp-thread-id",
    "x-conversation-id",
    "session-id",
    "session_id",
    "conversation_id",
)


class AffinityConfig(Section):
    """How a conversation is recognised, to stay where its cache is."""

    headers: ListOf[HeaderName] = Field(
        SESSION_HEADERS, description="Request headers that hold a session id, the first one found counts."
    )


class ClusterConfig(Section):
    """Several gateways with the same providers."""

    name: Name | None = Field(
        None,
        description="What this one is called, in logs, metrics and x-gateway-instance: gw1, with its number.",
    )
    instances: Instances = Field(
        1,
        description="How many there are: each takes its share of a provider's slots; own: each takes all.",
    )
    limits: Redis | None = Field(
        None,
        repr=False,
        description="A Redis that counts for all of them: redis://HOST:PORT/NUMBER; unset: each for itself.",
    )


class LogConfig(Section):
    """What the gateway writes: events to standard error, requests to a file."""

    level: Level = Field("info", description="The least important events to write.")
    format: Format = Field("text", description="text for people, json for programs: one event per line.")
    requests: LogPath = Field(
        "requests.jsonl",
        description="The file that gets a line of JSON for each request; none: it is not written.",
    )
    requests_size: LogSize = Field(
        50_000_000, description="How large that file grows before the next one is begun."
    )
    requests_keep: LogCount = Field(10, description="How many older files are kept beside it.")


class TelemetryConfig(Section):
    """Whom the gateway tells of each request, in OpenTelemetry's words."""

    otlp: Collector | None = Field(
        None,
        repr=False,
        description="A collector of spans, by OTLP over HTTP: http://HOST:4318; unset: nobody is told.",
    )


class Config(Section):
    """The whole file."""

    server: OrNothing[ServerConfig] = Field(
        ServerConfig(), description="Where the gateway listens, and what it lets in."
    )
    users: MappingOf[FreeName, OrNothing[UserConfig]] = Field({}, description="Who may call, by name.")
    groups: MappingOf[FreeName, ListOf[Reference]] = Field(
        {}, description="Names for several users, to share providers with."
    )
    providers: MappingOf[Name, ProviderConfig] = Field({}, description="The LLM servers, by name.")
    aliases: MappingOf[ModelName, SomeModels] = Field(
        {},
        description="Other names for models: what each stands for; of several, the first that is online.",
    )
    fallbacks: MappingOf[ModelName, SomeModels] = Field(
        {}, description="Models to take instead, in this order, when nobody who serves a model is online."
    )
    health: OrNothing[HealthConfig] = Field(HealthConfig(), description="How providers are watched.")
    queue: OrNothing[QueueConfig] = Field(
        QueueConfig(), description="Where requests wait when all slots are taken."
    )
    streams: OrNothing[StreamsConfig] = Field(
        StreamsConfig(), description="What happens while a stream says nothing."
    )
    affinity: OrNothing[AffinityConfig] = Field(
        AffinityConfig(), description="How a conversation stays where its cache is."
    )
    cluster: OrNothing[ClusterConfig] = Field(
        ClusterConfig(), description="Several gateways with the same providers, and what they share."
    )
    log: OrNothing[LogConfig] = Field(
        LogConfig(), description="What the gateway writes: events to standard error, requests to a file."
    )
    telemetry: OrNothing[TelemetryConfig] = Field(
        TelemetryConfig(), description="Whom the gateway tells of each request, in OpenTelemetry's words."
    )
