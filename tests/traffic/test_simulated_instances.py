"""A small run of scripts/simulate_instances: what docs/scaling.md says of several gateways holds."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.guard import HANG_S

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = {"instances": 4, "providers": 8, "slots": 4, "users": 200, "clients": 24, "seconds": 240.0}
"""More is asked than the machines can do."""
CALM = {**SMALL, "slots": 8, "clients": 12, "seconds": 300.0}


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("simulate_instances")
    finally:
        sys.path.remove(str(SCRIPTS))


def simulated(script: Any, layout: int, **scale: Any) -> Any:
    """What came of one of the layouts: alone, hashed, anywhere, split."""
    return script.simulate(script.Scale(**scale), script.LAYOUTS[layout])


def test_a_simulation_is_the_same_every_time(script: Any) -> None:
    assert simulated(script, 1, **CALM) == simulated(script, 1, **CALM)


def test_where_slots_divide_nobody_waits_at_a_server(script: Any) -> None:
    assert simulated(script, 1, **SMALL).at_machine_s == 0


def test_where_there_are_fewer_slots_than_gateways_requests_meet_at_the_servers(script: Any) -> None:
    few = {**SMALL, "slots": 2, "providers": 16}
    assert simulated(script, 1, **few).at_machine_s > 0
    assert simulated(script, 3, **few).at_machine_s == 0


def test_conversations_are_met_again_by_the_gateway_that_knows_them_only(script: Any) -> None:
    assert simulated(script, 1, **CALM).hits > 1.5 * simulated(script, 2, **CALM).hits


def test_a_light_user_waits_less_than_the_heaviest(script: Any) -> None:
    async def story() -> tuple[float, float]:
        world = script.World(script.Scale(**SMALL), script.LAYOUTS[1])
        await world.go_on()
        return script.outcome(world).wait_s, fmean(world.users[0].waits)

    light_s, heavy_s = script.run(story())
    assert light_s < heavy_s / 2


def test_jains_index_is_one_for_equals_and_small_for_one_who_has_all(script: Any) -> None:
    assert script.jain([3.0, 3.0, 3.0]) == 1
    assert script.jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)


def test_the_table_has_a_row_for_each_layout() -> None:
    options = ("--instances=2", "--providers=2", "--slots=2", "--users=30", "--clients=3", "--seconds=200")
    done = subprocess.run(
        [sys.executable, SCRIPTS / "simulate_instances.py", *options],
        cwd=SCRIPTS.parent,
        env={"PYTHONPATH": str(SCRIPTS.parent)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heading, _, *rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[0][0] == "| one big gateway"
    assert [len(row) for row in rows] == [len(heading)] * 4
