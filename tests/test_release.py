"""scripts/release: the changelog has a section of the release; gateway.pyz tells what it needs beside it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmgateway import __version__
from tests.guard import HANG_S

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
DATED = "# Changelog\n\n## [1.2.0] - 2026-11-30\n\n- New.\n\n## [1.1.0] - 2026-10-01\n\n- Old.\n"
UNRELEASED = DATED.replace("[1.2.0] - 2026-11-30", "[Unreleased] - 1.2.0")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script by its name."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module


def test_the_notes_of_a_release_are_the_first_section_of_the_changelog(script: Any) -> None:
    notes = script("release").notes
    assert notes(DATED, "1.2.0", unreleased=False) == "- New."
    assert notes(UNRELEASED, "1.2.0", unreleased=True) == "- New."


@pytest.mark.parametrize(
    ("changelog", "why"),
    [
        (UNRELEASED, r"begins with '## \[Unreleased\] - 1.2.0'; write '## \[1.2.0\] - YYYY-MM-DD'"),
        (DATED.replace("1.2.0", "1.2.1"), "begins with"),
        (DATED.replace("2026-11-30", "soon"), "begins with"),
        (DATED.replace("- New.\n", ""), "says nothing of 1.2.0"),
        ("# Changelog\n", "begins with"),
    ],
)
def test_a_release_that_the_changelog_does_not_have_is_none(script: Any, changelog: str, why: str) -> None:
    release = script("release")
    with pytest.raises(release.NotGood, match=why):
        release.notes(changelog, "1.2.0", unreleased=False)


def test_the_changelog_has_a_section_of_this_version(script: Any) -> None:
    assert script("release").notes((ROOT / "CHANGELOG.md").read_text("utf-8"), __version__, unreleased=True)


def distribution(folder: Path, name: str, version: str, *needs: str) -> None:
    """Make a distribution that says this of itself."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (about / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {need}" for need in needs]) + "\n")


def test_what_is_missing_is_what_is_needed_at_any_remove_and_not_here_in_that_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Any
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    distribution(tmp_path, "trial_inside", "1.0", "trial-core==2.0", "trial-top")  # and back: no circle
    distribution(tmp_path, "trial_core", "2.1")
    needs = [
        "trial-inside>=1",
        "trial-binary<3,>=2",
        'trial-other; python_version < "3"',
        'trial-more; extra == "x"',
    ]
    distribution(tmp_path, "trial_top", "1.0", *needs)
    assert script("release_start").missing("trial-top") == ["trial-binary<3,>=2", "trial-core==2.0"]


def test_the_one_file_says_how_to_install_what_it_needs_before_it_imports_any(tmp_path: Path) -> None:
    distribution(tmp_path, "llmgateway", "1.0", "trial-binary<3,>=2")
    started = subprocess.run(
        [sys.executable, SCRIPTS / "release_start.py"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert started.returncode == 1
    assert "pip install 'trial-binary<3,>=2'\n" in started.stderr
    assert "Traceback" not in started.stderr
