"""Check what must agree across the file: names that refer to one another, keys and paths that must differ.

It looks at the tree as it was written, not at the models, so that a mistake of shape hides nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeAlias

from llmgateway.config import addresses, values
from llmgateway.config.tree import Node, Pairs, Scalar, Series, joined, quoted, shown
from llmgateway.http.peers import Network

Steps: TypeAlias = tuple[int | str, ...]
Finding: TypeAlias = tuple[Steps, str]

_CHOICES: Final = 200  # did-you-mean compares with each of them
KEY: Final = "[key]"  # the last step of a path that means the key itself, as in pydantic's error locations


@dataclass(frozen=True, slots=True)
class _Names:
    """The names that the file defines."""

    users: tuple[str, ...]
    groups: tuple[str, ...]

    def instead_of(self, wrong: Scalar, choices: tuple[str, ...], kind: str) -> str:
        """What to write for a name that nobody has."""
        if wrong.from_env:
            return f"this value is not {kind}; write one of those in the file"
        start = f"'{shown(wrong.text)}' is not {kind}"
        if len(choices) <= _CHOICES and (nearest := get_close_matches(wrong.text, choices, 1)):
            return f"{start}; did you mean '{nearest[0]}'?"
        if len(choices) <= 10:
            return f"{start}; known here: {', '.join(map(shown, choices)) or 'none'}"
        return f"{start}; write one of those in the file"


@dataclass(frozen=True, slots=True)
class _Claim:
    """A network that a user has in `from`."""

    path: Steps
    network: Network

    @property
    def user(self) -> int | str:
        """Whose it is."""
        return self.path[1]

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands among networks, each before those in it."""
        return self.network.version, int(self.network.network_address), self.network.prefixlen

    def is_in(self, other: _Claim) -> bool:
        """Tell whether all of its addresses are in another one."""
        return self.network.version == other.network.version and (
            self.network.network_address in other.network
        )


def complaints(root: Pairs) -> Iterator[Finding]:
    """Everything that does not agree, each with its path."""
    names = _Names(names_in(root, "users"), names_in(root, "groups"))
    yield from _two_of_a_name(names)
    yield from _members(root, names)
    yield from _owners_and_shares(root, names)
    yield from _two_credentials(root)
    yield from _needless_trust(root)
    yield from _needless_proxies(root)
    yield from _needless_sharing(root)
    yield from _same_keys(root)
    yield from _shared_networks(root)
    yield from _same_paths(root)
    yield from _same_headers(root)


def _two_of_a_name(names: _Names) -> Iterator[Finding]:
    for name in names.groups:
        if name in names.users:
            yield ("groups", name, KEY), f"'{shown(name)}' is a user already; give the group another name"


def _members(root: Pairs, names: _Names) -> Iterator[Finding]:
    for group in names.groups:
        for index, member in words(root, "groups", group):
            path = ("groups", group, index)
            if member.text in names.users:
                continue
            if member.text in names.groups:
                yield path, f"{quoted(member)} is a group; write its users instead"
            elif member.text == values.EVERYONE:
                yield path, f"'{values.EVERYONE}' cannot be in a group; write it under `share` of a provider"
            else:
                yield path, names.instead_of(member, names.users, "a user")


def _owners_and_shares(root: Pairs, names: _Names) -> Iterator[Finding]:
    anybody = (*names.users, *names.groups, values.EVERYONE)
    for provider in names_in(root, "providers"):
        owner = at(root, "providers", provider, "owner")
        if isinstance(owner, Scalar) and counts(owner) and owner.text not in names.users:
            yield ("providers", provider, "owner"), _no_owner(owner, names)
        for index, name in words(root, "providers", provider, "share"):
            if name.text not in anybody:
                yield (
                    ("providers", provider, "share", index),
                    names.instead_of(name, anybody, "a user or group"),
                )


def _no_owner(owner: Scalar, names: _Names) -> str:
    if owner.text in names.groups:
        return f"{quoted(owner)} is a group; write one user here, and the group under `share`"
    if owner.text == values.EVERYONE:
        return "everyone cannot own a server; leave the line out, then it belongs to everybody"
    return names.instead_of(owner, names.users, "a user")


def _two_credentials(root: Pairs) -> Iterator[Finding]:
    for provider in names_in(root, "providers"):
        headers = at(root, "providers", provider, "headers")
        api_key = at(root, "providers", provider, "api_key")
        if not isinstance(headers, Pairs) or not isinstance(api_key, Scalar) or api_key.null:
            continue
        for name in headers.pairs:
            if name.lower() == "authorization":
                path = ("providers", provider, "headers", name, KEY)
                yield path, "`api_key` is sent in this header; write one of them, not both"


def _needless_trust(root: Pairs) -> Iterator[Finding]:
    for provider in names_in(root, "providers"):
        url, tls = at(root, "providers", provider, "url"), at(root, "providers", provider, "tls")
        if not isinstance(tls, Pairs):
            continue
        if isinstance(url, Scalar) and counts(url) and url.text.lower().startswith(("http://", "unix:")):
            what = "the url is not https://, so there is no certificate; correct it, or leave this out"
            yield ("providers", provider, "tls", KEY), what
        verify = at(tls, "verify")
        if "ca" in tls.pairs and isinstance(verify, Scalar) and verify.text.lower() == "false":
            what = "nothing is checked with this, so `ca` means nothing; leave one of them out"
            yield ("providers", provider, "tls", "verify"), what


