"""The config of scripts/soak's gateway, and how it changes while it runs.

Each change is drawn anew from the whole of the table, so that what goes also comes back. Some are mistakes:
then the config in force stays.
"""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from soak_clients import KEYS

Tree = dict[str, Any]


def tree_of(providers: Mapping[str, Tree], *, port: int, spool: Path) -> Tree:
    """Give the config to begin and to end with."""
    return {
        "providers": {name: dict(entry) for name, entry in providers.items()},
        "users": {
            "alice": {"keys": [KEYS["alice"]], "admin": True},
            "bob": {
                "keys": [{"key": KEYS["bob"], "limits": {"requests_per_minute": 5000}}],
                "limits": {"parallel": 12, "tokens_per_minute": 500_000},
                "weight": 2,
            },
            "page": {"keys": [KEYS["page"]], "person_header": "X-Person"},
            "guest": {"keys": [{"key": KEYS["guest"], "models": ["qwen*", "whisper", "keeps"]}]},
        },
        "aliases": {"gpt-4o-mini": "qwen", "fast": ["qwen-4b", "qwen"], "hear": "whisper", "chatty": "live"},
        "fallbacks": {"big": ["qwen"], "lost": ["mini"]},
        "server": {
            "port": port,
            "spool": str(spool),
            "ollama_api": True,
            "bodies_memory": "200MB",
            "metrics_from": [],
            "drain_timeout": "2s",
        },
        "health": {"interval": "2s", "timeout": "1s"},
        "queue": {"size": 60, "timeout": "8s"},
        "streams": {"keepalive": "1s"},
        "log": {"requests": "requests.jsonl", "requests_size": "2MB", "requests_keep": 1000},
    }


def _rename(tree: Tree, chance: random.Random) -> None:
    if "fast" in tree["providers"]:
        entry = tree["providers"].pop("fast")
        tree["providers"]["fast-too"] = entry


def _remove(tree: Tree, chance: random.Random) -> None:
    del tree["providers"][chance.choice([*tree["providers"]])]


def _swap(tree: Tree, chance: random.Random) -> None:
    """Two providers change their places: the same names, each where the other was."""
    one, other = chance.sample([*tree["providers"]], 2)
    found = tree["providers"]
    found[one]["url"], found[other]["url"] = found[other]["url"], found[one]["url"]


def _slots(tree: Tree, chance: random.Random) -> None:
    for entry in tree["providers"].values():
        entry["slots"] = chance.randrange(1, 9)


def _owner(tree: Tree, chance: random.Random) -> None:
    entry = tree["providers"][chance.choice([*tree["providers"]])]
    entry["owner"], entry["share"] = "alice", chance.choice([[], ["bob"], ["everyone"]])


def _aliases(tree: Tree, chance: random.Random) -> None:
    tree["aliases"] = {"fast": ["qwen", "mini"], "hear": "whisper", "gpt-4o-mini": "mini"}
    tree["fallbacks"] = {"keeps": ["qwen"], "big": ["mini", "qwen"]}


def _guest(tree: Tree, chance: random.Random) -> None:
    del tree["users"]["guest"]


def _limits(tree: Tree, chance: random.Random) -> None:
    tree["users"]["bob"]["limits"] = {"parallel": chance.randrange(1, 5), "requests_per_minute": 200}


def _small(tree: Tree, chance: random.Random) -> None:
    tree["server"] |= {"bodies_memory": "4MB", "max_body": "5MB"}


def _few(tree: Tree, chance: random.Random) -> None:
    tree["server"]["connections_per_address"] = chance.randrange(3, 12)


def _patience(tree: Tree, chance: random.Random) -> None:
    tree["streams"]["keepalive"] = chance.choice([0, "200ms", "15s"])
    tree["queue"] = {"size": chance.choice([1, 5, 60]), "timeout": chance.choice(["300ms", "8s"])}


def _mistake(tree: Tree, chance: random.Random) -> None:
    tree["providers"]["typo"] = {"url": "ftp://nowhere"}


CHANGES: Final[tuple[Callable[[Tree, random.Random], None], ...]] = (
    _rename,
    _remove,
    _swap,
    _slots,
    _owner,
    _aliases,
    _guest,
    _limits,
    _small,
    _few,
    _patience,
    _mistake,
)


def changed(tree: Tree, chance: random.Random) -> Tree:
    """Give the config with one to three changes."""
    another: Tree = json.loads(json.dumps(tree))
    for change in chance.sample(CHANGES, chance.randrange(1, 4)):
        change(another, chance)
    return another


def write(tree: Tree, path: Path) -> None:
    """Put it in the place of the file: whole, or not at all. JSON is YAML."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(tree, indent=1))
    beside.chmod(0o600)
    beside.replace(path)
