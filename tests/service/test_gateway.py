"""A gateway that adopts another config: nothing in it goes on with the one that is no longer in force.

Every setting of the old config bears a mark, and every object of ours that the gateway can reach is looked
at. What keeps a marked value, or a section of the old config, has adopted nothing.
"""

from __future__ import annotations

import gc
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Set
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any, Final

from llmgateway.config.fields import Section
from llmgateway.config.load import build
from llmgateway.config.providers import TrustConfig
from llmgateway.config.settings import Config, TlsConfig
from llmgateway.config.users import KeyConfig, KeyEntry
from llmgateway.service.gateway import Adopter, Gateway
from tests.conftest import GatewayFor, ProviderFor
from tests.fake_provider import FakeProvider
from tests.journey import eventually, settings

OLD: Final = ("bygone", 919, "10.9.19.0/24")
NEW: Final = ("current", 853, "10.8.53.0/24")
CONTAINERS: Final = (list, dict, set, tuple, frozenset, deque, defaultdict, OrderedDict, Counter)
CALLABLES: Final = (MethodType, FunctionType, CellType, partial)


def sections(marks: tuple[str, int, str], folder: Path) -> dict[str, Any]:
    """All sections of a config but `providers`, with the marks in every setting that can bear one."""
    word, number, network = marks
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "tokens_per_day", "parallel"), number)
    key = {"name": word, "key": f"sk-{word}-{'0' * 40}", "models": [word], "limits": limits}
    return {
        "server": {
            "base_path": f"/{word}", "max_body": number, "bodies_memory": number, "min_rate": number,
            "connections_per_address": number,
            "spool": str(folder / word), "drain_timeout": number,
            "drain_delay": number,
            "cors": [f"https://{word}.example"], "default_model": word, "ollama_api": number == OLD[1],
            "extra_paths": [f"/v1/{word}", {"path": f"/v1/{word}s", "method": "GET", "model": "none"}],
            "trusted_proxies": [network], "metrics_from": [network],
            "host": "127.0.0.1", "listen": None, "reuse_port": False, "tls": None,
            "unavailable_status": 404 if number == OLD[1] else 503,
        },
        "users": {
            word: {
                "keys": [key], "limits": limits, "weight": number, "admin": True, "route": "prefer_own",
                "person_header": f"x-{word}", "from": [network],
            }
        },
        "groups": {f"{word}s": [word]},
        "aliases": {f"{word}-alias": [word, f"{word}-renamed"]},
        "fallbacks": {word: [f"{word}-renamed"]},
        "health": {"interval": number, "timeout": number, "fall": number, "rise": number},
        "queue": {"size": number, "timeout": number},
        "streams": {"keepalive": number},
        "affinity": {"headers": [f"x-{word}"]},
        "cluster": {"name": word, "instances": number, "limits": f"redis://127.0.0.1:{number}"},
        "telemetry": {"otlp": f"http://{word}.example:{number}"},
        "log": {
            "requests": str(folder / word), "requests_size": f"{number}KiB", "requests_keep": number,
            "level": "info", "format": "text",
        },
    }  # fmt: skip


def mark(provider: FakeProvider, marks: tuple[str, int, str]) -> FakeProvider:
    """Give a provider settings with the marks; it is reached as it was before."""
    word, number, _ = marks
    provider.settings.update(
        owner=word, share=[f"{word}s"], slots=number, weight=number,
        kind="ollama" if word == OLD[0] else "vllm", endpoints=["chat"],
        api_key=None, api_key_file=None, headers={}, tls=None, proxy=None,
        timeouts={"connect": number, "first_byte": number, "idle": number},
        models=[word, f"{word}-listed", {"name": f"{word}-short", "as": f"{word}/long"}],
        rename={f"{word}-listed": f"{word}-renamed"},
        wake={"mac": "02:00:00:00:00:01", "broadcast": "127.0.0.1"},
    )  # fmt: skip
    return provider


def is_ours(value: object) -> bool:
    """Whether what it refers to is worth a look; what is behind other libraries' objects is theirs."""
    return (
        type(value) in CONTAINERS
        or isinstance(value, CALLABLES)
        or type(value).__module__.startswith("llmgateway.")
    )


