"""What is allowed in a config but hardly meant: said at the start, and by `check`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from llmgateway.api.endpoints import OPTIONAL
from llmgateway.config import naming
from llmgateway.config.addresses import ONCE_EXTRA
from llmgateway.config.providers import ProviderConfig
from llmgateway.config.references import Finding, Steps, at, counts, forms, names_in
from llmgateway.config.settings import Config, ServerConfig
from llmgateway.config.tree import Node, Pairs, Scalar, Series, shown
from llmgateway.config.users import NO_LIMITS, LimitsConfig, UserConfig


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
    yield from _about_aliases(config)
    yield from naming.doubts(root)
    yield from _unread_variables(root)
    for name, user in config.users.items():
        yield from _about_keys(name, user, root, now)
        yield from _about_limits(name, user, root)
        yield from _about_models(name, user, config)
    seen: dict[tuple[object, ...], str] = {}
    for name, provider in config.providers.items():
        yield from _about_provider(name, provider, seen)


def _about_default_model(config: Config) -> Iterator[Finding]:
    """A default that no provider can come to have: each has a list of models, and it is on none."""
    default = config.server.default_model
    if default is None or not config.providers or default in config.aliases:
        return
    names = {default, f"{default}:latest"}  # Ollama's, for which the short one will do
    lists = [provider.listed for provider in config.providers.values()]
    if all(listed is not None and names.isdisjoint(listed) for listed in lists):
        yield (
            ("server", "default_model"),
            "no provider serves this model; write one that stands under `models` of a provider",
        )


def _about_aliases(config: Config) -> Iterator[Finding]:
    for alias in config.aliases:
        if _WILDCARD.search(alias):
            what = "an alias is no pattern, and stands for this very name only"
            yield ("aliases", alias), f"{what}; write each name that clients ask for"


_WILDCARD: Final = re.compile(r"[*?]")


def _about_server(server: ServerConfig) -> Iterator[Finding]:
    for index, entry in enumerate(server.extra_paths):
        path, method = (entry, "POST") if isinstance(entry, str) else (entry.path, entry.method)
        if path in ONCE_EXTRA and method == "POST":
            yield ("server", "extra_paths", index), "this path is forwarded anyway; leave it out"
        elif server.ollama_api and path in OPTIONAL:
            what = "with `ollama_api` this path is there as Ollama has it"
            yield ("server", "extra_paths", index), f"{what}; leave it out"
    if server.bodies_memory < server.max_body and "bodies_memory" in server.model_fields_set:
        yield (
            ("server", "bodies_memory"),
            "this is less than one body may have (`max_body`), so that the largest never get in; write more",
        )
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
    for user in names_in(root, "users"):
        for path, _ in _variables_among(root, user):
            yield path, _NO_VARIABLE
    redis = at(root, "cluster", "limits")
    if isinstance(redis, Scalar) and _is_unread(replace(redis, text=_password_in(redis.text))):
        yield ("cluster", "limits"), _NO_VARIABLE
    for provider in names_in(root, "providers"):
        api_key = at(root, "providers", provider, "api_key")
        if isinstance(api_key, Scalar) and _is_unread(api_key):
            yield ("providers", provider, "api_key"), _NO_VARIABLE
        proxy = at(root, "providers", provider, "proxy")
        if isinstance(proxy, Scalar) and _is_unread(replace(proxy, text=_password_in(proxy.text))):
            yield ("providers", provider, "proxy"), _NO_VARIABLE
        headers = at(root, "providers", provider, "headers")
        for header, pair in headers.pairs.items() if isinstance(headers, Pairs) else ():
            if isinstance(pair.value, Scalar) and _is_unread(pair.value):
                yield ("providers", provider, "headers", header), _NO_VARIABLE


def _password_in(url: str) -> str:
    return url.rpartition("@")[0].rpartition(":")[2]


def _variables_among(root: Pairs, user: str) -> Iterator[tuple[Steps, Scalar]]:
    keys = at(root, "users", user, "keys")
    for index, key in enumerate(keys.items if isinstance(keys, Series) else ()):
        for last, scalar in forms(key):
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
    for index, network in enumerate(user.networks):
        if network.prefixlen == 0:
            what = "this takes everybody who gets through to the gateway for this user"
            yield ("users", name, "from", index), f"{what}; write your own network"
    if not user.keys and not user.networks:
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
    written = at(root, "users", name)
    if _is_written_but_empty(user.limits, written):
        yield ("users", name, "limits"), _SET_NO_LIMIT
    keys = at(written, "keys")
    entries = keys.items if isinstance(keys, Series) else ()
    for index, (key, entry) in enumerate(zip(user.keys, entries, strict=True)):
        path = ("users", name, "keys", index, "limits")
        if _is_written_but_empty(key.limits, entry):
            yield path, _SET_NO_LIMIT
        for limit in _larger(key.limits, user.limits):
            yield (*path, limit), _LIMITS_NOTHING


def _about_models(name: str, user: UserConfig, config: Config) -> Iterator[Finding]:
    """Aliases among the models of keys, by which no key goes; unless a provider surely has such a model."""
    real = {model for provider in config.providers.values() for model in provider.listed or ()}
    for index, key in enumerate(user.keys):
        for place, model in enumerate(key.models):
            if model in config.aliases and model not in real:
                meant = ", ".join(map(shown, config.aliases[model]))
                path = ("users", name, "keys", index, "models", place)
                yield path, f"this is an alias, which opens nothing; write what it stands for: {meant}"


_SET_NO_LIMIT: Final = f"no limit is set here; write one of {', '.join(LimitsConfig.model_fields)}"
_LIMITS_NOTHING: Final = "this is more than the user may in all, so it limits nothing; write less than that"


def _is_written_but_empty(limits: LimitsConfig, parent: Node | None) -> bool:
    return limits == NO_LIMITS and at(parent, "limits") is not None


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
