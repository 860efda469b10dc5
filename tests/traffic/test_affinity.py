"""Which conversation a request goes on, and how much is remembered of all of them."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgateway.api.peek import peek_json
from llmgateway.traffic.affinity import (
    LIVE_S,
    MAX_AGE_S,
    MAX_CHAINS,
    MAX_LINKS,
    MAX_SYSTEM_PROMPTS,
    Affinity,
    Thread,
    thread_of,
)

Message = dict[str, Any]
SYSTEM: Message = {"role": "system", "content": "You are a patient helper. " * 100}


def says(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


HELLO, ANSWER, MORE = says("user", "Hello"), says("assistant", "Hi!"), says("user", "Tell me more")


def chat(*messages: Message, user: str = "ann", model: str = "m", session: bytes | None = None) -> Thread:
    body = json.dumps({"model": model, "messages": messages}).encode()
    return thread_of(peek_json(body), user=user, session=session)


def request(user: str = "ann", session: bytes | None = None, **body: Any) -> Thread:
    return thread_of(peek_json(json.dumps({"model": "m", **body}).encode()), user=user, session=session)


def home(before: Thread, after: Thread) -> str | None:
    """Where `after` is at home, if `before` was given to `rig`."""
    affinity = Affinity()
    affinity.remember(before, "rig", now=0)
    found = affinity.find(after, now=1)
    return None if found is None else str(found.home)


# --- the chain of messages ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        ([SYSTEM, HELLO], [SYSTEM, HELLO, ANSWER, MORE], True),
        ([HELLO], [HELLO, ANSWER, MORE], True),
        ([HELLO], [HELLO], True),
        ([SYSTEM, HELLO], [SYSTEM, HELLO], True),
        ([SYSTEM, HELLO], [SYSTEM, MORE], False),
        ([SYSTEM, HELLO], [SYSTEM], False),
        ([SYSTEM], [SYSTEM], False),
        ([SYSTEM], [SYSTEM, HELLO], False),
        ([HELLO], [SYSTEM, HELLO], False),
        ([HELLO, ANSWER, MORE], [HELLO, says("assistant", "Ho!"), MORE], False),
        ([HELLO], [says("user", "Hello "), ANSWER, MORE], False),
    ],
)
def test_a_request_goes_on_a_conversation_whose_messages_it_begins_with(
    before: list[Message], after: list[Message], goes_on: bool
) -> None:
    assert (home(chat(*before), chat(*after)) == "rig") is goes_on


def test_a_conversation_is_known_over_many_turns() -> None:
    affinity, messages = Affinity(), [SYSTEM]
    for turn in range(50):
        messages += [says("user", f"question {turn}")]
        thread = chat(*messages)
        found = affinity.find(thread, now=turn)
        assert (found is None) is (turn == 0)
        affinity.remember(thread, "rig", now=turn)
        messages += [says("assistant", f"answer {turn}")]
    assert affinity.living(now=50)["rig"] == 1


def test_an_edited_last_message_goes_back_to_the_home_and_so_does_a_second_answer() -> None:
    affinity = Affinity()
    first, second = [SYSTEM, HELLO], [SYSTEM, HELLO, ANSWER, MORE]
    for messages in (first, second):
        affinity.remember(chat(*messages), "rig", now=0)
    for again in (second, [*second[:-1], says("user", "Tell me less")]):
        found = affinity.find(chat(*again), now=1)
        assert found is not None
        assert found.home == "rig"


def test_tools_that_answer_belong_to_the_chain() -> None:
    called = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "tool_call_id": "1", "content": "42"}
    assert home(chat(HELLO, called), chat(HELLO, called, result)) == "rig"


def test_the_longest_known_chain_wins() -> None:
    affinity = Affinity()
    affinity.remember(chat(HELLO), "old", now=0)
    fork = chat(HELLO, ANSWER, MORE)
    affinity.remember(fork, "new", now=1)
    found = affinity.find(chat(HELLO, ANSWER, MORE, ANSWER, HELLO), now=2)
    assert found is not None
    assert found.home == "new"


def test_different_users_and_different_models_never_match() -> None:
    messages = [SYSTEM, HELLO]
    for session in (None, b"s-1"):
        known = chat(*messages, session=session)
        assert home(known, chat(*messages, session=session)) == "rig"
        assert home(known, chat(*messages, session=session, user="bob")) is None
        assert home(known, chat(*messages, session=session, model="n")) is None


def test_messages_of_many_kinds_reach_the_user_only_with_the_user() -> None:
    developer = says("developer", "Be brief. " * 100)
    assert home(chat(SYSTEM, developer), chat(SYSTEM, developer, HELLO)) is None
    assert home(chat(SYSTEM, developer, HELLO), chat(SYSTEM, developer, MORE)) is None


def test_the_system_prompt_of_the_messages_api_is_no_match_by_itself() -> None:
    system = SYSTEM["content"]
    assert home(request(system=system, messages=[HELLO]), request(system=system, messages=[MORE])) is None
    again = request(system=system, messages=[HELLO, ANSWER, MORE])
    assert home(request(system=system, messages=[HELLO]), again) == "rig"


def test_the_responses_api_is_known_by_its_input() -> None:
    first = request(instructions=SYSTEM["content"], input="Hello")
    assert home(first, request(instructions=SYSTEM["content"], input="Hello")) == "rig"
    assert home(first, request(instructions=SYSTEM["content"], input="Bye")) is None
    series = request(input=[HELLO])
    assert home(series, request(input=[HELLO, ANSWER, MORE])) == "rig"


def test_marks_that_move_from_message_to_message_do_not_break_the_chain() -> None:
    def text(words: str, *, marked: bool) -> list[Message]:
        part: Message = {"type": "text", "text": words}
        return [{**part, "cache_control": {"type": "ephemeral"}} if marked else part]

    first = request(messages=[says("user", text("Hello", marked=True))])
    second = request(
        messages=[says("user", text("Hello", marked=False)), ANSWER, says("user", text("More", marked=True))]
    )
    assert home(first, second) == "rig"


def test_a_message_about_marks_is_not_mistaken_for_one() -> None:
    about = '"cache_control": {"type": "%s"}'
    assert home(chat(says("user", about % "a")), chat(says("user", about % "b"), ANSWER, MORE)) is None


def test_of_a_request_with_absurdly_many_messages_the_longest_chains_are_kept() -> None:
    messages = [says("user", str(number)) for number in range(5 * MAX_LINKS)]
    thread = chat(*messages)
    assert len(thread.links) == MAX_LINKS
    assert home(thread, chat(*messages, ANSWER, MORE)) == "rig"


@pytest.mark.parametrize(
    "length", [3, 63, 64, 65, 128, 129, MAX_LINKS, MAX_LINKS + 64, MAX_LINKS + 65, 3_000]
)
def test_a_long_conversation_is_known_again_at_each_turn(length: int) -> None:
    """Far back it is hashed in blocks; where these end must not depend on what comes later."""
    messages = [says(("user", "assistant")[number % 2], str(number)) for number in range(length + 900)]
    before = chat(*messages[:length])
    for more in (1, 2, 62, 63, 64, 65, 128, 900):
        after = chat(*messages[: length + more])
        assert after.links.index(before.links[-1]) == len(after.links) - 1 - more
        other = chat(MORE, *messages[1 : length + more])
        assert not {*other.links} & {*after.links}
    eve = (length - 1) // 2 * 2  # where the user's last message stands
    assert before.eve == (chat(*messages[:eve]).links[-1] if eve > 1 else None)


# --- the eve of a turn -------------------------------------------------------------------------------


def reminded(number: int, who: str = "", *before: Message) -> list[Message]:
    """Turn `number` of a client that ends the last message, and only that, with a reminder."""
    messages = [SYSTEM, *before]
    for turn in range(number + 1):
        messages += [says("user", f"{who} question {turn}"), says("assistant", f"answer {turn}")]
    return [*messages[:-2], says("user", messages[-2]["content"] + " Answer in JSON.")]


def test_a_turn_is_known_by_what_came_before_the_last_message_of_its_user() -> None:
    assert home(chat(*reminded(0)), chat(*reminded(1))) is None, "they share no more than a system prompt"
    for turn in range(1, 20):
        assert home(chat(*reminded(turn)), chat(*reminded(turn + 1))) == "rig"


def test_what_strangers_open_with_is_no_match_for_another_opening() -> None:
    examples = [HELLO, ANSWER]
    assert home(chat(*reminded(0, "ann", *examples)), chat(*reminded(0, "bob", *examples))) is None


def test_an_eve_that_leads_to_several_providers_leads_to_none() -> None:
    affinity, examples = Affinity(), [HELLO, ANSWER]
    affinity.remember(chat(*reminded(0, "ann", *examples)), "a", now=0)
    ann = affinity.find(chat(*reminded(1, "ann", *examples)), now=1)
    assert ann is not None and ann.home == "a"
    affinity.remember(chat(*reminded(0, "bob", *examples)), "b", now=1)
    for who in ("ann", "bob"):
        assert affinity.find(chat(*reminded(1, who, *examples)), now=2) is None
    affinity.remember(chat(*reminded(0, "cat", *examples)), "b", now=MAX_AGE_S + 2)
    cat = affinity.find(chat(*reminded(1, "cat", *examples)), now=MAX_AGE_S + 3)
    assert cat is not None and cat.home == "b"


def test_a_reminded_conversation_is_one_and_moves_as_one() -> None:
    affinity = Affinity()
    for turn in range(1, 9):
        affinity.remember(chat(*reminded(turn)), "a" if turn < 6 else "b", now=turn)
    assert (affinity.living(now=9)["a"], affinity.living(now=9)["b"]) == (0, 1)


def test_eves_count_among_the_chains() -> None:
    affinity = Affinity(max_chains=10)
    for turn in range(1, 30):
        affinity.remember(chat(*reminded(turn)), "a", now=turn)
        assert len(affinity) <= 10
    assert affinity.find(chat(*reminded(30)), now=30) is not None


# --- other ways to be known --------------------------------------------------------------------------


def test_a_session_id_and_what_is_said_first_are_enough_whatever_becomes_of_the_rest() -> None:
    long, pruned = (HELLO, ANSWER, MORE), (HELLO, says("assistant", "(pruned)"), says("user", "So?"))
    for session in (b"s-1", b"s-\xff"):
        assert home(chat(*long, session=session), chat(*pruned, session=session)) == "rig"
        assert home(chat(*long, session=session), chat(MORE, session=session)) is None
        assert home(chat(SYSTEM, *long, session=session), chat(SYSTEM, MORE, session=session)) is None
    assert home(chat(*long), chat(*pruned)) is None
    assert home(chat(HELLO, session=b"s-1"), chat(HELLO, session=b"s-12")) is None
    assert home(chat(HELLO, session=b"s-1"), chat(HELLO)) is None
    assert home(request(session=b"s-1", prompt="Once"), request(session=b"s-1", prompt="Upon")) == "rig"


def test_a_session_is_about_the_conversation_that_last_grew() -> None:
    def subject(*messages: Message, home: str, now: float) -> str:
        affinity.remember(thread := chat(*messages, session=b"s-1"), home, now=now)
        found = affinity.subject(thread, now=now)
        assert found is not None
        return str(found.home)

    affinity, task, compacted = Affinity(), says("user", "Make a title"), says("user", "What was said: hello")
    assert affinity.subject(chat(HELLO, session=b"s-1"), now=0) is None
    assert subject(HELLO, home="a", now=0) == "a"
    assert subject(task, home="b", now=1) == "a"
    assert subject(task, home="b", now=2) == "a"
    assert subject(HELLO, ANSWER, MORE, home="a", now=3) == "a"
    assert subject(compacted, home="b", now=4) == "a"
    assert subject(compacted, ANSWER, MORE, home="b", now=5) == "b"
    assert affinity.subject(chat(HELLO), now=5) is None
    assert subject(task, home="c", now=MAX_AGE_S + 6) == "c"


def test_a_request_with_a_session_id_tells_its_system_prompt_all_the_same() -> None:
    assert chat(SYSTEM, HELLO, session=b"s-1").system == chat(SYSTEM, MORE).system is not None
    assert chat(says("system", "Be brief."), HELLO).system is None


def test_a_prompt_of_plain_text_goes_on_when_it_has_grown() -> None:
    story = "Once upon a time there was a gateway. " * 30
    assert home(request(prompt=story), request(prompt=story + "It slept. " * 60)) == "rig"
    assert home(request(prompt=story), request(prompt="Twice " + story)) is None
    assert not request(prompt="Once").known


def test_a_shared_beginning_of_plain_text_is_no_match() -> None:
    preamble = "Translate what follows. " * 100
    assert home(request(prompt=preamble + "one " * 300), request(prompt=preamble + "two " * 300)) is None


@pytest.mark.parametrize("body", [{"input": ["a", "b"]}, {"prompt": ""}, {"messages": []}, {}])
def test_what_says_nothing_is_not_known(body: dict[str, Any]) -> None:
    affinity = Affinity()
    affinity.remember(request(**body), "rig", now=0)
    assert affinity.living(now=0)["rig"] <= 1


# --- homes -------------------------------------------------------------------------------------------


def test_a_conversation_that_moves_lives_in_its_new_home_only() -> None:
    affinity = Affinity()
    affinity.remember(chat(HELLO), "a", now=0)
    affinity.remember(chat(HELLO, ANSWER, MORE), "b", now=1)
    assert (affinity.living(now=1)["a"], affinity.living(now=1)["b"]) == (0, 1)
    found = affinity.find(chat(HELLO), now=2)
    assert found is not None
    assert found.home == "b"


def test_a_conversation_without_a_turn_for_a_while_is_not_live_but_is_known() -> None:
    affinity = Affinity()
    affinity.remember(chat(HELLO), "a", now=0)
    assert affinity.living(now=LIVE_S)["a"] == 1
    assert affinity.living(now=LIVE_S + 1)["a"] == 0
    assert affinity.find(chat(HELLO), now=LIVE_S + 1) is not None


def test_a_conversation_is_forgotten_with_age() -> None:
    affinity = Affinity()
    affinity.remember(chat(HELLO), "a", now=0)
    assert affinity.find(chat(HELLO), now=MAX_AGE_S) is not None
    assert affinity.find(chat(HELLO), now=MAX_AGE_S + 1) is None
    affinity.remember(chat(MORE), "a", now=MAX_AGE_S + 1)
    assert len(affinity) == 1


def test_a_provider_holds_the_system_prompts_it_has_lately_seen() -> None:
    affinity = Affinity()
    affinity.remember(chat(SYSTEM, HELLO), "a", now=0)
    assert "a" not in affinity.holders(chat(SYSTEM, MORE, user="bob"), now=0), "nothing is computed yet"
    affinity.computed(chat(SYSTEM, HELLO), "a", now=0)
    assert "a" in affinity.holders(chat(SYSTEM, MORE, user="bob"), now=1)
    assert "a" not in affinity.holders(chat(SYSTEM, MORE, model="n"), now=1)
    assert "b" not in affinity.holders(chat(SYSTEM, MORE), now=1)
    assert "a" not in affinity.holders(chat(SYSTEM, MORE), now=MAX_AGE_S + 1)


# --- bounds ------------------------------------------------------------------------------------------


def test_memory_is_bounded_however_many_conversations_there_are() -> None:
    chance = Random(1)
    affinity = Affinity()
    tracemalloc.start()
    try:
        for number in range(MAX_CHAINS + 5_000):
            affinity.remember(
                Thread((chance.randbytes(16),), chance.randbytes(16)), f"p{number % 3}", now=number / 50
            )
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(affinity) == MAX_CHAINS
    assert size < 16 << 20


def test_the_system_prompts_of_a_provider_are_bounded_and_the_latest_are_kept() -> None:
    affinity = Affinity()
    threads = [Thread((b"talk",), str(number).encode()) for number in range(2 * MAX_SYSTEM_PROMPTS)]
    for number, thread in enumerate(threads):
        affinity.computed(thread, "a", now=number / 100)
    held = ["a" in affinity.holders(thread, now=20) for thread in threads]
    assert held == [False] * MAX_SYSTEM_PROMPTS + [True] * MAX_SYSTEM_PROMPTS


def test_those_used_least_recently_go_first() -> None:
    affinity = Affinity(max_chains=3)
    threads = [Thread((bytes([number]),)) for number in range(4)]
    for thread in (*threads[:3], threads[0], threads[3]):
        affinity.remember(thread, "a", now=0)
    assert [affinity.find(thread, now=0) is not None for thread in threads] == [True, False, True, True]


def test_a_fork_lives_where_it_was_sent_and_leaves_the_original_at_home() -> None:
    affinity = Affinity()
    affinity.remember(chat(HELLO), "a", now=0)
    affinity.remember(chat(HELLO, ANSWER, MORE), "a", now=1)
    affinity.remember(chat(HELLO, ANSWER, HELLO), "b", now=2)
    original = affinity.find(chat(HELLO, ANSWER, MORE, ANSWER, HELLO), now=3)
    fork = affinity.find(chat(HELLO, ANSWER, HELLO, ANSWER, MORE), now=3)
    assert original is not None and fork is not None
    assert (original.home, fork.home) == ("a", "b")
    assert (affinity.living(now=3)["a"], affinity.living(now=3)["b"]) == (1, 1)


Turn = tuple[int, int, int]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 900)), max_size=60))
def test_a_live_conversation_lives_in_one_place_and_bounds_hold(turns: list[Turn]) -> None:
    affinity, clock, seen = Affinity(max_chains=6), 0, set()
    for talk, where, pause in turns:
        clock += pause
        affinity.remember(Thread((bytes([talk]),)), where, now=clock)
        seen.add(talk)
        found = affinity.find(Thread((bytes([talk]),)), now=clock)
        assert found is not None
        assert found.home == where
        assert len(affinity) <= 6
        assert sum(affinity.living(now=clock)[home] for home in range(3)) <= len(turns)
    assert sum(affinity.living(now=clock + LIVE_S + 1)[home] for home in range(3)) == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 200)), max_size=60))
def test_the_living_are_counted_where_they_had_their_last_turn(turns: list[Turn]) -> None:
    affinity, clock, last = Affinity(), 0, dict[int, tuple[int, int]]()
    for talk, where, pause in turns:
        clock += pause
        affinity.remember(Thread((talk,)), where, now=clock)
        last[talk] = where, clock
        if talk == 9:
            affinity.keep({0, 1})
            last = {each: (home, at) for each, (home, at) in last.items() if home != 2}
        living = Counter(home for home, at in last.values() if clock - at <= LIVE_S)
        assert +affinity.living(now=clock) == living


def test_what_a_provider_that_is_gone_holds_is_forgotten() -> None:
    affinity = Affinity()
    body = b'{"model":"m","messages":[{"role":"user","content":"a"}]}'
    thread = thread_of(peek_json(body), user="u", session=None)
    affinity.remember(thread, "gone", now=0.0)
    affinity.remember(thread, "kept", now=0.0)
    affinity.keep({"kept"})
    assert (affinity.living(now=0.0)["gone"], affinity.living(now=0.0)["kept"]) == (0, 1)
