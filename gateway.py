"""The front door: read the arguments, and do what they say."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

try:
    from llmgateway.cli import commands, first
    from llmgateway.cli.arguments import DEFAULT_CONFIG, arguments
    from llmgateway.service import serve
    from llmgateway.service.gateway import CannotListen
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed. Start with scripts/run, which sets up what is needed.")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; gives the exit code. Wrong usage ends the process with 2."""
    try:
        return _main(arguments(argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `gateway.py schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(given: Namespace) -> int:
    named: Path | None = getattr(given, "config", None)
    path = named or DEFAULT_CONFIG
    match given.command:
        case "check":
            return commands.check(path, os.environ, with_probe=given.probe)
        case "key":
            return commands.show_key(given.user)
        case "schema":
            return commands.show_schema()
        case "example":
            return commands.show_example()
        case "init":
            return first.init(path)
        case "usage":
            how = {"since_s": given.since, "by": given.by, "as_json": given.json}
            return commands.show_usage(path, os.environ, logs=given.log, **how)
        case "status":
            return commands.show_status(path, os.environ, urls=given.url, key=given.key, as_json=given.json)
        case _:
            return _run(named, getattr(given, "host", None), getattr(given, "port", None))


def _run(path: Path | None, host: str | None, port: int | None) -> int:
    """Run the gateway with the config file, or without one if none was named and none is there."""
    try:
        if path is None and not DEFAULT_CONFIG.exists():
            return _run_without_config(host, port)
        return _run_with_config(path or DEFAULT_CONFIG, host, port)
    except CannotListen as problem:
        commands.say(str(problem))
        return 1


def _run_without_config(host: str | None, port: int | None) -> int:
    if host is not None:
        commands.say("--host needs a config file: without one the gateway serves this machine only.")
        return 2
    return serve.run(serve.serve_without_config(port))


def _run_with_config(path: Path, host: str | None, port: int | None) -> int:
    loaded = commands.read_config(path, os.environ)
    if loaded is None:
        return 1
    given: dict[str, Any] = {} if host is None and port is None else {"listen": None}
    given |= {} if host is None else {"host": (host,)}
    given |= {} if port is None else {"port": port}
    file = serve.ConfigFile(path, loaded, given)
    return serve.run(serve.serve(file.config, file=file))


if __name__ == "__main__":
    sys.exit(main())
