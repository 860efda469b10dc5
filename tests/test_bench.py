"""The scripts that measure the gateway run, count only whole answers, and say whom they leave out."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard import HANG_S
from tests.tools import tool

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

ANSWERS_WITHOUT_AN_END = f"""#!{sys.executable}
import asyncio, sys

async def answer(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        length = head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0]
        await reader.readexactly(int(length))
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\ndata: {{}}\\n\\n")

async def main(port):
    async with await asyncio.start_server(answer, "127.0.0.1", port) as server:
        await server.serve_forever()

asyncio.run(main(int(sys.argv[sys.argv.index("--port") + 1])))
"""


sys.path.insert(0, str(SCRIPTS))
try:
    instructions = importlib.import_module("profile_instructions")
finally:
    sys.path.remove(str(SCRIPTS))

SMALL = ("--scale", "0.05")


def run(
    script: str, *arguments: str, small: tuple[str, ...] = SMALL, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with small loads; programs in `path` are found first."""
    searched = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
    return subprocess.run(
        [sys.executable, SCRIPTS / script, "--rounds", "1", *small, *arguments],
        env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)} | searched,
        capture_output=True,
        text=True,
        timeout=3 * HANG_S,
        check=False,
    )


def rows(printed: str) -> list[list[str]]:
    """The rows of all tables, without their heads."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] not in ("path", "function")]


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_direct_the_gateway_and_plain_aiohttp_are_measured_in_one_run() -> None:
    finished = run("bench.py", "--paths", "direct,gateway,plain-aiohttp")
    assert (finished.returncode, finished.stderr) == (0, "")
    table = rows(finished.stdout)
    assert [cells[0] for cells in table] == ["direct", "gateway", "plain-aiohttp"] * 2
    assert [cells[1].endswith("(1.00)") for cells in table] == [False, True, False] * 2
    numbers = [float(cell.split()[0].replace(",", "")) for cells in table for cell in cells[1:]]
    assert min(numbers) > 0


def test_a_peer_that_fails_is_left_out_with_a_word(tmp_path: Path) -> None:
    program(tmp_path, "caddy", "#!/bin/sh\necho no such thing >&2\nexit 3\n")
    program(tmp_path, "vllm-router", ANSWERS_WITHOUT_AN_END)
    finished = run("bench.py", "--paths", "direct,caddy,vllm-router", "--loads", "one", path=tmp_path)
    assert finished.returncode == 0
    assert finished.stderr.splitlines() == [
        "caddy is left out: it did not start: no such thing",
        "vllm-router is left out: a stream ended without [DONE]",
    ]
    assert [cells[0] for cells in rows(finished.stdout)] == ["direct"]


def test_several_gateways_are_measured_beside_one() -> None:
    tool("haproxy")
    finished = run("bench_instances.py")
    assert (finished.returncode, finished.stderr) == (0, "")
    table = [cells for cells in rows(finished.stdout) if cells[0] != "gateways"]
    assert [cells[0] for cells in table] == ["1, without HAProxy", "1", "2", "3"]
    assert (table[1][2], table[1][8]) == ("1.00", "1.00")
    assert all(float(cells[1].replace(",", "")) > 0 for cells in table)


def test_what_grows_is_measured_beside_another_checkout() -> None:
    small = ("--most", "100", "--beside", str(SCRIPTS.parent))
    finished = run("bench_growth.py", "waiting", "conversing", small=small)
    assert (finished.returncode, finished.stderr) == (0, "")
    waiting, conversing = (row for row in rows(finished.stdout) if "->" in row[1])
    assert waiting[:2] == ["100 wait for 10 providers, 10 users", "100 -> 100"]
    cells = [cell for row in (waiting, conversing) for cell in row[2:]]
    numbers = [float(number.replace(",", "")) for cell in cells for number in cell.split(" -> ")]
    assert len(numbers) == 2 * len(cells)
    assert min(numbers[2:]) > 0  # a burst of a hundred may take no hundredth of a second


@pytest.mark.parametrize("arguments", [("--paths", "direct,apache"), ("--loads", "huge")], ids=" ".join)
def test_what_there_is_not_is_said(arguments: tuple[str, ...]) -> None:
    finished = run("bench.py", *arguments)
    assert finished.returncode != 0
    assert f"There is no {arguments[1].split(',')[-1]}" in finished.stderr


def test_a_profile_tells_what_a_request_and_a_chunk_cost() -> None:
    finished = run("profile_costs.py", "--by", "total")
    assert (finished.returncode, finished.stderr) == (0, "")
    request, chunk = finished.stdout.split("A chunk (")
    assert "| function |" in request  # of which functions, is chance in so short a time
    assert "us of CPU" in request and "us of CPU" in chunk


COUNTED = """\
desc: Trigger: Client Request: llmgateway/api/peek.py peek_json
totals: 30
desc: Trigger: Client Request: (event loop)
totals: 5
desc: Trigger: Client Request: llmgateway/web/pressure.py Pressure.look
totals: 7
desc: Trigger: Client Request: llmgateway/api/peek.py peek_json
totals: 10
desc: Trigger: Client Request: end
totals: 1
"""


def test_instructions_are_added_up_by_function_but_for_what_goes_by_time() -> None:
    assert list(instructions.windows(COUNTED * 2)) == 2 * [
        {"llmgateway/api/peek.py peek_json": 40, "(event loop)": 5}
    ]


def test_whatever_of_the_gateway_a_request_runs_through_belongs_to_a_part() -> None:
    folder = SCRIPTS.parent / "llmgateway"
    wings = ("access", "api", "books", "fleet", "http", "servers", "traffic", "web")
    modules = [
        f"llmgateway/{path.relative_to(folder)} f" for wing in wings for path in (folder / wing).rglob("*.py")
    ]
    assert [module for module in modules if instructions.part_of(module) == instructions.REST] == []
