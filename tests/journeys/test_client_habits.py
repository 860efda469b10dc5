"""Clients that change their own words from turn to turn, or ask aside: where their conversations are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import GatewayFor, ProviderFor
from tests.crowd import ask, crowd
from tests.fake_provider import FakeProvider
from tests.journey import eventually
from tests.raw_client import Response, chat, request
from tests.script import stall

Message = dict[str, Any]
SYSTEM: Message = {"role": "system", "content": "Act as an expert software developer. " * 40}
EXAMPLES: list[Message] = [
    {"role": "user", "content": "Change get_factorial() to use math.factorial"},
    {"role": "assistant", "content": "To make this change we need to modify mathweb/flask/app.py."},
    {"role": "user", "content": "I switched to a new code base."},
    {"role": "assistant", "content": "Ok."},
]
REMINDER = "\n\nTo suggest changes to a file you MUST return a SEARCH/REPLACE block."


@pytest.fixture
async def three(provider_for: ProviderFor) -> list[FakeProvider]:
    return [await provider_for(name) for name in ("rig", "other", "third")]


def says(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def reminded_after(message: Message) -> list[Message]:
    """As aider does it."""
    return [{**message, "content": message["content"] + REMINDER}]


def reminded_before(message: Message) -> list[Message]:
    """As Qwen Code does it with the date."""
    reminder = {"type": "text", "text": "<system-reminder>Today is Monday.</system-reminder>"}
    return [{"role": "user", "content": [reminder, {"type": "text", "text": message["content"]}]}]


def reminded_by_a_message(message: Message) -> list[Message]:
    return [message, says("user", REMINDER)]


def reminded_by_the_system(message: Message) -> list[Message]:
    return [*reminded_after(message), says("system", REMINDER)]


def content_first(message: Message) -> list[Message]:
    """The same, by a client that writes the role behind the content."""
    return [{"content": message["content"] + REMINDER, "role": "user"}]


HABITS = [
    reminded_after,
    reminded_before,
    reminded_by_a_message,
    reminded_by_the_system,
    content_first,
]


class Talk:
    """A conversation of a client that decorates the last message of its user only."""

    def __init__(
        self, name: str, habit: Any = reminded_after, opening: Sequence[Message] = (SYSTEM,)
    ) -> None:
        self.name = name
        self.habit = habit
        self.said = list(opening)
        self.turns = 0
        self.homes: list[str] = []
        self.told: list[str] = []

    async def turn(self, port: int, *headers: str) -> None:
        self.turns += 1
        question = says("user", f"{self.name} asks for the {self.turns}. time")
        response = await post(port, [*self.said, *self.habit(question)], *headers)
        self.homes.append(response.header("x-gateway-provider") or "")
        self.told.append(response.header("x-gateway-affinity") or "")
        self.said += [question, says("assistant", f"answer {self.turns} to {self.name}")]


async def post(port: int, messages: Sequence[Message], *headers: str) -> Response:
    response = await ask(port, chat(json.dumps({"model": "m", "messages": messages}).encode(), *headers))
    assert response.status == 200
    return response


async def somebody_else(port: int, number: int) -> None:
    await post(port, [says("user", f"somebody else {number}")])


# --- a reminder that moves ---------------------------------------------------------------------------


@pytest.mark.parametrize("habit", HABITS)
async def test_a_conversation_whose_last_message_carries_a_reminder_stays_at_home(
    three: list[FakeProvider], gateway_for: GatewayFor, habit: Any
) -> None:
    gateway = await gateway_for(*three)
    talk = Talk("ann", habit)
    for number in range(12):
        await talk.turn(gateway.port)
        await somebody_else(gateway.port, number)
    assert talk.told[2:] == ["hit"] * 10
    assert len(set(talk.homes[1:])) == 1


async def test_on_the_messages_api_too(three: list[FakeProvider], gateway_for: GatewayFor) -> None:
    gateway = await gateway_for(*three)
    said: list[Message] = []
    told = []
    for number in range(6):
        question = says("user", f"question {number}")
        body = {"model": "m", "system": "Be brief.", "messages": [*said, *reminded_before(question)]}
        response = await ask(gateway.port, request("POST", "/v1/messages", body=json.dumps(body).encode()))
        told.append(response.header("x-gateway-affinity"))
        said += [question, says("assistant", f"answer {number}")]
    assert told[2:] == ["hit"] * 4


async def test_tools_that_are_called_in_a_reminded_turn_stay_with_it(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    said, told = [SYSTEM], []
    for number in range(5):
        question, turn = says("user", f"question {number}"), list[Message]()
        for step in range(4):
            response = await post(gateway.port, [*said, *reminded_after(question), *turn])
            told.append(response.header("x-gateway-affinity"))
            call = {"id": f"{number}{step}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            turn += [
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": str(step)},
            ]
        said += [question, *turn, says("assistant", f"answer {number}")]
    assert [number for number, one in enumerate(told) if one != "hit"] == [0, 4], "the first two turns begin"


@pytest.mark.parametrize("opening", [[SYSTEM], [SYSTEM, *EXAMPLES]], ids=["a system prompt", "and examples"])
async def test_strangers_that_open_alike_are_not_piled_up_by_their_reminders(
    three: list[FakeProvider], gateway_for: GatewayFor, opening: list[Message]
) -> None:
    gateway = await gateway_for(*three)
    talks = [Talk(f"stranger {number}", opening=opening) for number in range(20)]
    for turn in range(6):
        for talk in talks:
            await talk.turn(gateway.port)
        spread = Counter(talk.homes[-1] for talk in talks)
        assert len(spread) == 3 and max(spread.values()) <= 10, (turn, spread)
    for talk in talks:
        assert talk.told[2:] == ["hit"] * 4
        assert len(set(talk.homes[2:])) == 1


async def test_a_conversation_that_forks_under_a_reminder_goes_on_twice(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    trunk = Talk("ann")
    for _ in range(3):
        await trunk.turn(gateway.port)
    fork = Talk("dan", opening=trunk.said)
    for number in range(4):
        await trunk.turn(gateway.port)
        await fork.turn(gateway.port)
        await somebody_else(gateway.port, number)
    assert trunk.told[2:] == ["hit"] * 5
    assert fork.told == ["hit"] * 4
    assert len({*trunk.homes[2:], *fork.homes}) == 1, "nothing was full, so nobody had to leave"


# --- asides in a session -----------------------------------------------------------------------------


CHAT = "X-OpenWebUI-Chat-Id: 1"
TASK = "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
ASIDES: dict[str, list[Message]] = {
    "a task": [says("user", TASK)],
    "a task under the system prompt of the conversation": [SYSTEM, says("user", TASK)],
    "the same words under another system prompt": [says("system", TASK), says("user", "ann asks")],
    "a task of several messages": [says("user", TASK), says("assistant", "Go on"), says("user", "ann asks")],
    "another conversation": [says("user", "hi"), says("assistant", "hi"), says("user", "and then?")],
}


def providers_by(response: Response) -> tuple[str, str]:
    return response.header("x-gateway-provider") or "", response.header("x-gateway-affinity") or ""


@pytest.mark.parametrize("slots", [1, None], ids=["one slot", "slots unknown"])
@pytest.mark.parametrize("aside", ASIDES.values(), ids=ASIDES.keys())
async def test_what_is_asked_aside_in_a_session_leaves_the_conversation_its_slot(
    provider_for: ProviderFor, gateway_for: GatewayFor, aside: list[Message], slots: int | None
) -> None:
    capacity = {} if slots is None else {"slots": slots}
    gateway = await gateway_for(*[await provider_for(name, **capacity) for name in ("rig", "other")])
    talk = [SYSTEM, says("user", "ann asks")]
    home, _ = providers_by(await post(gateway.port, talk, CHAT))
    for turn in range(4):
        for _ in range(3):
            at, _ = providers_by(await post(gateway.port, [*aside, says("user", str(turn))], CHAT))
            assert at != home
        at, _ = providers_by(await post(gateway.port, aside, CHAT))
        assert at != home
        talk += [says("assistant", f"answer {turn}"), says("user", f"question {turn}")]
        assert providers_by(await post(gateway.port, talk, CHAT)) == (home, "hit")


async def test_a_task_may_go_to_the_home_of_its_conversation_where_a_slot_beside_it_is_free(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    rig, other = await provider_for("rig", slots=2), await provider_for("other", slots=2)
    gateway = await gateway_for(rig, other)
    home, _ = providers_by(await post(gateway.port, [says("user", "ann asks")], CHAT))
    at_home, away = (rig, other) if home == "rig" else (other, rig)
    away.script = stall()
    async with crowd(gateway.port) as send:
        busy = json.dumps({"model": "m", "messages": [says("user", "somebody else")]}).encode()
        for number in range(2):
            await send(chat(busy, "X-Session-Id: 2"))
            await eventually(lambda number=number: len(away.calls) == number + 1)  # type: ignore[misc]
        assert providers_by(await post(gateway.port, [says("user", TASK)], CHAT)) == (home, "miss")
    assert len(at_home.calls) == 2


async def test_a_task_waits_for_nobody_where_there_is_no_other_provider(
    provider_for: ProviderFor, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(await provider_for("rig", slots=1))
    talk = [says("user", "ann asks")]
    await post(gateway.port, talk, CHAT)
    assert providers_by(await post(gateway.port, [says("user", TASK)], CHAT)) == ("rig", "miss")
    talk += [says("assistant", "answer"), says("user", "and then?")]
    assert providers_by(await post(gateway.port, talk, CHAT)) == ("rig", "hit")


async def test_a_conversation_whose_middle_a_client_rewrites_is_known_by_its_session(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    first = says("user", "ann asks")
    home, _ = providers_by(await post(gateway.port, [SYSTEM, first], CHAT))
    for turn in range(4):
        await somebody_else(gateway.port, turn)
        pruned = [SYSTEM, first, says("assistant", f"what was said until {turn}"), says("user", "and then?")]
        assert providers_by(await post(gateway.port, pruned, CHAT)) == (home, "hit")


async def test_a_conversation_that_was_compacted_stays_where_it_goes_on(
    three: list[FakeProvider], gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(*three)
    before, _ = providers_by(await post(gateway.port, [says("user", "ann asks")], CHAT))
    talk = [says("user", "What was said: ann asked.")]
    home, affinity = providers_by(await post(gateway.port, talk, CHAT))
    assert affinity == "miss" and home != before
    for turn in range(4):
        talk += [says("assistant", f"answer {turn}"), says("user", f"question {turn}")]
        assert providers_by(await post(gateway.port, talk, CHAT)) == (home, "hit")
        assert providers_by(await post(gateway.port, [says("user", f"{TASK} {turn}")], CHAT))[0] != home
