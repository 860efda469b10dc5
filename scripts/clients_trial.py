"""Runs one client as its page says, in a home of its own, with everything and with a wrong key."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from clients_kinds import Client
from clients_page import ADDRESS, EMBEDDINGS, KEY, MODEL, Settings, settings_of

PROGRAMS: Final = Path(__file__).resolve().parent / "clients_programs"
RUN_S: Final = 240.0
TOO_LONG: Final = -1
WRONG_KEY: Final = "sk-wrong"
SENTENCE: Final = "Invalid API key."
"""What the gateway says of a wrong key; whatever a client makes of it should show that."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass
class Seen:
    """What has come of one client."""

    failed: dict[str, str]
    """By what was tried: how it failed, or nothing."""
    refused: str
    """What a wrong key became: an exception, or the gateway's sentence. Empty if that is not to be seen."""
    said: str
    """All that it said of that."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One client, its programs, and the gateway that it is to talk to."""

    client: Client
    programs: Path
    address: str
    key: str

    def settings(self, key: str) -> Settings:
        own = {ADDRESS: self.address, KEY: key, MODEL: self.client.model, EMBEDDINGS: self.client.embeddings}
        return settings_of(self.client, own)

    async def seen(self) -> Seen:
        """Try everything."""
        if self.client.program:
            failed = await self._told(self.key, *self.client.tries)
            wrong = (await self._told(WRONG_KEY, "chat"))["chat"]
            return Seen(failed, wrong.partition(":")[0] if SENTENCE in wrong else "", wrong)
        failed = {name: await self._failed(name) for name in self.client.arguments}
        _, said = await self._commanded(WRONG_KEY, self.client.arguments["chat"])
        told = SENTENCE in " ".join(said.split())  # some wrap their lines
        return Seen(failed, SENTENCE if told else "", said)

    async def _told(self, key: str, *tries: str) -> dict[str, str]:
        """Run the client's program; gives how each of what it was to try failed."""
        with tempfile.TemporaryDirectory() as name:
            home, settings, program = Path(name), self.settings(key), PROGRAMS / self.client.program
            for file in (program, *PROGRAMS.glob("harness.*")):
                shutil.copy(file, home)
            if self.client.npm:
                (home / "node_modules").symlink_to(self.programs.parent)
            ours = "\nexport { client };\n" if self.client.npm else ""
            (home / f"settings{program.suffix}").write_text(settings.module + ours)
            runner = "node" if self.client.npm else str(self.programs / "python")
            _, said = await self._run(home, settings, (runner, program.name, *tries))
            told = home / "seen.jsonl"
            lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        came = {line["try"]: f"{line['failed']}: {line['says']}" if line["failed"] else "" for line in lines}
        return {name: came.get(name, f"ended: {said[-300:]}") for name in tries}

    async def _failed(self, name: str) -> str:
        for _ in range(2):  # now and then the little model ends its turn with its first token
            code, said = await self._commanded(self.key, self.client.arguments[name])
            if code:
                ended = f"not within {RUN_S:.0f} s" if code == TOO_LONG else f"exit {code}"
                return f"{ended}: {said[-300:]}"
            if said.strip():
                return ""
        return "it said nothing"

    async def _commanded(self, key: str, arguments: tuple[str, ...]) -> tuple[int, str]:
        with tempfile.TemporaryDirectory() as name:
            settings = self.settings(key)
            for path, text in settings.files.items():
                file = Path(name) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
            words = [
                word.replace("~", name, 1) if word.startswith("~/") else word for word in settings.command
            ]
            return await self._run(Path(name), settings, (*words, *arguments))

    async def _run(self, home: Path, settings: Settings, command: tuple[str, ...]) -> tuple[int, str]:
        """Run a command that sees no settings but these; gives its exit status and output."""
        work = home / "work"
        work.mkdir(exist_ok=True)
        with (home / "said").open("w+b") as said:  # no pipe, as what it leaves running holds that
            code = await self._ended(home if self.client.program else work, home, settings, command, said)
            said.seek(0)
            return code, _COLOURS.sub("", said.read().decode(errors="replace"))

    async def _ended(
        self, cwd: Path, home: Path, settings: Settings, command: tuple[str, ...], said: BinaryIO
    ) -> int:
        """Run a command to its end; gives its exit status."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env={
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "HOME": str(home),
                "TERM": "dumb",
                "CLIENTS_MODEL": self.client.model,
                "CLIENTS_EMBEDDINGS": self.client.embeddings,
                "CLIENTS_SEEN": str(home / "seen.jsonl"),
                **settings.environ,
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(RUN_S):
                return await process.wait()
        except TimeoutError:
            return TOO_LONG
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            await process.wait()
