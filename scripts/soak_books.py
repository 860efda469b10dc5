"""The four books of scripts/soak, and where they disagree: clients, providers, request log, metrics.

A request is known by its id in all of them. What a client has seen for certain must stand in the request log
once, and so; what a client has left, or never heard of, may stand there once at most. A request that has
gone well was answered to its end by one provider, and by no other. Nothing here does any input or output.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

STRANGER: Final = 401
CONTENT: Final = range(200, 300)
SWITCHING: Final = 101
PER_SERIES: Final = ("endpoint", "provider", "user", "status", "outcome")
_SHOWN: Final = 8  # of what is wrong in the same way


@dataclass(slots=True)
class Asked:
    """One request, as its client has seen it."""

    id: str
    what: str
    """The kind of client."""
    forwarded: bool = True
    """False for what the gateway answers by itself, which stands in no book."""
    known: bool = True
    """False if its key may be nobody's."""
    status: int = 0
    """0 if no head of an answer came."""
    ending: str = ""
    """`whole`, `cut`, or `left`, if the client did not wait for the end."""
    error: str = ""
    """The type that the gateway gave an error."""
    told: bool = False
    """Whether an error was told in the stream."""
    body_bytes: int = 0
    sent: int = 0
    """The checksum of the body that was sent; 0 if that is not known."""


@dataclass(slots=True)
class Served:
    """One exchange, as a provider has seen it."""

    id: str
    provider: str
    status: int = 0
    whole: bool = False
    lies: bool = False
    """Whether the answer was no good on purpose, so that whole or not tells nothing."""
    tokens: tuple[int, int] | None = None
    """Prompt and completion, if the answer told its client."""
    got: int = 0
    """The checksum of the body that came."""


@dataclass(slots=True)
class Books:
    """What clients and providers have written down, by request id."""

    asked: dict[str, Asked] = field(default_factory=dict)
    served: defaultdict[str, list[Served]] = field(default_factory=lambda: defaultdict(list))

    names: dict[str, set[str]] = field(default_factory=dict)
    """What each provider is called in the log, if that has changed."""
    renames: set[str] = field(default_factory=set)
    """Who is told another model than clients name, under the names of the log."""

    def ask(self, asked: Asked) -> Asked:
        """Begin a client's page. An id is used once."""
        assert asked.id not in self.asked, "an id is used twice"
        self.asked[asked.id] = asked
        return asked

    def serve(self, served: Served) -> Served:
        """Begin a provider's page."""
        self.served[served.id].append(served)
        return served


Line = Mapping[str, Any]


def disagreements(
    books: Books | None, lines: Sequence[Line], metrics: str = "", snapshot: Mapping[str, Any] | None = None
) -> list[str]:
    """Say where the books disagree, each kind of trouble with a few examples.

    Only those are compared that are there: a gateway that has ended has no metrics and no snapshot.
    """
    by_id: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_id[line["id"]].append(line)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for trouble, where in (
        *(_of_clients(books, by_id) if books is not None else ()),
        *(_of_providers(books, by_id) if books is not None else ()),
        *(_of_metrics(lines, metrics) if metrics else ()),
        *(_of_snapshot(lines, snapshot) if snapshot is not None else ()),
    ):
        found[trouble].append(where)
    return [
        f"{trouble} ({len(where)}): {'; '.join(where[:_SHOWN])}{'; ...' if len(where) > _SHOWN else ''}"
        for trouble, where in found.items()
    ]


Trouble = tuple[str, str]


# --- Clients and the request log --------------------------------------------------------------------


def _of_clients(books: Books, by_id: Mapping[str, Sequence[Line]]) -> Iterator[Trouble]:
    for each in by_id.keys() - books.asked.keys():
        yield "logged, but nobody asked", f"{each} {_brief(by_id[each][0])}"
    for asked in books.asked.values():
        lines = by_id.get(asked.id, ())
        if len(lines) > 1:
            yield "logged more than once", _of(asked)
        elif lines:
            for trouble in _of_one(asked, lines[0]):
                yield trouble, f"{_of(asked)}, the log {_brief(lines[0])}"
        elif asked.forwarded and (asked.status or books.served.get(asked.id)) and not _is_anybody(asked):
            yield "not logged", _of(asked)


def _is_anybody(asked: Asked) -> bool:
    """Tell whether it was refused before it was known whose it is: few lines are kept of those.

    A stranger waits for the refusal, and may be ended meanwhile. Who waited in a queue in vain, and is told
    "overloaded" as well, is known: the metrics tell if such a line is missing.
    """
    refused = asked.status == STRANGER or asked.error in ("draining", "overloaded")
    return refused or (asked.error == "cancelled" and not asked.known)


def _of_one(asked: Asked, line: Line) -> Iterator[str]:
    """Tell how a client's page and its line in the log differ."""
    outcome = line["outcome"]
    if not asked.forwarded:
        yield "logged, but answered by the gateway itself"
    if not outcome:
        yield "no outcome"
    if asked.status and line["status"] != asked.status:
        yield "another status"
    if asked.ending == "whole":
        if outcome != (asked.error or "ok") and not asked.told:
            yield "another outcome"
        if line["bytes_out"] != asked.body_bytes:
            yield "another size"
    if asked.told and outcome == "ok":
        yield "ok, but an error was told"
    if asked.ending == "cut" and asked.status != SWITCHING and outcome == "ok":
        yield "ok, but cut"


def _of(asked: Asked) -> str:
    told = f" {asked.error}" * bool(asked.error) + " told" * asked.told
    return f"{asked.id} {asked.what} {asked.status} {asked.ending}{told} {asked.body_bytes} bytes"


def _brief(line: Line) -> str:
    names = ("endpoint", "status", "outcome", "provider", "attempts", "bytes_out", "prompt_tokens")
    return " ".join(str(line[name]) for name in names)


