"""`gateway.py status`: what a running gateway is doing, as text for a terminal.

It asks the gateway that the config file describes, on this machine, and shows that it can read the file; or
others, with an API key, which are added up. On a terminal the table is drawn anew every second until Ctrl-C.
"""

import asyncio
import json
import shutil
import ssl
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from llmgateway.access.keys import KeyRing
from llmgateway.cli.table import align, printable
from llmgateway.cli.together import Seen, add_up
from llmgateway.config.addresses import in_url
from llmgateway.config.settings import Config

PERIOD_S: Final = 1.0
_LIMIT_S: Final = 5.0
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_REDRAW: Final = "\x1b[H\x1b[J"
_MOST_ROWS: Final = 20


class NoStatus(Exception):
    """The gateway cannot be asked; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where a gateway is, and what to show it.

    `certificate` is the file of its own, if it has one, and `socket` the Unix socket that it listens on.
    """

    url: str
    key: str
    certificate: str | None = None
    socket: str | None = None


def find_gateways(config: Config, urls: Sequence[str], key: str | None) -> list[RunningGateway]:
    """Find the gateways with these addresses, or else the one of a config. Raises NoStatus."""
    if not urls:
        return [_find_own(config, key)]
    if key is None:
        raise NoStatus("Give an API key with --key; what the config file shows is for its own gateway only.")
    return [RunningGateway(url, key) for url in dict.fromkeys(url.rstrip("/") for url in urls)]


def _find_own(config: Config, key: str | None) -> RunningGateway:
    server = config.server
    key = key or KeyRing(config.users, config.groups).local_credentials
    if key is None:
        raise NoStatus("The config has no keys, so the gateway would tell nothing; give a user a key.")
    scheme = "http" if server.tls is None else "https"
    certificate = None if server.tls is None else server.tls.cert
    if server.listen is not None:
        return RunningGateway(f"{scheme}://localhost{server.base_path}", key, certificate, server.listen)
    if server.port == 0:
        raise NoStatus("The config lets the gateway choose its port (0), so tell where it is with --url.")
    place = in_url(_ANYWHERE.get(server.host[0], server.host[0]))
    return RunningGateway(f"{scheme}://{place}:{server.port}{server.base_path}", key, certificate)


