"""Read the single values of the config: numbers, durations, sizes, moments, names, files, headers, keys.

Each function takes the text as it is written and gives the value, or raises ValueError with the end of a
sentence: what is wrong and what to write instead. How the sentence begins is the caller's choice. No message
quotes the text, because it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from math import isfinite
from typing import Final, Literal

from llmgateway.http import headers

_WHOLE: Final = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LONGEST_S: Final = 365 * 86400.0

_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]*)")
_BYTES: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}

_AMOUNT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)([kKM]?)")
_TIMES: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6}
_BIGGEST: Final = 2**53  # beyond it a program that takes numbers for floats, such as a browser, is wrong
_SMALLEST_LOG_BYTES: Final = 64 * 2**10

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?) ?(.*)"
)

_NAME: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_FIELD_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")
_HASH: Final = re.compile(r"sha256:([0-9a-fA-F]{64})", re.IGNORECASE)

_TRUE_OR_FALSE: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SWITCHES: Final = frozenset({"on", "off", "yes", "no", "true", "false"})

EVERYONE: Final = "everyone"  # in `share`; nobody may be called that
KEY_LENGTH: Final = 8
MOST_LOGS: Final = 1000  # each of them is renamed whenever the log is rotated

# What ends at the gateway, and what frames or routes a message.
_NOT_OURS_TO_SET: Final = frozenset(
    {"content-length", "expect", "host", *(name.decode() for name in headers.HOP_BY_HOP)}
)


_CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "api-key", "cookie"})


def whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError("is not a whole number; write one in digits, such as 3")
    return int(text)


def port(text: str) -> int:
    value = whole(text)
    if not 0 <= value <= 65535:
        raise ValueError("is not a port; write 1 to 65535, or 0 for any free one")
    return value


def unavailable_status(text: str) -> int:
    value = whole(text)
    if value not in (404, 503):
        raise ValueError("is not a status for this; write 404, or 503 so that clients try again")
    return value


def count(text: str) -> int:
    value = whole(text)
    if value < 1:
        raise ValueError("is too small; write 1 or more")
    return value


def instances(text: str) -> int | Literal["own"]:
    """How many gateways share the providers; `own` if each has slots of its own."""
    if text == "own":
        return "own"
    try:
        return count(text)
    except ValueError as exc:
        raise ValueError(f"{exc}, or own") from None


def amount(text: str) -> int:
    """A number of requests or tokens, at least one, from `500k`, `1.5M` or plain digits."""
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise ValueError("is not a number of this kind; write one such as 60, 500k or 2M")
    value = Decimal(found[1]) * _TIMES[found[2]]
    if value != int(value):
        raise ValueError("is not a whole number; write one such as 60, 500k or 1.5M")
    if not 1 <= value <= _BIGGEST:
        raise ValueError("is too small or too large; write 1 or more, such as 60, 500k or 2M")
    return int(value)


def flag(text: str) -> bool:
    try:
        return _TRUE_OR_FALSE[text]
    except KeyError:
        raise ValueError("is neither true nor false; write one of them") from None


def weight(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not (value > 0 and isfinite(value)):
        raise ValueError("is not a number above 0; write one such as 1, 2 or 0.5")
    return value


def duration(text: str) -> float:
    """Seconds, from `1h30m` or from a plain number."""
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = _sum_of_parts(_DURATION_PART.findall(text))
    else:
        raise ValueError("is not a duration; write 500ms, 10s, 15m, 2h, 1d, 1h30m or a number of seconds")
    if seconds < 0:
        raise ValueError("is negative; write a duration such as 10s")
    if seconds > _LONGEST_S:
        raise ValueError("is too long; write 365d or less")
    return seconds


def _sum_of_parts(parts: list[tuple[str, str]]) -> float:
    units = [unit for _, unit in parts]
    if units != sorted(set(units), key=list(_SECONDS).index):
        raise ValueError("names its units twice or out of order; write the largest first, such as 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def positive_duration(text: str) -> float:
    seconds = duration(text)
    if seconds == 0:
        raise ValueError("leaves no time at all; write a duration above 0, such as 10s")
    return seconds


def size(text: str) -> int:
    """Bytes, at least one, from `100MB` (decimal), `64KiB` (binary) or a plain number."""
    found = _SIZE.fullmatch(text)
    unit = _BYTES.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError("is not a size; write 100MB, 64KiB, 2GB or a number of bytes")
    size_bytes = Decimal(found[1]) * unit
    if not 1 <= size_bytes <= _BIGGEST:
        raise ValueError("is not a size that makes sense; write at least 1 byte, such as 100MB")
    if size_bytes != int(size_bytes):
        raise ValueError("is not a whole number of bytes; write 100MB, 64KiB or a number of bytes")
    return int(size_bytes)


def log_size(text: str) -> int:
    size_bytes = size(text)
    if size_bytes < _SMALLEST_LOG_BYTES:
        raise ValueError("is too small for a log; write 64KiB or more, such as 50MB")
    return size_bytes


def log_count(text: str) -> int:
    value = whole(text)
    if not 0 <= value <= MOST_LOGS:
        raise ValueError(f"is not a number of files to keep; write 0 to {MOST_LOGS}")
    return value


def moment(text: str) -> float:
    """Epoch seconds; a date alone is the end of that day in UTC, a time without a zone is in UTC."""
    try:
        if _DATE.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() + 86400
        if found := _DATETIME.fullmatch(text):
            when = datetime.fromisoformat(f"{found[1]}T{found[2]}{found[3].upper()}")
            return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        pass
    raise ValueError("is not a date; write 2027-06-30, or a moment such as 2027-06-30T18:00:00Z")


def name(text: str) -> str:
    """What a user, group, provider or key is called."""
    if not _NAME.fullmatch(text):
        raise ValueError("is not a usable name; write 1 to 64 of: letters a-z A-Z, digits, and - _ . @")
    return text


def free_name(text: str) -> str:
    if name(text) == EVERYONE:
        raise ValueError("is reserved: in `share` it means all users; choose another name")
    return text


def model(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable() or len(text) > 256:
        raise ValueError("is not a model name; write it as the server lists it, without spaces around it")
    return text


def file_path(text: str) -> str:
    if not text or not text.isprintable() or len(text) > 4096:
        raise ValueError("is not the name of a file; write one without control characters")
    if text.endswith("/"):
        raise ValueError("is a folder; write the name of a file in it")
    return text


def folder_path(text: str) -> str | None:
    """Where files are made; `none` is wherever the system has them."""
    if text.lower() == "none":
        return None
    if not text or not text.isprintable() or len(text) > 4096:
        raise ValueError("is not the name of a folder; write one without control characters")
    return text


def log_path(text: str) -> str | None:
    """Where to write; `none` is nowhere."""
    if text.lower() == "none":
        return None
    if text.lower() in _SWITCHES:
        raise ValueError("would be the name of a file; write one such as requests.jsonl, or none for no log")
    return file_path(text)


def header_name(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("is not a header name; write letters, digits and -, such as X-Team")
    if text.lower() in _NOT_OURS_TO_SET:
        raise ValueError("belongs to the connection, which the gateway makes itself; leave it out")
    return text


def person_header(text: str) -> str:
    if text.lower() in _CREDENTIALS:
        raise ValueError("holds keys, and names of persons are logged; name another header, such as X-User")
    return header_name(text)


def own_header_name(text: str) -> str:
    """A header that is sent to a provider; `Host` is one, for servers that answer to several names."""
    return text if text.lower() == "host" else header_name(text)


def header_value(text: str) -> str:
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError(
            "is not a header value; write ASCII characters, no line breaks, no spaces at the ends"
        )
    return text


def api_key(text: str) -> str:
    if not text:
        raise ValueError("is empty; write the key this server wants, or leave the line out")
    if not VISIBLE.fullmatch(text):
        raise ValueError(
            "has spaces, control or non-ASCII characters in it; write the key as the server has it"
        )
    return text


def hash_digest(text: str) -> bytes:
    """The 32 bytes of `sha256:<64 hex digits>`."""
    found = _HASH.fullmatch(text)
    if found is None:
        raise ValueError(
            "is not a hash; write sha256: and 64 hex digits, as `python gateway.py key USER` prints it"
        )
    return bytes.fromhex(found[1])


def key_digest(text: str) -> bytes:
    """The SHA-256 of a key that is written as it is."""
    if is_hash(text):
        raise ValueError("is a hash, not a key; write it under `hash` instead")
    if not VISIBLE.fullmatch(text):
        raise ValueError(
            "is empty or has spaces, control or non-ASCII signs in it; `python gateway.py key USER` makes one"
        )
    if len(text) < KEY_LENGTH:
        raise ValueError(
            f"has fewer than {KEY_LENGTH} characters; `python gateway.py key USER` makes a good one"
        )
    return sha256(text.encode()).digest()


def is_hash(text: str) -> bool:
    return text[:7].lower() == "sha256:"


def digest_reader(text: str) -> Callable[[str], bytes]:
    """How to read a key that is one word: as the hash it claims to be, or as itself."""
    return hash_digest if is_hash(text) else key_digest
