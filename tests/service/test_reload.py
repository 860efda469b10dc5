"""A changed file becomes the config in force: what is read, what is said of it, what is left alone."""

from __future__ import annotations

import asyncio
import gc
import logging
import mmap
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmgateway.books.metrics import Metrics
from llmgateway.config.load import build, load
from llmgateway.config.settings import Config
from llmgateway.fleet.address import Outgoing
from llmgateway.fleet.fleet import Fleet
from llmgateway.fleet.provider import Provider
from llmgateway.fleet.upstream import Upstream
from llmgateway.http.tls import BadCertificate
from llmgateway.log import TextLines
from llmgateway.service.reload import MOST_PROBLEMS, Changes, Reloader, compare
from llmgateway.web.status import Condition
from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import Turns, ask, waiting
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import KEY, eventually, settings
from tests.raw_client import RawClient, chat
from tests.script import completion, done, listing, play, sse, wait, word

BOB = "sk-bob-0123456789abcdefghijklmnopqrstuvwxyz00"
SEEN_FIRST = {"server": {"port": 0}, "users": {"alice": {"keys": [KEY]}}}


# --- What is different ----------------------------------------------------------------------------

RIG = {"url": "http://127.0.0.1:9"}
TWO: Mapping[str, Any] = {
    "users": {"alice": {"keys": [KEY]}, "bob": {}},
    "providers": {"rig": RIG, "box": RIG},
}
DIFFERENCES: Mapping[str, tuple[dict[str, Any], Changes]] = {
    "nothing": ({}, Changes()),
    "a setting": ({"queue": {"size": 3}}, Changes(changed=("queue.size",))),
    "a user": (
        {"users": {"alice": {"keys": [KEY]}, "carol": {}}},
        Changes(added=("users.carol",), removed=("users.bob",)),
    ),
    "a key": ({"users": {"alice": {"keys": [KEY, BOB]}, "bob": {}}}, Changes(changed=("users.alice.keys",))),
    "a setting that the file calls by another name": (
        {"users": {"alice": {"keys": [KEY], "from": ["10.0.0.1"]}, "bob": {}}},
        Changes(changed=("users.alice.from",)),
    ),
    "a group": ({"groups": {"family": ["bob"]}}, Changes(added=("groups.family",))),
    "a provider's settings": (
        {"providers": {"rig": {**RIG, "slots": 2, "timeouts": {"idle": "1s"}}, "box": RIG}},
        Changes(changed=("providers.rig.slots", "providers.rig.timeouts.idle")),
    ),
    "a provider's header": (
        {"providers": {"rig": {**RIG, "headers": {"X-One": "1"}}, "box": RIG}},
        Changes(added=("providers.rig.headers.X-One",)),
    ),
    "the order": ({"providers": {"box": RIG, "rig": RIG}}, Changes(changed=("providers (order)",))),
}


