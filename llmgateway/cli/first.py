"""`gateway.py init`: the first config file, one key, and what to tell the clients.

On a terminal it asks whatever cannot be known; without one, all servers that are found are used by one user,
on this machine only. The file is there as a whole or not at all, and none is written over unasked.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from errno import EEXIST
from json import dumps
from pathlib import Path
from shlex import quote
from tempfile import NamedTemporaryFile
from typing import Final, TypeVar

from llmgateway.access.keys import digest, mint
from llmgateway.cli.arguments import DEFAULT_CONFIG
from llmgateway.cli.commands import in_yaml, say
from llmgateway.cli.table import align, printable
from llmgateway.config.values import free_name
from llmgateway.fleet.search import Found, find_servers, first_model

_PORT: Final = 8900
_ANYWHERE: Final = "192.0.2.1", 9  # reserved for documentation (RFC 5737); nothing is sent there
_MOST_TOLD: Final = 3
_LONGEST_NAME: Final = 256
_NOT_IN_A_CONTAINER: Final = "    (a container has a 127.0.0.1 of its own: for that, listen on the network)"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the file is to say."""

    servers: Mapping[str, Found]
    user: str = "me"
    for_others: bool = False
    """Whether other machines may use the gateway."""


def init(path: Path) -> int:
    """Write a first config file, and show its key; gives the exit code."""
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        replace = asks and path.exists() and _ask(f"{path} is there already. Write over it?", _yes, "no")
        if path.exists() and not replace:
            say(f"{path} is there already; move it away, or name another file with -c.")
            return 1
        found = asyncio.run(find_servers())
        wanted = _asked(found) if asks else _Wanted(found)
    except (KeyboardInterrupt, EOFError) as left:
        say(f"\nNothing was written to {path}.")
        return 130 if isinstance(left, KeyboardInterrupt) else 1
    key = mint()
    try:
        _write(path, _config(wanted, key), replace=replace)
    except OSError as exc:
        say(f"{path} cannot be written: {exc.strerror}.")
        return 1
    print(_what_now(path, wanted, key) + (_for_clients(wanted, key) if asks else ""))
    return 0


def _asked(found: Mapping[str, Found]) -> _Wanted:
    """Ask a person for all that the file cannot know. Raises EOFError when there is no more to read."""
    servers = found
    if found:
        places = enumerate(found.items(), 1)
        rows = [(str(number), name, server.url, _some(server.models)) for number, (name, server) in places]
        print("Found on this machine:\n\n" + "\n".join(f"  {line}" for line in align(rows)) + "\n")
        which = "Which to use (all, none, or numbers such as 1 2)?"
        servers = _ask(which, lambda said: _picked(found, said), "all")
    else:
        print("No LLM server was found here. The file will have a line for the address of yours.\n")
    for_others = _ask("May other machines use the gateway (it listens on the network)?", _yes, "no")
    return _Wanted(servers, _ask("Your name, as a user of the gateway?", free_name, "me"), for_others)


def _ask(question: str, read: Callable[[str], T], default: str) -> T:
    """Ask until the answer can be read; an empty one is the default."""
    while True:
        said = input(f"{question} [{default}] ").strip() or default
        try:
            return read(said)
        except ValueError as exc:
            print(f"{said!r} {exc}.")


def _yes(said: str) -> bool:
    if said.lower() not in ("y", "yes", "n", "no"):
        raise ValueError("is neither yes nor no")
    return said.lower().startswith("y")


def _picked(found: Mapping[str, Found], said: str) -> dict[str, Found]:
    """Give those that were named, by number or name, in the order in which they were found."""
    if said.lower() in ("all", "none"):
        return dict(found) if said.lower() == "all" else {}
    chosen = set(said.replace(",", " ").split())
    known = {name: {name, str(number)} for number, name in enumerate(found, 1)}
    if unknown := chosen.difference(*known.values()):
        raise ValueError(f"has {', '.join(sorted(unknown))} in it, which is none of them")
    return {name: server for name, server in found.items() if known[name] & chosen}


