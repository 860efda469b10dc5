"""The command line: what may stand on it, and what it means.

A value is read as the config file would read it. Wrong usage ends the process with 2, and says what is right.
"""

import os
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from llmgateway import __version__
from llmgateway.cli.usage import COLUMNS
from llmgateway.config import addresses, values

DEFAULT_CONFIG: Final = Path("config.yaml")
KEY_VARIABLE: Final = "LLMGATEWAY_KEY"


def arguments(argv: list[str] | None) -> Namespace:
    """Read the command line (the process's own, if None is given).

    `config`, `host` and `port` are there only if they were given. Ends the process at wrong usage.
    """
    anywhere, listening = ArgumentParser(add_help=False), ArgumentParser(add_help=False)
    _add_config(anywhere)
    _add_address(listening)
    parser = ArgumentParser(
        description="A self-hosted gateway for home and small-office LLM servers.",
        parents=[anywhere, listening],
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, says: str, *, listens: bool = False) -> ArgumentParser:
        return commands.add_parser(name, parents=[anywhere, *([listening] if listens else [])], help=says)

    add("run", "run the gateway (also without a command)", listens=True)
    _add_probe(add("check", "validate the config file"))
    add("key", "make a new API key").add_argument("user", metavar="USER", type=_checked(values.free_name))
    add("init", "write a first config file: what is found here, and a key")
    _add_what_to_add_up(add("usage", "show who used what, from the request log"))
    _add_whom_to_ask(add("status", "show what the running gateway is doing"))
    add("example", "print config.example.yaml, the manual of every setting")
    add("schema", "print the JSON Schema of the config file")
    return parser.parse_args(argv)


def _add_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=SUPPRESS,
        help="the config file (config.yaml)",
    )


def _add_address(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--host",
        type=_checked(addresses.host),
        default=SUPPRESS,
        help="listen on this address instead of the config's",
    )
    parser.add_argument(
        "--port",
        type=_checked(values.port),
        default=SUPPRESS,
        help="listen on this port instead of the config's; 0: any free",
    )


def _add_probe(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--probe", action="store_true", help="ask every provider and show what it would serve"
    )


def _add_what_to_add_up(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        type=_checked(values.positive_duration),
        default="30d",
        metavar="TIME",
        help="how far back: 12h, 7d (%(default)s)",
    )
    parser.add_argument(
        "--by",
        type=_names,
        metavar="COLUMNS",
        help=f"what to add up by, of {', '.join(COLUMNS)} (user,model, and person if any)",
    )
    parser.add_argument("--json", action="store_true", help="print the sums as JSON")
    parser.add_argument(
        "--log",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="a request log, or several, by name or pattern (that of the config file); "
        "what stands in two of them counts once",
    )


def _add_whom_to_ask(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one snapshot as JSON")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        help="the gateway to ask (the one of the config file); given several times, they are added up",
    )
    parser.add_argument(
        "--key",
        default=os.environ.get(KEY_VARIABLE),
        help=f"an API key to ask with (${KEY_VARIABLE}, which no list of processes shows; "
        "else what the config file shows)",
    )


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have an argument read as the config file would read it."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as exc:
            raise ArgumentTypeError(f"{text!r} {exc}") from None

    return checked


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
