"""What scripts/soak has seen, in figures, and all that is wrong with it."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from soak_books import Books, disagreements
from soak_traffic import Traffic
from soak_watch import MB, Held, Watched, grown, more_than, until

MOST_GROWTH_BYTES: Final = 24 * MB
WRITTEN_LIMIT_S: Final = 10.0
BAD_WORDS: Final = (
    "Traceback",
    "Z error ",
    "exception was never retrieved",
    "was never awaited",
    "ResourceWarning",
)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """Read the request log, with what was put aside of it."""
    return [
        json.loads(line) for path in folder.glob("requests.jsonl*") for line in path.read_bytes().splitlines()
    ]


def complaints(log: Path) -> list[str]:
    """Find in what it said what it never should say."""
    return [
        f"it said: {line.strip()[:300]}"
        for line in log.read_text(errors="replace").splitlines()
        if any(word in line for word in BAD_WORDS)
    ]


def table(rows: dict[str, object]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def sums(lines: list[dict[str, Any]], name: str) -> str:
    return f"{sum(line[name] or 0 for line in lines):,}"


def counts(some: Iterable[Any]) -> str:
    return ", ".join(f"{each} {count}" for each, count in Counter[Any](some).most_common())


def figures(books: Books, lines: list[dict[str, Any]], took_s: float) -> dict[str, object]:
    """Give what has happened, in numbers."""
    served = [each for some in books.served.values() for each in some]
    return {
        "minutes behind the warm-up": f"{took_s / 60:.1f}",
        "requests asked": len(books.asked),
        "heads of answers": sum(asked.status > 0 for asked in books.asked.values()),
        "exchanges served": len(served),
        "lines logged": len(lines),
        "attempts": sums(lines, "attempts"),
        "bytes in, out": f"{sums(lines, 'bytes_in')}, {sums(lines, 'bytes_out')}",
        "tokens": f"{sums(lines, 'prompt_tokens')} + {sums(lines, 'completion_tokens')}",
        "outcomes": counts(line["outcome"] for line in lines),
        "statuses": counts(line["status"] for line in lines),
        "by provider": counts(each.provider for each in served),
    }


def of_the_process(
    watched: Watched, traffic: Traffic, first: Held, last: Held, metrics: str
) -> dict[str, object]:
    """Give what has become of the process, in numbers."""
    growth, slope = grown(watched.memory)
    most = max((size for _, size in watched.memory), default=0)
    sizes = [first.rss_bytes, last.rss_bytes, most]
    more = Counter(last.inside["types"]) - Counter(first.inside["types"])
    return {
        "clients": ", ".join(f"{name} {count}" for name, count in traffic.clients.most_common()),
        "reloads": reloads(metrics),
        "held at first": first.levels,
        "held at last": last.levels,
        "objects": f"{first.inside['objects']:,}, then {last.inside['objects']:,}",
        "more of": ", ".join(f"{name} {count}" for name, count in more.most_common(9)),
        "responses known": last.inside["keepers"],
        "memory": "{:.0f} MB, then {:.0f}, at most {:.0f}".format(*(size / MB for size in sizes)),
        "memory grows": f"{growth / MB:.1f} MB from quarter 2 to 4; second half {slope:+.1f} MB an hour",
    }


async def judge(
    watched: Watched, books: Books, traffic: Traffic, first: Held, last: Held, took_s: float
) -> list[str]:
    """Print the figures; gives every disagreement."""
    lines: list[dict[str, Any]] = []
    text, snapshot = "", {}

    async def is_written() -> bool:
        nonlocal lines, text, snapshot
        text, snapshot = (
            (await watched.get("/metrics")).decode(),
            json.loads(await watched.get("/gateway/status")),
        )
        lines = log_lines(watched.folder)
        return not disagreements(books, lines, text, snapshot)

    try:
        await until(is_written, WRITTEN_LIMIT_S, "")
    except AssertionError:
        pass
    growth, _ = grown(watched.memory)
    print(table(figures(books, lines, took_s) | of_the_process(watched, traffic, first, last, text)))
    found = disagreements(books, lines, text, snapshot) + more_than(first, last)
    if growth > MOST_GROWTH_BYTES:
        found.append(f"memory has grown by {growth / MB:.0f} MB")
    return found


def reloads(metrics: str) -> str:
    return ", ".join(
        line.partition("{")[2]
        for line in metrics.splitlines()
        if line.startswith("gateway_config_reloads_total{")
    )