async def show(gateways: Sequence[RunningGateway], *, as_json: bool) -> None:
    """Print the status: once, or again and again where somebody watches. Raises NoStatus."""
    socket = gateways[0].socket  # only a config's own gateway has one, and is asked alone
    connector = None if socket is None else aiohttp.UnixConnector(socket)
    timeout = aiohttp.ClientTimeout(total=_LIMIT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        snapshot = await _look(session, gateways)
        if as_json:
            print(json.dumps(snapshot, indent=2))
            return
        while sys.stdout.isatty():
            print(_REDRAW + render(snapshot, columns=shutil.get_terminal_size().columns), flush=True)
            await asyncio.sleep(PERIOD_S)
            snapshot = await _look(session, gateways)
        print(render(snapshot))


async def _look(session: aiohttp.ClientSession, gateways: Sequence[RunningGateway]) -> Mapping[str, Any]:
    """Ask all at once; one of several that does not answer is told among the others. Raises NoStatus."""
    seen = await asyncio.gather(*(_see(session, gateway) for gateway in gateways))
    snapshots = [each.snapshot for each in seen if each.snapshot is not None]
    if not snapshots:
        raise NoStatus("\n".join(each.problem for each in seen))
    return snapshots[0] if len(gateways) == 1 else add_up(seen)


async def _see(session: aiohttp.ClientSession, gateway: RunningGateway) -> Seen:
    try:
        return await _fetch(session, gateway)
    except NoStatus as problem:
        return Seen(gateway.url, problem=str(problem))


async def _fetch(session: aiohttp.ClientSession, gateway: RunningGateway) -> Seen:
    headers = {"Authorization": f"Bearer {gateway.key}"}
    url = f"{gateway.url}/gateway/status"
    try:
        async with session.get(url, headers=headers, ssl=_trust(gateway)) as answer:
            if answer.status == 401:
                raise NoStatus(
                    f"The gateway at {gateway.url} does not know these credentials. It may run with another "
                    "config, or be on another machine: give an API key with --key."
                )
            snapshot = await answer.json() if answer.status == 200 else None
            if not isinstance(snapshot, dict) or "gateway" not in snapshot:
                raise NoStatus(f"{url} answers {answer.status}; is this the gateway?")
            return Seen(gateway.url, answer.headers.get("x-gateway-instance", ""), snapshot)
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as exc:
        why = (
            "it does not answer in time" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
        )
        raise NoStatus(f"No gateway answers at {gateway.url} ({why}). Is it running?") from exc


def _trust(gateway: RunningGateway) -> ssl.SSLContext | bool:
    """Trust the gateway's own certificate, whatever name it is for: the connection stays on this machine."""
    if gateway.certificate is None:
        return True
    context = ssl.create_default_context(cafile=gateway.certificate)
    context.check_hostname = False
    return context


def render(snapshot: Mapping[str, Any], columns: int = 120) -> str:
    """Lay a snapshot out as text, no line longer than `columns`."""
    gateway = snapshot["gateway"]
    up = _length(gateway["now"] - gateway["started_at"])
    lines = [
        f"llmgateway {gateway['version']}   {gateway['state']}   up {up}   in flight {snapshot['in_flight']}"
    ]
    config = gateway["config"]
    lines += [f"config problem: {problem}" for problem in config["problems"]]
    if config["restart_needed"]:
        lines.append(f"needs a restart: {', '.join(config['restart_needed'])}")
    instances = snapshot.get("instances", ())
    if instances:
        lines += ["", *_table(_INSTANCES, (_instance(row, gateway["now"]) for row in instances), columns)]
    lines += ["", *_table(_PROVIDERS, map(_provider, snapshot["providers"]), columns)]
    where = ("INSTANCE",) if instances else ()
    lines += ["", *_table((*_REQUESTS, *where), map(_request, snapshot["requests"]), columns)]
    usage = snapshot["usage"]
    lines += ["", f"Usage on {usage['day']} (UTC)", *_table(_USAGE, map(_usage, usage["rows"]), columns)]
    return "\n".join(printable(line, columns) for line in lines)


_INSTANCES: Final = ("INSTANCE", "STATE", "UP", "IN FLIGHT", "ADDRESS")
_PROVIDERS: Final = ("PROVIDER", "STATE", "SLOTS", "WAITING", "TOKENS/S", "MODELS", "REASON")
_REQUESTS: Final = ("USER", "MODEL", "PROVIDER", "PHASE", "AGE", "TOKENS", "ID")
_USAGE: Final = ("USER", "MODEL", "REQUESTS", "PROMPT", "COMPLETION")


def _instance(row: Mapping[str, Any], now: float) -> Sequence[str]:
    if row["problem"] is not None:
        return row["name"], "?", "-", "-", row["problem"]
    return row["name"], row["state"], _length(now - row["started_at"]), str(row["in_flight"]), row["url"]


def _provider(row: Mapping[str, Any]) -> Sequence[str]:
    slots = f"{row['in_flight']}/{row['slots'] if row['slots'] is not None else '-'}"
    models = [_named(model["id"], model.get("told_as")) for model in row["models"]]
    shown = ", ".join(models[:3]) + (f" +{len(models) - 3}" if len(models) > 3 else "")
    speed = f"{row['tokens_per_s']:.1f}"
    return row["name"], row["state"], slots, str(row["waiting"]), speed, shown or "-", row["reason"]


def _request(row: Mapping[str, Any]) -> Sequence[str]:
    phase = f"{row['phase']} ({row['position']})" if row["position"] else row["phase"]
    age = _length(row["age_s"])
    return (
        _who(row),
        _named(row["model"], row.get("asked_model")) or "-",
        row["provider"] or "-",
        phase,
        age,
        str(row["tokens"]),
        row["id"],
        *([row["instance"]] if "instance" in row else []),
    )


def _named(model: str, other_name: str | None) -> str:
    """Name a model, and what its server calls it, or a client has asked for, if that is another name."""
    return f"{model} ({other_name})" if other_name else model


def _who(row: Mapping[str, Any]) -> str:
    """Name the user and, if it was told, who of those behind its keys it is."""
    user = row["user"] or "-"
    return f"{row['person']} ({user})" if row.get("person") else user


def _usage(row: Mapping[str, Any]) -> Sequence[str]:
    mark = "~" if row["estimated"] else ""
    return (
        _who(row),
        row["model"] or "-",
        f"{row['requests']:,}",
        f"{mark}{row['prompt_tokens']:,}",
        f"{mark}{row['completion_tokens']:,}",
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], columns: int) -> list[str]:
    """Draw a part of the snapshot; one without rows says so."""
    body = list(rows)
    lines = align([head, *body[:_MOST_ROWS]], widest=columns)
    if not body:
        lines.append("(none)")
    if len(body) > _MOST_ROWS:
        lines.append(f"... and {len(body) - _MOST_ROWS} more")
    return lines


def _length(seconds: float) -> str:
    minutes, s = divmod(max(0, int(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h}h" if days else f"{h}h {m}m" if h else f"{m}m {s}s" if m else f"{s}s"