# --- Providers and the request log ------------------------------------------------------------------


def _of_providers(books: Books, by_id: Mapping[str, Sequence[Line]]) -> Iterator[Trouble]:
    for each, served in books.served.items():
        if each not in books.asked:
            yield "served, but nobody asked", f"{each} {served[0].provider}"
        lines = by_id.get(each, ())
        if len(lines) != 1:
            continue  # told above
        line = lines[0]
        asked = books.asked.get(each)
        if asked is not None and asked.sent not in (0, served[-1].got) and _is_as_it_came(books, line):
            yield "another body than was sent", f"{_of(asked)}, the log {_brief(line)}"
        heard = asked is not None and asked.ending == "whole"  # who leaves may miss what an answer cost
        for trouble in _of_exchanges(served, line, books.names, heard=heard):
            last = served[-1]
            how = "whole" if last.whole else "broken"
            yield (
                trouble,
                (
                    f"{each} {last.provider} {last.status} {how} {last.tokens}, "
                    f"the log {_brief(line)} {line['completion_tokens']}"
                ),
            )
    for each, lines in by_id.items():
        line = lines[0]
        if line["outcome"] == "ok" and line["status"] in CONTENT and not books.served.get(each):
            yield "ok, but never served", f"{each} {_brief(line)}"


def _is_as_it_came(books: Books, line: Line) -> bool:
    """Tell whether a request's body was for its provider to the byte."""
    asks_for_another = line["provider"] in books.renames or "asked_model" in line
    return line["outcome"] == "ok" and line["status"] in CONTENT and not asks_for_another


def _of_exchanges(
    served: Sequence[Served], line: Line, names: Mapping[str, Collection[str]], *, heard: bool
) -> Iterator[str]:
    """Tell how what providers have seen of a request and its line in the log differ."""
    whole = [
        each for each in served if each.whole
    ]  # a connection that was kept too long may end silently, too
    if len(whole) > line["attempts"]:
        yield "served more often than tried"
    good = [each for each in whole if each.status in CONTENT and not each.lies]
    if len(good) > 1:
        yield "served well more than once"
    if line["outcome"] != "ok" or line["status"] not in CONTENT:
        return
    last = served[-1]
    if line["provider"] not in names.get(last.provider, (last.provider,)):
        yield "served by another"
    elif not last.whole and not last.lies:
        yield "ok, but not served whole"
    elif heard and last.tokens is not None and not last.lies:
        logged = (line["prompt_tokens"], line["completion_tokens"])
        if logged != last.tokens or line["estimated"]:
            yield "other tokens than told"


# --- The request log and what is counted ------------------------------------------------------------


def _of_metrics(lines: Iterable[Line], metrics: str) -> Iterator[Trouble]:
    samples = _samples(metrics)
    logged = Counter(tuple(str(line[name] or "") for name in PER_SERIES) for line in lines)
    counted: Counter[tuple[str, ...]] = Counter()
    for labels, value in samples["gateway_requests_total"]:
        counted[tuple(labels[name] for name in PER_SERIES)] += int(value)
    at_user = PER_SERIES.index("user")
    for series in logged.keys() | counted.keys():
        lost = counted[series] - logged[series]
        if lost < 0 or (lost and series[at_user]):  # few lines are kept of who has no good key
            yield (
                "metrics and log differ",
                f"{' '.join(series)}: {counted[series]} and {logged[series]}",
            )
    tokens: Counter[tuple[str, str]] = Counter()
    for line in lines:
        tokens["prompt", line["provider"] or ""] += line["prompt_tokens"] or 0
        tokens["completion", line["provider"] or ""] += line["completion_tokens"] or 0
    in_metrics: Counter[tuple[str, str]] = Counter()
    for labels, value in samples["gateway_tokens_total"]:
        if labels["direction"] in ("prompt", "completion"):
            in_metrics[labels["direction"], labels["provider"]] += int(value)
    for key in tokens.keys() | in_metrics.keys():
        if tokens[key] != in_metrics[key]:
            yield "tokens of metrics and log differ", f"{' '.join(key)}: {in_metrics[key]} and {tokens[key]}"
    for name in ("gateway_requests_in_flight", "gateway_queue_depth"):
        yield from ((f"{name} is not 0", str(labels)) for labels, value in samples[name] if value)
    for name in ("gateway_request_log_dropped_total", "gateway_log_dropped_total"):
        yield from ((f"{name} is not 0", str(value)) for _, value in samples[name] if value)


def _samples(metrics: str) -> defaultdict[str, list[tuple[dict[str, str], float]]]:
    found: defaultdict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


def _of_snapshot(lines: Sequence[Line], snapshot: Mapping[str, Any]) -> Iterator[Trouble]:
    if snapshot["in_flight"] or snapshot["requests"]:
        yield "the page shows what is in flight", str(snapshot["in_flight"])
    for provider in snapshot["providers"]:
        if provider["in_flight"] or provider["waiting"]:
            yield "the page shows a provider at work", str(provider["name"])
    logged: Counter[str] = Counter()
    for line in lines:
        if line["user"] is not None and line["time"].startswith(snapshot["usage"]["day"]):
            logged[line["user"]] += 1
    shown: Counter[str] = Counter()
    for row in snapshot["usage"]["rows"]:
        shown[row["user"]] += row["requests"]
    for user in logged.keys() | shown.keys():
        if logged[user] != shown[user]:
            yield "the page's usage and the log differ", f"{user}: {shown[user]} and {logged[user]}"
    for row in snapshot["limits"]:
        if row["name"] == "parallel" and row["used"]:
            yield "a place among the parallel ones is taken", f"{row['user']} {row['used']}"
