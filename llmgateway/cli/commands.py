"""The commands beside running: check, key, example, schema, usage, status; `init` is in `first`.

Each gives the process's exit code: 0 good, 1 the config or the check failed.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence, Sized
from glob import glob
from importlib import resources
from pathlib import Path

from llmgateway.access.keys import digest, mint
from llmgateway.books.history import History, read_all
from llmgateway.cli import terminal, usage
from llmgateway.config.load import Loaded, load, schema
from llmgateway.config.settings import Config
from llmgateway.config.tree import ConfigError
from llmgateway.fleet.provider import Probe, State
from llmgateway.fleet.publishing import published
from llmgateway.fleet.search import look_at_all


def say(text: str) -> None:
    """Tell a person something that is not a result: it goes to standard error."""
    print(text, file=sys.stderr)


def read_config(path: Path, environ: Mapping[str, str]) -> Loaded | None:
    """Load the file; tells what is wrong with it and gives None if it can't be used."""
    try:
        loaded = load(path, environ)
    except ConfigError as error:
        say(str(error))
        return None
    for warning in loaded.warnings:
        say(f"{warning} (warning)")
    return loaded


def check(path: Path, environ: Mapping[str, str], *, with_probe: bool) -> int:
    """Validate the config file; with a probe, ask every provider what it would serve."""
    loaded = read_config(path, environ)
    if loaded is None:
        return 1
    config = loaded.config
    print(f"{path}: good: {_count(config.users, 'user')}, {_count(config.providers, 'provider')}")
    return asyncio.run(_show_providers(config)) if with_probe else 0


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}" if len(things) == 1 else f"{len(things)} {name}s"


async def _show_providers(config: Config) -> int:
    seen = await look_at_all(config)
    for provider, result in seen:
        reason = f": {result.reason}" if result.reason else ""
        print(f"{provider.name}  {provider.config.url}  {result.state.value}{reason}{_kind(result)}")
        for name, model in sorted(published(provider.config, result.models or {}).items()):
            told = f"  (told as {model.told_as})" if model.told_as else ""
            context = f"  (context {model.context_length})" if model.context_length else ""
            print(f"    {name}{told}{context}")
        if result.state is State.ONLINE and not result.models:
            print("    (no models)")
    return 0 if all(result.state is State.ONLINE for _, result in seen) else 1


def _kind(seen: Probe) -> str:
    return f"  ({seen.kind.title}: {', '.join(sorted(seen.kind.speaks))})" if seen.kind else ""


def show_key(user: str) -> int:
    """Mint a key, show it once, and the line that makes the gateway know it."""
    key = mint()
    print(f"API key for {user} (shown once, keep it safe):\n\n    {key}\n")
    print("Below `users:` in config.yaml:\n")
    print(f"  {in_yaml(user)}:\n    keys:\n      - sha256:{digest(key).hex()}")
    return 0


def in_yaml(name: str) -> str:
    """Write a name of the config as a key of its file."""
    return name if name.isidentifier() else json.dumps(name)


def show_example() -> int:
    """Print the example config, which an installed program has inside."""
    example = resources.files("llmgateway.config") / "config.example.yaml"
    print(example.read_text("utf-8"), end="")
    return 0


def show_schema() -> int:
    """Print the JSON Schema of the config file, for editors."""
    print(json.dumps(schema(), indent=2))
    return 0


def show_usage(
    path: Path,
    environ: Mapping[str, str],
    *,
    since_s: float,
    by: Sequence[str] | None,
    logs: Sequence[str],
    as_json: bool,
) -> int:
    """Add up the last `since_s` seconds of the config's request log, or of these logs, and print the sums."""
    if logs:
        files = [file for log in logs for file in _matching(log)]
    elif (own := _own_log(path, environ)) is not None:
        files = [own]
    else:
        return 1
    histories = [History(file) for file in dict.fromkeys(files)]
    try:
        used = usage.add_up(read_all(histories, time.time() - since_s), by)
    except ValueError as exc:
        say(f"--by: {exc}.")
        return 2
    except FileNotFoundError as exc:
        say(f"There is no request log at {exc.filename} yet; the gateway begins one with the first request.")
        return 1
    except OSError as exc:
        say(f"{exc.filename or files[0]} cannot be read: {exc.strerror}.")
        return 1
    print(json.dumps(usage.as_json(used), indent=2) if as_json else usage.render(used))
    if skipped := sum(history.skipped for history in histories):
        say(f"{skipped:,} damaged lines were left out.")
    return 0


def _own_log(path: Path, environ: Mapping[str, str]) -> Path | None:
    """Find the request log of the config; tells why if there is none."""
    loaded = read_config(path, environ)
    if loaded is None:
        return None
    requests = loaded.config.log.requests
    if requests is None:
        say("The config keeps no request log (log.requests is none), so nothing is known.")
        return None
    return Path(requests)


def _matching(log: str) -> list[Path]:
    """Give the logs of a pattern, or what is named itself where none matches."""
    found = sorted(glob(log))  # noqa: PTH207 - those of a Path cannot be absolute
    return [Path(file) for file in found] or [Path(log)]


def show_status(
    path: Path, environ: Mapping[str, str], *, urls: Sequence[str], key: str | None, as_json: bool
) -> int:
    """Print what the running gateway is doing, or several together, again and again on a terminal."""
    config = Config()
    if not urls and (key is None or path.exists()):
        loaded = read_config(path, environ)
        if loaded is None:
            return 1
        config = loaded.config
    try:
        asyncio.run(terminal.show(terminal.find_gateways(config, urls, key), as_json=as_json))
    except terminal.NoStatus as problem:
        say(str(problem))
        return 1
    return 0