def _some(models: Sequence[str]) -> str:
    more = len(models) - _MOST_TOLD
    return (", ".join(models[:_MOST_TOLD]) or "no models") + (f" and {more} more" if more > 0 else "")


def _write(path: Path, text: str, *, replace: bool) -> None:
    """Have the file in its place at once and whole, for its owner only: there may be secrets in it one day.

    Raises OSError, also if it is not to be replaced and is there.
    """
    place = path.resolve()
    with NamedTemporaryFile("w", encoding="utf-8", dir=place.parent, delete=False) as file:
        unfinished = Path(file.name)
        try:
            file.write(text)
            file.flush()
            if place.exists() and not replace:
                raise FileExistsError(EEXIST, os.strerror(EEXIST))
            unfinished.replace(place)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


_CONFIG: Final = """\
# The config of the gateway. `python gateway.py example` prints the manual of every setting.
# `python gateway.py check` tells what is wrong with it. A running gateway takes in changes by itself.

# Your LLM servers, under names of your choice. Those on other machines must listen on the network.
providers:
{providers}
# Who may use the gateway. `python gateway.py key NAME` makes a key for one more.
users:
  {user}:
    admin: true        # sees everybody's usage on the live page
    keys:
      - sha256:{key}

server:
  host: {host:<15}# {hint}
  port: {port}
"""


def _config(wanted: _Wanted, key: str) -> str:
    lines = (f"  {name}:\n    url: {server.url}\n" for name, server in wanted.servers.items())
    return _CONFIG.format(
        providers="".join(lines) or "  # home-rig:\n  #   url: http://192.168.1.10:8080/v1\n",
        user=in_yaml(wanted.user),
        key=digest(key).hex(),
        host="0.0.0.0" if wanted.for_others else "127.0.0.1",
        hint="127.0.0.1 keeps other machines out" if wanted.for_others else "0.0.0.0 lets other machines in",
        port=_PORT,
    )


def _what_now(path: Path, wanted: _Wanted, key: str) -> str:
    """Show the key, how to run the gateway, and how to try it."""
    serves = ", ".join(wanted.servers) or "no LLM server yet; write the address of yours into it"
    model = first_model(wanted.servers) or "MODEL"
    body = dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    named = "" if path == DEFAULT_CONFIG else f" -c {quote(str(path))}"
    return f"""
Wrote {path}, with {serves}.

Your API key (shown once, keep it safe):

    {key}

Run the gateway:

    {_program()}{named}

And in another terminal:

    curl -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\
      -d {quote(body)} http://127.0.0.1:{_PORT}/v1/chat/completions
"""


def _program() -> str:
    """Tell how this program was called, or is best called: from a checkout, by what sets it up."""
    called = Path(sys.argv[0])
    if called.name == "gateway.py":
        return "scripts/run"
    return f"python3 {quote(str(called))}" if called.suffix == ".pyz" else called.name


def _for_clients(wanted: _Wanted, key: str) -> str:
    """Tell what to set in the clients that most people have."""
    url = f"http://{_own_address() if wanted.for_others else '127.0.0.1'}:{_PORT}"
    model = quote(printable(first_model(wanted.servers) or "MODEL", _LONGEST_NAME))
    models = " ".join(f"ANTHROPIC_DEFAULT_{size}_MODEL={model}" for size in ("OPUS", "SONNET", "HAIKU"))
    return f"""
Open WebUI: Admin Panel > Settings > Connections > OpenAI API, with the key and the URL

    {url}/v1{"" if wanted.for_others else _NOT_IN_A_CONTAINER}

Claude Code, with servers that speak /v1/messages:

    export ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={key}
    export {models}
    claude

OpenAI's SDK, in Python; many other programs read OPENAI_BASE_URL and OPENAI_API_KEY:

    client = OpenAI(base_url="{url}/v1", api_key="{key}")"""


def _own_address() -> str:
    """Tell by which address the network knows this machine, if it is on one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way_out:
        try:
            way_out.connect(_ANYWHERE)
        except OSError:
            return "ADDRESS-OF-THIS-MACHINE"
        return str(way_out.getsockname()[0])
