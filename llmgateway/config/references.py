"""Check what must agree across the file: names that refer to one another, keys and paths that must differ.

It looks at the tree as it was written, not at the models, so that a mistake of shape hides nothing elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final, TypeAlias

from llmgateway.config import values
from llmgateway.config.addresses import ONCE_EXTRA
from llmgateway.config.settings import (
    NO_LIMITS,
    Config,
    LimitsConfig,
    ProviderConfig,
    ServerConfig,
    UserConfig,
)
from llmgateway.config.tree import Node, Pairs, Scalar, Series, joined, quoted, shown

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


def complaints(root: Pairs) -> Iterator[Finding]:
    """Everything that does not agree, each with its path."""
    names = _Names(_names_in(root, "users"), _names_in(root, "groups"))
    yield from _two_of_a_name(names)
    yield from _members(root, names)
    yield from _owners_and_shares(root, names)
    yield from _two_credentials(root)
    yield from _needless_trust(root)
    yield from _needless_proxies(root)
    yield from _same_keys(root)
    yield from _same_paths(root)
    yield from _same_headers(root)


def _two_of_a_name(names: _Names) -> Iterator[Finding]:
    for name in names.groups:
        if name in names.users:
            yield ("groups", name, KEY), f"'{shown(name)}' is a user already; give the group another name"


def _members(root: Pairs, names: _Names) -> Iterator[Finding]:
    for group in names.groups:
        for index, member in _words(root, "groups", group):
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
    for provider in _names_in(root, "providers"):
        owner = _at(root, "providers", provider, "owner")
        if isinstance(owner, Scalar) and counts(owner) and owner.text not in names.users:
            yield ("providers", provider, "owner"), _no_owner(owner, names)
        for index, name in _words(root, "providers", provider, "share"):
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
    for provider in _names_in(root, "providers"):
        headers = _at(root, "providers", provider, "headers")
        api_key = _at(root, "providers", provider, "api_key")
        if not isinstance(headers, Pairs) or not isinstance(api_key, Scalar) or api_key.null:
            continue
        for name in headers.pairs:
            if name.lower() == "authorization":
                path = ("providers", provider, "headers", name, KEY)
                yield path, "`api_key` is sent in this header; write one of them, not both"


def _needless_trust(root: Pairs) -> Iterator[Finding]:
    for provider in _names_in(root, "providers"):
        url, tls = _at(root, "providers", provider, "url"), _at(root, "providers", provider, "tls")
        if not isinstance(tls, Pairs):
            continue
        if isinstance(url, Scalar) and counts(url) and url.text.lower().startswith(("http://", "unix:")):
            what = "the url is not https://, so there is no certificate; correct it, or leave this out"
            yield ("providers", provider, "tls", KEY), what
        verify = _at(tls, "verify")
        if "ca" in tls.pairs and isinstance(verify, Scalar) and verify.text.lower() == "false":
            what = "nothing is checked with this, so `ca` means nothing; leave one of them out"
            yield ("providers", provider, "tls", "verify"), what


def _needless_proxies(root: Pairs) -> Iterator[Finding]:
    for provider in _names_in(root, "providers"):
        url, proxy = _at(root, "providers", provider, "url"), _at(root, "providers", provider, "proxy")
        if not isinstance(proxy, Scalar) or proxy.null or not isinstance(url, Scalar) or not counts(url):
            continue
        if url.text.lower().startswith("unix:"):
            what = "no proxy leads to a Unix socket; correct the url, or leave this out"
            yield ("providers", provider, "proxy", KEY), what


def _same_keys(root: Pairs) -> Iterator[Finding]:
    first: dict[bytes, str] = {}
    for path, digest in _digests(root):
        if digest in first:
            make = f"`python gateway.py key {shown(str(path[1]))}` makes another"
            yield path, f"this is the same key as {first[digest]}; every key must be a different one: {make}"
        first.setdefault(digest, joined(path))


def _digests(root: Pairs) -> Iterator[tuple[Steps, bytes]]:
    """Every readable key with its path; those that cannot be read are complained about elsewhere."""
    for user in _names_in(root, "users"):
        keys = _at(root, "users", user, "keys")
        for index, key in enumerate(keys.items if isinstance(keys, Series) else ()):
            for last, scalar in _forms(key):
                try:
                    reader = values.key_digest if last == ("key",) else values.hash_digest
                    digest = (
                        values.digest_reader(scalar.text)(scalar.text) if not last else reader(scalar.text)
                    )
                except ValueError:
                    continue
                yield ("users", user, "keys", index, *last), digest


def _forms(key: Node) -> Iterator[tuple[Steps, Scalar]]:
    if isinstance(key, Scalar) and counts(key):
        yield (), key
    for form in ("hash", "key"):
        scalar = _at(key, form)
        if isinstance(scalar, Scalar) and counts(scalar):
            yield (form,), scalar


def _same_paths(root: Pairs) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    entries = _at(root, "server", "extra_paths")
    for index, entry in enumerate(entries.items if isinstance(entries, Series) else ()):
        path = _at(entry, "path") if isinstance(entry, Pairs) else entry
        if not isinstance(path, Scalar) or not counts(path):
            continue
        method = _at(entry, "method")
        way = path.text, method.text.upper() if isinstance(method, Scalar) else "POST"
        if way in seen:
            yield ("server", "extra_paths", index), "this path stands here twice; keep one of them"
        seen.add(way)


def _same_headers(root: Pairs) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, header in _words(root, "affinity", "headers"):
        if header.text.lower() in seen:
            yield ("affinity", "headers", index), "this header stands here twice; keep one of them"
        seen.add(header.text.lower())


def _at(node: Node | None, *steps: str) -> Node | None:
    for step in steps:
        pair = node.pairs.get(step) if isinstance(node, Pairs) else None
        node = pair.value if pair else None
    return node


def _names_in(root: Pairs, section: str) -> tuple[str, ...]:
    node = _at(root, section)
    return tuple(node.pairs) if isinstance(node, Pairs) else ()


def _words(root: Pairs, *steps: str) -> Iterator[tuple[int, Scalar]]:
    node = _at(root, *steps)
    for index, item in enumerate(node.items if isinstance(node, Series) else ()):
        if isinstance(item, Scalar) and counts(item):
            yield index, item


def counts(scalar: Scalar) -> bool:
    """Whether there is a word to check: neither nothing nor something that was reported already."""
    return not scalar.null and not scalar.broken


def doubts(config: Config, root: Pairs, *, now: float) -> Iterator[Finding]:
    """What is allowed but hardly meant, in a config that is valid; `now` is epoch seconds."""
    yield from _about_server(config.server)
    yield from _about_default_model(config)
    if not config.users:
        yield (
            ("users",),
            "no users, so nobody can call; write one, `python gateway.py key NAME` makes the key",
        )
    if not config.providers:
        yield ("providers",), "no providers, so there is no model to use; write one with its `url`"
    yield from _unread_variables(root)
    for name, user in config.users.items():
        yield from _about_keys(name, user, root, now)
        yield from _about_limits(name, user, root)
    seen: dict[tuple[object, ...], str] = {}
    for name, provider in config.providers.items():
        yield from _about_provider(name, provider, seen)


def _about_default_model(config: Config) -> Iterator[Finding]:
    """A default that no provider can come to have: each has a list of models, and it is on none."""
    default = config.server.default_model
    if default is None or not config.providers:
        return
    names = {default, f"{default}:latest"}  # Ollama's, for which the short one will do
    if all(
        provider.models is not None and names.isdisjoint(provider.models)
        for provider in config.providers.values()
    ):
        yield (
            ("server", "default_model"),
            "no provider serves this model; write one that stands under `models` of a provider",
        )


def _about_server(server: ServerConfig) -> Iterator[Finding]:
    for index, entry in enumerate(server.extra_paths):
        path, method = (entry, "POST") if isinstance(entry, str) else (entry.path, entry.method)
        if path in ONCE_EXTRA and method == "POST":
            yield ("server", "extra_paths", index), "this path is forwarded anyway; leave it out"
    if "*" in server.cors and len(server.cors) > 1:
        yield (
            ("server", "cors"),
            'with "*" every web page may call, whatever else stands here; write only "*", or only the others',
        )
    for index, network in enumerate(server.trusted_proxies):
        if network.prefixlen == 0:
            yield (
                ("server", "trusted_proxies", index),
                "this trusts everybody, so that anybody can claim any address; write your proxy's own",
            )


def _unread_variables(root: Pairs) -> Iterator[Finding]:
    """Credentials that look like a variable as other programs write it; here they are taken as they stand."""
    for user in _names_in(root, "users"):
        for path, _ in _variables_among(root, user):
            yield path, _NO_VARIABLE
    for provider in _names_in(root, "providers"):
        api_key = _at(root, "providers", provider, "api_key")
        if isinstance(api_key, Scalar) and _is_unread(api_key):
            yield ("providers", provider, "api_key"), _NO_VARIABLE
        proxy = _at(root, "providers", provider, "proxy")
        if isinstance(proxy, Scalar) and _is_unread(replace(proxy, text=_password_in(proxy.text))):
            yield ("providers", provider, "proxy"), _NO_VARIABLE
        headers = _at(root, "providers", provider, "headers")
        for header, pair in headers.pairs.items() if isinstance(headers, Pairs) else ():
            if isinstance(pair.value, Scalar) and _is_unread(pair.value):
                yield ("providers", provider, "headers", header), _NO_VARIABLE


def _password_in(proxy: str) -> str:
    return proxy.rpartition("@")[0].rpartition(":")[2]


def _variables_among(root: Pairs, user: str) -> Iterator[tuple[Steps, Scalar]]:
    keys = _at(root, "users", user, "keys")
    for index, key in enumerate(keys.items if isinstance(keys, Series) else ()):
        for last, scalar in _forms(key):
            if _is_unread(scalar):
                yield ("users", user, "keys", index, *last), scalar


def _is_unread(scalar: Scalar) -> bool:
    return counts(scalar) and not scalar.from_env and _VARIABLE.fullmatch(scalar.text) is not None


# $NAME, $${NAME}, $(NAME), %NAME%, os.environ/NAME, env.NAME, env:NAME, {env:NAME}, {{ NAME }}
_VARIABLE: Final = re.compile(
    r"(?:[Bb]earer +)?"
    r"(?:\$[A-Za-z_]\w*|\$\{.*\}|\$\(.*\)|%[A-Za-z_]\w*%|os\.environ\W.+|env[.:/][A-Za-z_]\w*|\{\{?\s*(?:env[.:])?[A-Za-z_]\w*\s*\}\}?)"
)
_NO_VARIABLE: Final = (
    "this is taken as it stands, and not from the environment; write ${NAME} to have the variable's value"
)


def _about_keys(name: str, user: UserConfig, root: Pairs, now: float) -> Iterator[Finding]:
    unread = {path[3] for path, _ in _variables_among(root, name)}
    make = f"`python gateway.py key {name}`"
    if not user.keys:
        yield ("users", name), f"this user has no keys, so they cannot call; {make} makes one"
    for index, key in enumerate(user.keys):
        if key.plain and index not in unread:
            what = "the key stands in this file for everybody who can read it"
            yield (
                ("users", name, "keys", index, "key"),
                f"{what}; write its hash, as {make} prints it, or ${{VARIABLE}}",
            )
        if key.expires_at is not None and key.expires_at <= now:
            yield (
                ("users", name, "keys", index, "expires"),
                "this key has expired; remove it, or write a later date",
            )


def _about_limits(name: str, user: UserConfig, root: Pairs) -> Iterator[Finding]:
    written = _at(root, "users", name)
    if _is_written_but_empty(user.limits, written):
        yield ("users", name, "limits"), _SET_NO_LIMIT
    keys = _at(written, "keys")
    entries = keys.items if isinstance(keys, Series) else ()
    for index, (key, entry) in enumerate(zip(user.keys, entries, strict=True)):
        path = ("users", name, "keys", index, "limits")
        if _is_written_but_empty(key.limits, entry):
            yield path, _SET_NO_LIMIT
        for limit in _larger(key.limits, user.limits):
            yield (*path, limit), _LIMITS_NOTHING


_SET_NO_LIMIT: Final = f"no limit is set here; write one of {', '.join(LimitsConfig.model_fields)}"
_LIMITS_NOTHING: Final = "this is more than the user may in all, so it limits nothing; write less than that"


def _is_written_but_empty(limits: LimitsConfig, parent: Node | None) -> bool:
    return limits == NO_LIMITS and _at(parent, "limits") is not None


def _larger(limits: LimitsConfig, than: LimitsConfig) -> Iterator[str]:
    """The names of the limits that are larger than what they are part of."""
    for name in LimitsConfig.model_fields:
        one, other = getattr(limits, name), getattr(than, name)
        if one is not None and other is not None and one > other:
            yield name


def _about_provider(
    name: str, provider: ProviderConfig, seen: dict[tuple[object, ...], str]
) -> Iterator[Finding]:
    account = provider.url, provider.proxy, provider.api_key  # each proxy has a localhost of its own
    if account in seen:
        same = f"the same server with the same api_key as {shown(seen[account])}"
        yield ("providers", name, "url"), f"{same}, so it is probed and counted twice; remove one of them"
    seen.setdefault(account, name)
    if not provider.tls.verify:
        what = "whoever is in between can pose as this server, and gets its api_key and every prompt"
        yield ("providers", name, "tls", "verify"), f"{what}; write `ca` with the file of its certificate"
    if provider.share and provider.owner is None:
        yield (
            ("providers", name, "share"),
            "without an `owner` the server belongs to everybody; write one, or no `share`",
        )