@pytest.mark.parametrize(("sections", "changes"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_what_two_configs_differ_in_is_told_to_the_last_setting(
    sections: dict[str, Any], changes: Changes
) -> None:
    found = compare(build(TWO), build({**TWO, **sections}))
    assert found == changes
    assert bool(found) is (changes != Changes())


# --- The file -------------------------------------------------------------------------------------


class Desk:
    """A config file, what follows it, and what came of that."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.condition = Condition()
        self.adopted: list[Config] = []
        self.now = 1_800_000_000.0
        self.looks = 0
        self.reloader: Reloader

    def adopt(self, config: Config) -> None:
        self.adopted.append(config)

    def clock(self) -> float:
        """Give a time; it is asked for at every look."""
        self.looks += 1
        return self.now

    async def looked(self, times: int = 2) -> None:
        """Wait for whole looks that begin from now on."""
        wanted = self.looks + times
        await eventually(lambda: self.looks > wanted)

    @property
    def problems(self) -> list[str]:
        return list(self.condition.problems)

    def write(self, tree: Mapping[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump({**SEEN_FIRST, **tree}, sort_keys=False))

    async def adopts(self, number: int = 1) -> Config:
        await eventually(lambda: len(self.adopted) >= number)
        return self.adopted[-1]


@asynccontextmanager
async def following(
    folder: Path,
    tree: Mapping[str, Any] | None = None,
    *,
    every_s: float = 0.01,
    adopt: Callable[[Config], None] | None = None,
    **more: Any,
) -> AsyncIterator[Desk]:
    """A desk whose file is looked at again and again."""
    desk = Desk(folder / "config.yaml")
    desk.write(tree or {})
    loaded = load(desk.file, {})
    desk.reloader = Reloader(
        desk.file,
        more.get("amend", lambda config: config)(loaded.config),
        adopt or desk.adopt,
        condition=desk.condition,
        metrics=Metrics("0"),
        environ={},
        warnings=loaded.warnings,
        every_s=every_s,
        clock=desk.clock,
        **more,
    )
    async with desk.reloader, asyncio.timeout(HANG_S):
        yield desk


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Give the log as people read it."""
    caplog.set_level(logging.INFO, "llmgateway")
    lines = TextLines()
    return lambda: "\n".join(map(lines.format, caplog.records))


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


def rename_over(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def swap_link(file: Path, text: str) -> None:
    """As Kubernetes does with a ConfigMap."""
    target = file.with_name(f"{len(list(file.parent.iterdir()))}.yaml")
    target.write_text(text)
    link = file.with_name("link")
    link.symlink_to(target)
    link.replace(file)


def keep_size_and_time(file: Path, text: str) -> None:
    """As some tools for syncing do: the times are those of the file before."""
    before = file.stat()
    new = file.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(file)


@pytest.mark.parametrize("write", [rewrite, rename_over, swap_link, keep_size_and_time])
async def test_a_changed_file_is_taken_over_however_it_was_written(
    tmp_path: Path, told: Callable[[], str], write: Callable[[Path, str], None]
) -> None:
    async with following(tmp_path, {"queue": {"size": 10}}) as desk:
        for number, size in enumerate((11, 12, 13), start=1):
            write(desk.file, yaml.safe_dump({**SEEN_FIRST, "queue": {"size": size}}))
            assert (await desk.adopts(number)).queue.size == size
        await eventually(lambda: told().count("config reloaded changed=queue.size") == 3)
    assert len(desk.adopted) == 3
    assert desk.condition.loaded_at == 1_800_000_000.0


async def test_two_writes_within_one_tick_of_the_file_systems_clock_are_both_seen(tmp_path: Path) -> None:
    async with following(tmp_path) as desk:
        desk.now = desk.file.stat().st_mtime
        desk.write({"queue": {"size": 81}})
        await desk.adopts(1)
        # Writes to a page that is dirty already leave the time as it is.
        with desk.file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
            for number, size in enumerate((82, 83, 84), start=2):
                mapped[:] = mapped[:].replace(b"%d" % (size - 1), b"%d" % size)
                assert (await desk.adopts(number)).queue.size == size


async def test_a_file_that_is_only_touched_is_no_other_file(tmp_path: Path, told: Callable[[], str]) -> None:
    async with following(tmp_path) as desk:
        await desk.looked()
        desk.write({"oops": 1})
        await eventually(lambda: desk.problems)
        for _ in range(3):
            desk.file.touch()
            await desk.looked()
        desk.file.write_text(desk.file.read_text())
        await desk.looked()
    assert told().count("config has problems") == 1
    assert not desk.adopted


async def test_nothing_is_said_while_nothing_changes(tmp_path: Path, told: Callable[[], str]) -> None:
    async with following(tmp_path) as desk:
        await desk.looked(5)
    assert told() == ""
    assert not desk.adopted


async def test_a_change_between_the_start_and_the_first_look_is_seen(tmp_path: Path) -> None:
    async with following(tmp_path) as desk:
        desk.write({"queue": {"size": 7}})  # its task has not run yet
        assert (await desk.adopts()).queue.size == 7


async def test_all_problems_are_told_and_kept_until_the_file_is_good_again(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    async with following(tmp_path) as desk:
        desk.write({"queue": {"size": -1}, "heath": {}})
        await eventually(lambda: len(desk.problems) == 2)
        assert "queue.size" in desk.problems[1] + desk.problems[0]
        assert "did you mean `health`" in desk.problems[1] + desk.problems[0]
        await desk.looked(5)
        assert told().count("config problem problem=") == 2
        desk.write({"queue": {"size": 5}})
        assert (await desk.adopts()).queue.size == 5
        await eventually(lambda: not desk.problems)


async def test_a_file_that_is_put_back_as_it_was_clears_the_problems(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    async with following(tmp_path) as desk:
        good = desk.file.read_text()
        desk.file.write_text(good[: len(good) // 2] + "[")
        await eventually(lambda: desk.problems)
        desk.file.write_text(good)
        await eventually(lambda: not desk.problems)
        assert "config is as it was" in told()
    assert not desk.adopted


def remove(file: Path) -> None:
    file.unlink()


def put_a_folder_there(file: Path) -> None:
    file.unlink()
    file.mkdir()


def dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


@pytest.mark.parametrize("spoil", [remove, put_a_folder_there, dangle])
async def test_a_file_that_cannot_be_read_changes_nothing_and_is_told_once(
    tmp_path: Path, told: Callable[[], str], spoil: Callable[[Path], None]
) -> None:
    async with following(tmp_path) as desk:
        spoil(desk.file)
        await eventually(lambda: desk.problems)
        assert "cannot be read" in desk.problems[0]
        await desk.looked(5)
        assert told().count("config has problems") == 1
        desk.file.rmdir() if desk.file.is_dir() else desk.file.unlink(missing_ok=True)
        desk.write({"queue": {"size": 3}})
        await desk.adopts()
        await eventually(lambda: not desk.problems)


async def test_problems_are_bounded(tmp_path: Path, told: Callable[[], str]) -> None:
    async with following(tmp_path) as desk:
        desk.write({f"oops{number}": 1 for number in range(MOST_PROBLEMS + 10)})
        await eventually(lambda: len(desk.problems) == MOST_PROBLEMS)
        assert f"problems={MOST_PROBLEMS + 10}" in told()
    assert told().count("config problem problem=") == MOST_PROBLEMS


async def test_neither_keys_nor_secrets_are_ever_told(tmp_path: Path, told: Callable[[], str]) -> None:
    provider = {**RIG, "api_key": "sk-of-the-rig", "headers": {"X-Token": "sesame"}}
    async with following(tmp_path, {"providers": {"rig": RIG}}) as desk:
        desk.write({"users": {"alice": {"keys": [BOB]}}, "providers": {"rig": provider}})
        await desk.adopts()
        desk.write({"users": {"alice": {"keys": [BOB + " "]}}, "providers": {"rig": provider | {"slots": 0}}})
        await eventually(lambda: desk.problems)
        desk.write({})
        await desk.adopts(2)
        await eventually(lambda: "removed=providers.rig" in told())
    assert "providers.rig.api_key" in told()
    for secret in (KEY, BOB, "sk-of-the-rig", "sesame"):
        assert secret not in told() + str(desk.problems)


async def test_who_asks_is_told_whatever_there_is_to_say(tmp_path: Path, told: Callable[[], str]) -> None:
    async with following(tmp_path, every_s=3600) as desk:
        desk.reloader.now()
        await eventually(lambda: told().count("config is as it was") == 1)
        desk.write({"oops": 1})
        for times in (1, 2):
            desk.reloader.now()
            await eventually(lambda: told().count("config has problems") == times)  # noqa: B023
        desk.write({"queue": {"size": 3}})
        desk.reloader.now()
        await eventually(lambda: "config reloaded" in told())


async def test_a_change_during_a_reload_is_seen_afterwards(tmp_path: Path) -> None:
    sizes: list[int] = []

    def adopt(config: Config) -> None:
        sizes.append(config.queue.size)
        if len(sizes) < 5:
            desk.write({"queue": {"size": config.queue.size + 1}})

    async with following(tmp_path, adopt=adopt) as desk:
        desk.write({"queue": {"size": 1}})
        await eventually(lambda: sizes == [1, 2, 3, 4, 5])


async def test_a_config_that_cannot_be_taken_over_is_a_problem_and_not_the_end(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    def adopt(config: Config) -> None:
        if config.queue.size == 1:
            raise RuntimeError
        desk.adopt(config)

    async with following(tmp_path, adopt=adopt) as desk:
        desk.write({"queue": {"size": 1}})
        await eventually(lambda: desk.problems)
        await desk.looked(3)
        assert told().count("reload failed") == 1
        desk.write({})  # as it was before; but who knows how far the other one got
        await desk.adopts()
        await eventually(lambda: not desk.problems)


async def test_what_cannot_change_stays_and_is_told_until_it_is_set_back(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    async with following(tmp_path) as desk:
        desk.write({"server": {"port": 4711, "host": "127.0.0.2", "max_body": "1MB"}})
        server = (await desk.adopts()).server
        assert (server.host, server.port, server.max_body) == (("127.0.0.1",), 0, 1_000_000)
        assert tuple(desk.condition.restart_needed) == ("server.host", "server.port")
        desk.write({"server": {"port": 4711, "host": "127.0.0.2", "max_body": "2MB"}})
        await desk.adopts(2)
        assert told().count("a change needs a restart") == 1
        desk.write({"server": {"port": 0, "max_body": "2MB"}})
        await eventually(lambda: not desk.condition.restart_needed)
    assert len(desk.adopted) == 2


async def test_what_the_command_line_says_stands_above_every_file(tmp_path: Path) -> None:
    def amend(config: Config) -> Config:
        return config.model_copy(update={"server": config.server.model_copy(update={"port": 4711})})

    async with following(tmp_path, amend=amend) as desk:
        desk.write({"server": {"port": 1234, "max_body": "1MB"}})
        assert (await desk.adopts()).server.port == 4711
        assert not desk.condition.restart_needed


async def test_a_warning_is_told_once_wherever_its_line_moves(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    async with following(tmp_path) as desk:
        for number, size in enumerate((1, 2), start=1):
            desk.file.write_text("\n" * size + desk.file.read_text() + f"queue: {{size: {size}}}\n")
            await desk.adopts(number)
            desk.write({})
            await eventually(lambda: desk.reloader.config.queue.size == 100)
        assert "config warning" not in told(), "it was told at the start"
        desk.adopted.clear()
        for size in (1, 2):
            desk.write({"users": {"alice": {"keys": [KEY]}, "bob": {"keys": [BOB]}}, "queue": {"size": size}})
            await desk.adopts(size)
        await eventually(lambda: told().count("config warning warning=") == 1)
        assert "users.bob" in told()


async def test_a_config_from_a_pipe_is_not_read_again(tmp_path: Path, told: Callable[[], str]) -> None:
    async with following(tmp_path) as desk:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        pipe.replace(desk.file)
        await desk.looked(3)
        assert told() == ""
        desk.reloader.now()
        await eventually(lambda: "not a regular file" in told())
    assert not desk.problems


# --- The certificate ------------------------------------------------------------------------------


class Smith:
    """Renews a certificate, or says why not."""

    def __init__(self) -> None:
        self.trouble = ""
        self.renewed = 0

    def renew(self) -> None:
        if self.trouble:
            raise BadCertificate(self.trouble)
        self.renewed += 1


async def test_a_certificate_that_changes_on_disk_is_read_anew(
    tmp_path: Path, told: Callable[[], str]
) -> None:
    cert, key, smith = tmp_path / "cert.pem", tmp_path / "key.pem", Smith()
    cert.write_text("old")
    key.write_text("old")
    tls = {"server": {"port": 0, "tls": {"cert": "cert.pem", "key": "key.pem"}}}
    async with following(tmp_path, tls, renew_tls=smith.renew) as desk:
        await eventually(lambda: smith.renewed == 1)  # whatever happened since the start
        assert told() == ""
        smith.trouble = "the certificate and the key do not belong together"
        rename_over(cert, "new")
        await eventually(lambda: desk.problems == [smith.trouble])
        await desk.looked(3)
        assert told().count("the certificate stays as it was") == 1
        smith.trouble = ""
        rename_over(key, "new")
        await eventually(lambda: smith.renewed == 2)
        await eventually(lambda: not desk.problems)
        await desk.looked(3)
    assert smith.renewed == 2
    assert told().count("the certificate is read anew") == 1


async def test_a_config_that_named_a_missing_certificate_is_read_again_when_that_is_there(
    tmp_path: Path,
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text("old")
    key.write_text("old")
    tls = {"server": {"port": 0, "tls": {"cert": "cert.pem", "key": "key.pem"}}}
    async with following(tmp_path, tls) as desk:
        await desk.looked()
        cert.unlink()
        desk.write({**tls, "queue": {"size": 1}})
        await eventually(lambda: any("cert" in problem for problem in desk.problems))
        cert.write_text("new")
        await desk.adopts()
        await eventually(lambda: not desk.problems)


# --- Connections to providers that are gone -------------------------------------------------------


def outgoing() -> Outgoing:
    return Outgoing("/v1/chat/completions", "", (), b"", "id", b'{"model":"m"}')


@asynccontextmanager
async def connected(*providers: FakeProvider) -> AsyncIterator[tuple[Fleet, Upstream]]:
    upstream = Upstream()
    try:
        yield Fleet(build(settings(*providers))), upstream
    finally:
        upstream.close()


def replace_all(fleet: Fleet, upstream: Upstream, *providers: FakeProvider) -> None:
    upstream.retire(fleet.adopt(build(settings(*providers))))


async def test_idle_connections_to_a_provider_that_is_gone_are_closed_at_once(
    provider: FakeProvider,
) -> None:
    async with connected(provider) as (fleet, upstream):
        await upstream.get(fleet.providers["rig"], "/v1/models", 1_000)
        assert provider.connections == 1
        replace_all(fleet, upstream)
        await eventually(lambda: not provider.connections)


async def test_an_exchange_with_a_provider_that_is_gone_ends_untouched_and_then_its_connection(
    provider: FakeProvider,
) -> None:
    gate = asyncio.Event()
    provider.script = play(wait(gate), completion())
    async with connected(provider) as (fleet, upstream), asyncio.timeout(HANG_S):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_whole_answer(upstream, fleet.providers["rig"]))
            await provider.next_call()
            replace_all(fleet, upstream)
            gate.set()
        assert b"Hello world" in task.result()
        await eventually(lambda: not provider.connections)


async def test_a_lease_on_a_provider_that_is_gone_is_still_good_and_leaves_no_connection(
    provider: FakeProvider,
) -> None:
    async with connected(provider) as (fleet, upstream), asyncio.timeout(HANG_S):
        leased = fleet.providers["rig"]
        replace_all(fleet, upstream)
        for _ in range(2):
            assert b"Hello world" in await _whole_answer(upstream, leased)
            await eventually(lambda: not provider.connections)


async def _whole_answer(upstream: Upstream, provider: Provider) -> bytes:
    with await upstream.open(provider, outgoing()) as exchange:
        body, complete = await exchange.read(10_000, 5)
        assert complete
        return body


async def test_a_thousand_reloads_leave_nothing_behind(provider: FakeProvider) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(thing, Provider) for thing in gc.get_objects())

    before = alive()
    async with connected(provider) as (fleet, upstream), asyncio.timeout(HANG_S):
        late = fleet.providers["rig"]
        for number in range(1_000):
            provider.settings["headers"] = {"X-Number": str(number)}
            replace_all(fleet, upstream, provider)
            await upstream.get(fleet.providers["rig"], "/v1/models", 1_000)
            if number % 10 == 0:  # somebody comes late, as with a lease from before
                await upstream.get(late, "/v1/models", 1_000)
                late = fleet.providers["rig"]
        await eventually(lambda: provider.connections == 1)
        del late
        assert alive() - before == 1


# --- A gateway that takes over another config -----------------------------------------------------


async def test_a_stream_goes_on_while_its_provider_goes(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gate = asyncio.Event()
    provider.script = play(sse(), word("Hel"), wait(gate), word("lo"), done())
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as client:
        await client.send(chat(stream=True))
        await provider.next_call()
        response = await client.head()
        await client.events(response, 1)
        gateway.adopt(build(settings()))
        refused = await ask(gateway.port)
        assert (refused.status, refused.json["error"]["type"]) == (404, "no_provider")
        gate.set()
        while await client.piece(response):
            pass
        assert response.events[-1] == "[DONE]"
    await eventually(lambda: not provider.connections)


@pytest.mark.parametrize("renamed", [False, True], ids=["replaced", "renamed"])
async def test_who_waits_for_a_provider_that_is_another_one_now_is_served_by_that(
    provider: FakeProvider, gateway_for: GatewayFor, renamed: bool
) -> None:
    provider.settings["slots"] = 1
    turns = Turns()
    provider.script = turns
    gateway = await gateway_for(provider)
    async with RawClient(gateway.port) as first, RawClient(gateway.port) as second:
        await first.send(chat())
        await provider.next_call()
        await second.send(chat())
        await waiting(gateway, 1)
        if renamed:
            provider.name = "box"
        else:
            provider.settings["headers"] = {"X-New": "1"}
        gateway.adopt(build(settings(provider)))
        await provider.next_call()
        turns.end(2)
        assert (await first.response()).status == 200
        response = await second.response()
        assert (response.status, response.header("x-gateway-provider")) == (200, provider.name)


async def test_a_request_for_what_a_new_provider_serves_waits_for_its_first_probe(
    provider: FakeProvider, provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    box = await provider_for("box", models=["n"])
    gate = asyncio.Event()
    box.on["/v1/models"] = play(wait(gate), listing("n"))
    gateway = await gateway_for(provider)
    gateway.adopt(build(settings(provider, box)))
    async with RawClient(gateway.port) as client:
        await client.send(chat(b'{"model":"n","messages":[]}'))
        assert (await ask(gateway.port)).status == 200, "who has a provider does not wait"
        gate.set()
        assert (await client.response()).status == 200


async def test_a_file_that_is_still_being_written_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """The first half of a config can be a good one, with half of the users."""
    names = ("alice", "bob", "carl")
    trees: list[dict[str, Any]] = [{"users": {name: {} for name in names[:count]}} for count in (1, 2, 3)]
    async with following(tmp_path, trees[0], every_s=3_600) as desk:
        await eventually(lambda: desk.reloader._taken)  # the first look is over
        look = partial(desk.reloader._check, asked=False)  # so that the test decides when there is one
        await look()
        desk.write(trees[1])
        await look()
        assert not desk.adopted
        desk.write(trees[2])
        await look()
        assert not desk.adopted
        await look()
        assert [list(config.users) for config in desk.adopted] == [list(names)]
