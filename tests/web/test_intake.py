"""Turns of the loop are short however many come at once."""

from __future__ import annotations

import asyncio

from llmgateway.web.intake import AT_A_TURN, BEGIN_EVERY_S, MOST_WAITING, Intake


def begin(intake: Intake) -> asyncio.Future[None] | None:
    """Begin, or give what is to be waited for."""
    return None if intake.begins() else intake.turn()


class Crowded:
    """An intake to which many came in one turn, and a clock that stands still unless it is moved."""

    def __init__(self, waiting: int) -> None:
        self.now = 0.0
        self.intake = Intake(asyncio.get_running_loop(), lambda: self.now)
        self.turns = [begin(self.intake) for _ in range(AT_A_TURN + waiting)]

    @property
    def begun(self) -> list[bool]:
        return [turn is None or turn.done() for turn in self.turns]

    @property
    def count(self) -> int:
        return sum(self.begun)


async def one_turn() -> None:
    await asyncio.sleep(0)


async def test_a_few_begin_in_one_turn_and_the_others_in_those_behind_it_in_the_order_of_their_coming() -> (
    None
):
    crowded = Crowded(waiting=2 * AT_A_TURN + 1)
    for turn in (1, 2, 3):
        assert crowded.begun == [True] * turn * AT_A_TURN + [False] * (len(crowded.turns) - turn * AT_A_TURN)
        await one_turn()
    assert all(crowded.begun)


async def test_who_comes_later_waits_behind_those_that_wait() -> None:
    crowded = Crowded(waiting=AT_A_TURN + 1)
    await one_turn()
    late = begin(crowded.intake)
    assert late is not None and not late.done()
    await one_turn()
    assert late.done() and all(crowded.begun)


async def test_nobody_waits_where_few_come_in_each_turn() -> None:
    intake = Intake(asyncio.get_running_loop(), lambda: 0.0)
    for _ in range(3):
        assert [begin(intake) for _ in range(AT_A_TURN)] == [None] * AT_A_TURN
        await one_turn()


async def test_a_turn_that_took_long_for_other_reasons_lets_more_begin() -> None:
    crowded = Crowded(waiting=100)
    crowded.now = 20 * BEGIN_EVERY_S
    await one_turn()
    assert crowded.count == AT_A_TURN + 20


async def test_time_in_which_nobody_came_makes_no_turn_long() -> None:
    intake, now = Intake(asyncio.get_running_loop(), lambda: now), 0.0
    assert begin(intake) is None
    await one_turn()
    now = 3600.0
    turns = [begin(intake) for _ in range(1_000)]
    await one_turn()
    assert sum(turn is None or turn.done() for turn in turns) == 2 * AT_A_TURN


async def test_a_client_that_has_left_takes_nobodys_turn() -> None:
    crowded = Crowded(waiting=2 * AT_A_TURN)
    for turn in crowded.turns[AT_A_TURN : 2 * AT_A_TURN]:
        assert turn is not None and turn.cancel()
    await one_turn()
    assert all(crowded.begun)


async def test_where_all_are_to_wait_the_first_does_and_later_none_who_is_not_too_many() -> None:
    crowded = Crowded(waiting=0)
    crowded.intake.have_all_wait(True)
    await one_turn()
    turn = begin(crowded.intake)
    assert turn is not None
    await turn
    await one_turn()
    assert not crowded.intake.begins()
    crowded.intake.have_all_wait(False)
    assert crowded.intake.begins()


async def test_how_late_it_is_is_how_long_the_first_has_waited() -> None:
    crowded = Crowded(waiting=1)
    assert crowded.intake.late_s(now=1.5) == 1.5
    await one_turn()
    assert crowded.intake.late_s(now=1.5) == 0.0


async def test_there_is_a_bound_on_those_that_wait() -> None:
    assert not Crowded(waiting=MOST_WAITING - 1).intake.full
    assert Crowded(waiting=MOST_WAITING).intake.full
