"""A run of the tests says at its end which programs were missing, and skips nothing where all must run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guard import HANG_S
from tests.tools import what_was_skipped

ROOT = Path(__file__).resolve().parent.parent
WANTS_PROMTOOL = "tests/test_contrib.py::test_promtool_accepts_the_alerts_and_sees_them_fire"
WITH_REDIS = "tests/traffic/test_shared.py::test_never_more_than_so_many_in_any_window"


def run_tests(bin_folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a test where no program is installed but what is in /usr/sbin."""
    left_out = "LLMGATEWAY_TEST_ALL", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        env={name: value for name, value in os.environ.items() if name not in left_out}
        | {"PATH": str(bin_folder), **environ},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3 * HANG_S,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("-n", "0", WANTS_PROMTOOL), "promtool"),
        (("-n", "1", WANTS_PROMTOOL), "promtool"),
        (("-n", "0", WITH_REDIS), "redis-server"),  # which a fixture of it wants
    ],
)
def test_a_run_names_the_programs_that_were_missing(
    tmp_path: Path, arguments: tuple[str, ...], missing: str
) -> None:
    finished = run_tests(tmp_path, *arguments)
    assert finished.returncode == 0, finished.stdout
    assert f"skipped 1 test: missing {missing}" in finished.stdout.splitlines()


def test_where_all_tests_must_run_a_missing_program_fails_them(tmp_path: Path) -> None:
    finished = run_tests(tmp_path, "-n", "0", WANTS_PROMTOOL, LLMGATEWAY_TEST_ALL="1")
    assert finished.returncode == 1
    assert "promtool is not installed, and LLMGATEWAY_TEST_ALL=1" in finished.stdout
    assert "skipped" not in finished.stdout


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ([], ""),
        (["Skipped: nginx is not installed"], "skipped 1 test: missing nginx"),
        (
            ["nginx is not installed", "Skipped: caddy is not installed", "nginx is not installed"],
            "skipped 3 tests: missing caddy, nginx",
        ),
        (["there is no IPv6 here"], "skipped 1 test: there is no IPv6 here"),
        (
            ["there is no IPv6 here", "nginx is not installed"],
            "skipped 2 tests: missing nginx; there is no IPv6 here",
        ),
    ],
)
def test_what_was_skipped_is_said_in_one_line(reasons: list[str], said: str) -> None:
    assert what_was_skipped(reasons) == said
