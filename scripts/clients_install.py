"""Brings clients onto this machine, each into a folder of its own, outside of the repository."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from clients_kinds import Client

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmgateway" / "clients"
INSTALL_S: Final = 900.0
_VERSION: Final = (
    "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1].split('[')[0]))"
)


class NotRun(Exception):
    """A client that cannot be had here; says why."""


async def installed(client: Client, *, upgrade: bool) -> tuple[Path, str]:
    """Install a client unless it is there; gives the folder of its programs, and its version."""
    folder = CACHE / ("npm" if client.npm else "pypi") / client.slug
    ready = folder / "ready"
    wanted = " ".join(client.packages)
    if upgrade or not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        await (_from_npm if client.npm else _from_pypi)(client, folder)
        ready.write_text(wanted)
    if client.npm:
        package = folder / "node_modules" / client.packages[0] / "package.json"
        return folder / "node_modules" / ".bin", json.loads(package.read_text())["version"]
    python = folder / "venv" / "bin" / "python"
    return python.parent, (await _done(str(python), "-c", _VERSION, client.packages[0])).strip()


async def _from_pypi(client: Client, folder: Path) -> None:
    venv = str(folder / "venv")
    if uv := shutil.which("uv"):  # quicker by far
        await _done(uv, "venv", "--python", sys.executable, venv)
        await _done(uv, "pip", "install", "--python", f"{venv}/bin/python", *client.packages)
    else:
        await _done(sys.executable, "-m", "venv", venv)
        await _done(f"{venv}/bin/python", "-m", "pip", "install", "--quiet", *client.packages)


async def _from_npm(client: Client, folder: Path) -> None:
    if not (npm := shutil.which("npm")):
        raise NotRun("npm is not installed")
    await _done(npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *client.packages)


async def _done(*command: str) -> str:
    """Run a command to its end; gives what it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(INSTALL_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise NotRun(f"not installed within {INSTALL_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise NotRun(f"not installed: {(err or out).decode(errors='replace').strip().splitlines()[-1][:200]}")
    return out.decode()