def referents(value: object) -> list[object]:
    if isinstance(value, FunctionType):  # not its module's globals
        return [*(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__]
    return [each for each in gc.get_referents(value) if not isinstance(each, type)]


def reachable(root: object, behind: Set[int] = frozenset()) -> Iterator[tuple[str, object]]:
    """Give every value in reach, with the types on the way to it; not what is behind these, by their ids."""
    seen = {id(root): root}
    waiting = deque([(type(root).__name__, root)])
    while waiting:
        trail, value = waiting.popleft()
        yield trail, value
        if is_ours(value) and id(value) not in behind:
            for each in referents(value):
                if id(each) not in seen:
                    seen[id(each)] = each
                    waiting.append((f"{trail} > {type(each).__name__}", each))


def is_section(value: object) -> bool:
    return isinstance(value, (Section, KeyConfig))


def bears_a_mark(value: object) -> bool:
    word, number, network = OLD
    match value:
        case str() | Path():
            return word in str(value)
        case bytes():
            return word.encode() in value
        case re.Pattern():
            return word in value.pattern
        case int() | float():
            return value == number
        case IPv4Network():
            return value == IPv4Network(network)
    return False


def left_behind(gateway: Gateway, old: Config) -> list[str]:
    """Name what the gateway still has of a config that is no longer in force."""
    bygone = {id(value) for _, value in reachable(old) if is_section(value)}
    bygone -= {id(value) for _, value in reachable(gateway.config)}
    return [
        f"{trail}: {value!r:.80}"
        for trail, value in reachable(gateway, bygone)
        if id(value) in bygone or bears_a_mark(value)
    ]


async def house(provider_for: ProviderFor) -> tuple[FakeProvider, FakeProvider]:
    """A provider that stays, and one that goes."""
    return mark(await provider_for("rig"), OLD), mark(await provider_for("bygone"), OLD)


async def test_nothing_of_a_config_that_is_no_longer_in_force_is_left_behind(
    provider_for: ProviderFor, gateway_for: GatewayFor, tmp_path: Path
) -> None:
    rig, other = await house(provider_for)
    gateway = await gateway_for(rig, other, **sections(OLD, tmp_path))
    old = gateway.config
    assert left_behind(gateway, old)
    gateway.adopt(build(settings(mark(rig, NEW), **sections(NEW, tmp_path))))
    try:
        await eventually(lambda: not left_behind(gateway, old))  # connections take a moment to close
    except AssertionError:
        raise AssertionError("\n".join(left_behind(gateway, old))) from None


async def test_whoever_does_not_adopt_is_found(
    provider_for: ProviderFor, gateway_for: GatewayFor, tmp_path: Path
) -> None:
    rig, other = await house(provider_for)
    gateway = await gateway_for(rig, other, **sections(OLD, tmp_path))
    all_of_them = gateway._adopters

    def left_by(adopters: tuple[Adopter, ...]) -> set[str]:
        """Go over from the old config to the new one, and look before anything had time to end."""
        gateway._adopters = all_of_them
        gateway.adopt(build(settings(mark(rig, OLD), mark(other, OLD), **sections(OLD, tmp_path))))
        old, gateway._adopters = gateway.config, adopters
        gateway.adopt(build(settings(mark(rig, NEW), **sections(NEW, tmp_path))))
        return set(left_behind(gateway, old))

    ends_by_itself = left_by(all_of_them)
    for left_out in all_of_them:
        found = left_by(tuple(each for each in all_of_them if each is not left_out))
        assert found - ends_by_itself, left_out


async def test_every_setting_has_its_place_in_these_tests(provider_for: ProviderFor, tmp_path: Path) -> None:
    config = build(settings(*await house(provider_for), **sections(OLD, tmp_path)))
    found = [value for _, value in reachable(config) if isinstance(value, Section)]
    # The certificate stays the one it was; of a key's entry in the file, KeyConfig is made; a provider whose
    # certificate is looked at in another way is another one.
    assert {type(each) for each in found} == {*Section.__subclasses__()} - {TlsConfig, KeyEntry}
    for section in found:
        if not isinstance(section, TrustConfig):
            assert section.model_fields_set == {*type(section).model_fields}, type(section)
