"""Several gateways seen as one: their snapshots, added up to one of the same shape.

Rules:

- What cannot be asked is told, and the rest is added up without it.
- What is the same everywhere is said once; what differs is said with the names of those who say it.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

Snapshot: TypeAlias = Mapping[str, Any]
Row: TypeAlias = dict[str, Any]
By: TypeAlias = Mapping[str, Snapshot]
"""What each gateway tells, by its name."""

_MOST_NAMES: Final = 3
_USED_BY: Final = ("user", "person", "model")
_LIMITED: Final = ("user", "person", "key", "name")


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of asking a gateway: a snapshot, and its name if it has one; or the problem."""

    url: str
    name: str = ""
    snapshot: Snapshot | None = None
    problem: str = ""


def add_up(seen: Sequence[Seen]) -> Row:
    """Make one snapshot of those of several gateways, of which at least one has told something.

    `instances` tells how each of them fares. What is in flight, and what is over, has the name of its
    `instance`; a provider has the `states` by name where they differ.
    """
    names = _names(seen)
    told = {name: each.snapshot for name, each in zip(names, seen, strict=True) if each.snapshot is not None}
    any_of_them = next(iter(told.values()))
    aliases = {row["id"]: row for snapshot in told.values() for row in snapshot.get("aliases", ())}
    return {
        "instances": [_instance(name, each) for name, each in zip(names, seen, strict=True)],
        "gateway": _gateway({name: snapshot["gateway"] for name, snapshot in told.items()}),
        "viewer": any_of_them["viewer"],
        "providers": _providers(told),
        **({"aliases": list(aliases.values())} if aliases else {}),
        "requests": sorted(_of_each(told, "requests"), key=lambda row: float(row["age_s"])),
        "in_flight": sum(snapshot["in_flight"] for snapshot in told.values()),
        "usage": _usage(told),
        "recent": sorted(_of_each(told, "recent"), key=lambda row: str(row["time"]), reverse=True),
        "limits": _limits(told),
    }


def _names(seen: Sequence[Seen]) -> list[str]:
    """Name each gateway as it does itself, or by its address where that does not tell it from the others."""
    own = [each.name for each in seen]
    return [each.name if each.name and own.count(each.name) == 1 else each.url for each in seen]


def _instance(name: str, seen: Seen) -> Row:
    if seen.snapshot is None:
        return {"name": name, "url": seen.url, "problem": seen.problem}
    return {
        "name": name,
        "url": seen.url,
        "problem": None,
        **seen.snapshot["gateway"],
        "in_flight": seen.snapshot["in_flight"],
    }


def _gateway(told: By) -> Row:
    gateways, configs = told.values(), {name: each["config"] for name, each in told.items()}

    def of_config(key: str) -> list[str]:
        return _said(((name, words) for name, config in configs.items() for words in config[key]), told)

    return {
        "version": _in_words({name: each["version"] for name, each in told.items()}),
        "state": _in_words({name: each["state"] for name, each in told.items()}),
        "now": max(each["now"] for each in gateways),
        "started_at": min(each["started_at"] for each in gateways),
        "config": {
            "loaded_at": min(config["loaded_at"] for config in configs.values()),
            "problems": of_config("problems"),
            "restart_needed": of_config("restart_needed"),
        },
    }


def _in_words(values: Mapping[str, str]) -> str:
    return ", ".join(_said(values.items(), values))


def _said(claims: Iterable[tuple[str, str]], everybody: Mapping[str, Any]) -> list[str]:
    """Give what is claimed by somebody, each with the names of those who do, unless everybody does."""
    by_words: dict[str, list[str]] = {}
    for name, words in claims:
        if words:
            by_words.setdefault(words, []).append(name)
    return [
        words if len(names) == len(everybody) else f"{words} ({_listed(names)})"
        for words, names in by_words.items()
    ]


def _listed(names: Sequence[str]) -> str:
    more = f" +{len(names) - _MOST_NAMES}" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _of_each(told: By, part: str) -> Iterator[Row]:
    return ({**row, "instance": name} for name, snapshot in told.items() for row in snapshot[part])


def _providers(told: By) -> list[Row]:
    found: dict[str, dict[str, Row]] = {}
    for row in _of_each(told, "providers"):
        found.setdefault(row["name"], {})[row.pop("instance")] = row
    return [_provider(by_name) for by_name in found.values()]


def _provider(by_name: Mapping[str, Row]) -> Row:
    rows = list(by_name.values())
    states = {name: row["state"] for name, row in by_name.items()}
    models = {model["id"]: model for row in reversed(rows) for model in row["models"]}
    return {
        **rows[0],
        "state": _in_words(states),
        "reason": _in_words({name: row["reason"] for name, row in by_name.items()}),
        "models": list(models.values()),
        "in_flight": sum(row["in_flight"] for row in rows),
        "slots": _slots(rows),
        "waiting": sum(row["waiting"] for row in rows),
        "tokens_per_s": round(sum(row["tokens_per_s"] for row in rows), 1),
        "hour": [round(sum(minute), 3) for minute in zip(*(row["hour"] for row in rows), strict=True)],
        **({"states": states} if len(set(states.values())) > 1 else {}),
    }


def _slots(rows: Sequence[Row]) -> int | None:
    """Add up slots. Who knows of none, and does not reach the provider either, has no say."""
    known = [row["slots"] for row in rows if row["slots"] is not None or row["state"] == "online"]
    return None if None in known or not known else sum(known)


def _usage(told: By) -> Row:
    """Add up what was used on the latest day that anybody tells of."""
    day = max(each["usage"]["day"] for each in told.values())
    found: dict[Hashable, Row] = {}
    for each in told.values():
        for row in each["usage"]["rows"] if each["usage"]["day"] == day else ():
            sums = found.setdefault(_key(row, _USED_BY), {name: row[name] for name in _USED_BY})
            for name in row.keys() - _USED_BY:
                sums[name] = sums.get(name, 0) + row[name]
    return {"day": day, "rows": sorted(found.values(), key=_tokens, reverse=True)}


def _tokens(row: Row) -> int:
    return int(row["prompt_tokens"] + row["completion_tokens"])


def _limits(told: By) -> list[Row]:
    """Add up what each has let in; what several count lasts until the last of them forgets it."""
    found: dict[Hashable, Row] = {}
    for row in (row for each in told.values() for row in each["limits"]):
        sums = found.setdefault(_key(row, _LIMITED), {**row, "used": 0})
        sums["used"] += row["used"]
        sums["resets_in_s"] = max(sums["resets_in_s"], row["resets_in_s"])
    return list(found.values())


def _key(row: Row, by: Sequence[str]) -> Hashable:
    return tuple(row[name] for name in by)
