"""Build the files of a release, install each in an empty environment, and chat through it.

Nothing of this checkout is on the path of what is tried, and no cache is used. The version is that of
llmgateway/__init__.py; what is released has a section of its own in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import venv
import zipapp
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import yaml

from llmgateway import __version__
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import settings
from tests.raw_client import RawClient, chat, request

ROOT: Final = Path(__file__).resolve().parent.parent
DIST: Final = ROOT / "dist"
WHEEL: Final = DIST / f"llmgateway-{__version__}-py3-none-any.whl"
SDIST: Final = DIST / f"llmgateway-{__version__}.tar.gz"
PYZ: Final = DIST / "gateway.pyz"
TOOLS: Final = Path(sys.executable).parent
_NO_CACHE: Final = {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
_OURS: Final = frozenset({"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"})


class NotGood(Exception):
    """The release is not good; the text says why."""


def notes(changelog: str, version: str, *, unreleased: bool) -> str:
    """Give what the changelog says of a version. Raises NotGood unless it begins with its dated section."""
    sections = re.split(r"(?m)^## (?=\[)", changelog)[1:]
    head, _, said = sections[0].partition("\n") if sections else ("", "", "")
    dated = re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", head)
    if not dated and not (unreleased and head == f"[Unreleased] - {version}"):
        raise NotGood(f"CHANGELOG.md begins with '## {head}'; write '## [{version}] - YYYY-MM-DD'.")
    if not re.search(r"(?m)^- ", said):
        raise NotGood(f"CHANGELOG.md says nothing of {version}.")
    return said.strip()


def call(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command to its end, and give what it printed. Raises NotGood."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotGood(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


# --- What is built -----------------------------------------------------------------------------------


def build(folder: Path) -> None:
    """Build all files anew; the wheel from the sdist, so that this has all that is needed."""
    shutil.rmtree(DIST, ignore_errors=True)
    call(sys.executable, "-m", "build", "--outdir", DIST, ROOT, cwd=folder)
    build_pyz(folder)


def build_pyz(folder: Path) -> None:
    """Pack the wheel, and those of its needs that are the same on every machine, into one file that runs."""
    wheels, inside = folder / "wheels", folder / "inside"
    locked = ("--requirement", ROOT / "requirements.lock", "--require-hashes")
    call(sys.executable, "-m", "pip", "download", *locked, "--dest", wheels, cwd=folder)
    for wheel in (WHEEL, *sorted(wheels.glob("*-none-any.whl"))):
        if not wheel.name.startswith("redis-"):  # an extra
            shutil.unpack_archive(wheel, inside, "zip")
    shutil.copy(ROOT / "scripts" / "release_start.py", inside / "__main__.py")
    zipapp.create_archive(inside, PYZ, interpreter="/usr/bin/env python3", compressed=True)
    PYZ.chmod(0o755)


# --- How it is installed: a function of an empty folder and its environment, which gives how it is called


def by_pip(what: Path, folder: Path, env: Mapping[str, str]) -> list[str]:
    venv.create(folder / "venv", with_pip=True)
    call(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", what, cwd=folder, env=env)
    return [str(folder / "venv/bin/llmgateway")]


def by_pipx(folder: Path, env: Mapping[str, str]) -> list[str]:
    places = {"PIPX_HOME": str(folder / "pipx"), "PIPX_BIN_DIR": str(folder / "bin")}
    call(TOOLS / "pipx", "install", "--python", sys.executable, WHEEL, cwd=folder, env={**env, **places})
    return [str(folder / "bin/llmgateway")]


def by_uv(folder: Path, env: Mapping[str, str]) -> list[str]:
    places = {"UV_TOOL_DIR": str(folder / "uv"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    call(
        TOOLS / "uv", "tool", "install", "--python", sys.executable, WHEEL, cwd=folder, env={**env, **places}
    )
    return [str(folder / "bin/llmgateway")]


def by_its_own_words(folder: Path, env: Mapping[str, str]) -> list[str]:
    """Run the one file where nothing is installed, and do what it says."""
    venv.create(folder / "empty", with_pip=False)
    shutil.copy(PYZ, folder)
    python, program = str(folder / "empty/bin/python"), PYZ.name
    told = subprocess.run(
        [python, program], cwd=folder, env=env, capture_output=True, text=True, check=False
    ).stderr
    commands = re.findall(r"(?m)^    (\S+ -m .+)$", told)
    if len(commands) != 2:
        raise NotGood(f"{program} does not tell what to install:\n{told}")
    for command in commands:
        call("sh", "-c", command, cwd=folder, env=env)
    return [str(folder / "gateway.venv/bin/python"), str(folder / program)]


WAYS: Final[Mapping[str, Callable[[Path, Mapping[str, str]], list[str]]]] = {
    "wheel": lambda folder, env: by_pip(WHEEL, folder, env),
    "sdist": lambda folder, env: by_pip(SDIST, folder, env),
    "pipx": by_pipx,
    "uv": by_uv,
    "pyz": by_its_own_words,
}


# --- How it is tried -----------------------------------------------------------------------------------


async def try_out(program: list[str], folder: Path, env: Mapping[str, str]) -> None:
    """Ask an installed program what it is, and chat through it. Raises NotGood."""
    if (told := call(*program, "--version", cwd=folder, env=env).strip()) != __version__:
        raise NotGood(f"it says that it is {told}")
    (folder / "example.yaml").write_text(call(*program, "example", cwd=folder, env=env))
    if (folder / "example.yaml").read_bytes() != (ROOT / "config.example.yaml").read_bytes():
        raise NotGood("its example config is not that of this checkout")
    async with FakeProvider("rig") as provider:
        (folder / "config.yaml").write_text(yaml.safe_dump(settings(provider)))
        process = await asyncio.create_subprocess_exec(
            *program, "--port", "0", cwd=folder, env=env, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(HANG_S):
                await _chat(await _port(process), provider)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


async def _port(process: asyncio.subprocess.Process) -> int:
    said = b""
    while process.stderr is not None and (line := await process.stderr.readline()):
        if found := re.search(rb"listening on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
        said += line
    raise NotGood(f"it ended without listening:\n{said.decode(errors='replace')}")


async def _chat(port: int, provider: FakeProvider) -> None:
    for message in (request("GET", "/gateway/"), chat(), chat(stream=True)):
        async with RawClient(port) as client:
            await client.send(message)
            if (answer := await client.response()).status != 200:
                raise NotGood(f"{message[:40]!r} is answered with {answer.status}: {answer.body!r}")
    if len(provider.calls) != 2:
        raise NotGood(f"the provider was asked {len(provider.calls)} times, not twice")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument(
        "--try", action="store_true", dest="unreleased", help="the changelog needs no date yet"
    )
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of: {' '.join(WAYS)} (all)")
    given = parser.parse_args()
    if unknown := {*given.ways} - {*WAYS}:
        parser.error(f"no such way: {' '.join(sorted(unknown))}")
    env = {name: value for name, value in os.environ.items() if name not in _OURS} | _NO_CACHE
    try:
        said = notes((ROOT / "CHANGELOG.md").read_text("utf-8"), __version__, unreleased=given.unreleased)
        with TemporaryDirectory() as folder:
            build(Path(folder))
        (DIST / "NOTES.md").write_text(said + "\n", "utf-8")
        for way in given.ways or WAYS:
            with TemporaryDirectory() as folder:
                asyncio.run(try_out(WAYS[way](Path(folder), env), Path(folder), env))
            print(f"ok      {way}", flush=True)
    except NotGood as problem:
        print(f"scripts/release: {problem}", file=sys.stderr)
        return 1
    print(f"dist has {__version__}: {', '.join(sorted(each.name for each in DIST.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