def _needless_proxies(root: Pairs) -> Iterator[Finding]:
    for provider in names_in(root, "providers"):
        url, proxy = at(root, "providers", provider, "url"), at(root, "providers", provider, "proxy")
        if not isinstance(proxy, Scalar) or proxy.null or not isinstance(url, Scalar) or not counts(url):
            continue
        if url.text.lower().startswith("unix:"):
            what = "no proxy leads to a Unix socket; correct the url, or leave this out"
            yield ("providers", provider, "proxy", KEY), what


def _needless_sharing(root: Pairs) -> Iterator[Finding]:
    socket, shared = at(root, "server", "listen"), at(root, "server", "reuse_port")
    if isinstance(socket, Scalar) and counts(socket) and isinstance(shared, Scalar) and shared.text == "true":
        what = "a Unix socket has no port to share; leave this or `listen` out"
        yield ("server", "reuse_port"), what


def _same_keys(root: Pairs) -> Iterator[Finding]:
    first: dict[bytes, str] = {}
    for path, digest in _digests(root):
        if digest in first:
            make = f"`python gateway.py key {shown(str(path[1]))}` makes another"
            yield path, f"this is the same key as {first[digest]}; every key must be a different one: {make}"
        first.setdefault(digest, joined(path))


def _shared_networks(root: Pairs) -> Iterator[Finding]:
    """Networks of different users with an address in common: of two networks, one is in the other then."""
    found = list(_networks(root))
    inside: list[int] = []  # each other, the widest first
    for index in sorted(range(len(found)), key=lambda at: found[at].place):
        while inside and not found[index].is_in(found[inside[-1]]):
            inside.pop()
        other = next((at for at in reversed(inside) if found[at].user != found[index].user), None)
        if other is not None:
            first, second = sorted((index, other))
            path = joined(found[first].path)
            yield found[second].path, f"an address in it is {path}'s already; each can be one user's only"
        inside.append(index)


def _networks(root: Pairs) -> Iterator[_Claim]:
    for user in names_in(root, "users"):
        for index, scalar in words(root, "users", user, "from"):
            try:
                yield _Claim(("users", user, "from", index), addresses.network(scalar.text))
            except ValueError:
                continue  # as `fields` tells


def _digests(root: Pairs) -> Iterator[tuple[Steps, bytes]]:
    """Every readable key with its path; those that cannot be read are complained about elsewhere."""
    for user in names_in(root, "users"):
        keys = at(root, "users", user, "keys")
        for index, key in enumerate(keys.items if isinstance(keys, Series) else ()):
            for last, scalar in forms(key):
                try:
                    reader = values.key_digest if last == ("key",) else values.hash_digest
                    digest = (
                        values.digest_reader(scalar.text)(scalar.text) if not last else reader(scalar.text)
                    )
                except ValueError:
                    continue
                yield ("users", user, "keys", index, *last), digest


def forms(key: Node) -> Iterator[tuple[Steps, Scalar]]:
    """Give what says the key itself in an entry of `keys`, in each form, and where."""
    if isinstance(key, Scalar) and counts(key):
        yield (), key
    for form in ("hash", "key"):
        scalar = at(key, form)
        if isinstance(scalar, Scalar) and counts(scalar):
            yield (form,), scalar


def _same_paths(root: Pairs) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    entries = at(root, "server", "extra_paths")
    for index, entry in enumerate(entries.items if isinstance(entries, Series) else ()):
        path = at(entry, "path") if isinstance(entry, Pairs) else entry
        if not isinstance(path, Scalar) or not counts(path):
            continue
        method = at(entry, "method")
        way = path.text, method.text.upper() if isinstance(method, Scalar) else "POST"
        if way in seen:
            yield ("server", "extra_paths", index), "this path stands here twice; keep one of them"
        seen.add(way)


def _same_headers(root: Pairs) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, header in words(root, "affinity", "headers"):
        if header.text.lower() in seen:
            yield ("affinity", "headers", index), "this header stands here twice; keep one of them"
        seen.add(header.text.lower())


def at(node: Node | None, *steps: str) -> Node | None:
    """Give what stands at a path of keys, if anything does."""
    for step in steps:
        pair = node.pairs.get(step) if isinstance(node, Pairs) else None
        node = pair.value if pair else None
    return node


def names_in(root: Pairs, section: str) -> tuple[str, ...]:
    """Give the keys of a section of the file."""
    node = at(root, section)
    return tuple(node.pairs) if isinstance(node, Pairs) else ()


def words(root: Pairs, *steps: str) -> Iterator[tuple[int, Scalar]]:
    """Give the words of the list that stands at a path of keys, each with its place in it."""
    node = at(root, *steps)
    for index, item in enumerate(node.items if isinstance(node, Series) else ()):
        if isinstance(item, Scalar) and counts(item):
            yield index, item


def counts(scalar: Scalar) -> bool:
    """Whether there is a word to check: neither nothing nor something that was reported already."""
    return not scalar.null and not scalar.broken
