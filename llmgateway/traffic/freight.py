"""Bodies that are large, late or compressed: taken in within limits, looked at in steps, and let go in time.

Rules:

- No look at a body keeps the others waiting: whatever is long is done in steps.
- What is held in memory is charged to the room for bodies before it is held, and given back once an answer is
  being relayed, or the request has ended.
- A form that names its model before its file goes on while it comes. One that names it behind goes to a file
  on disk first, if it is long.
- What is compressed goes on as it came. It is looked at as what it stands for, and that is what the limit of
  a body's size is for; where its model has to be another, it goes on as that, too.
"""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import Any, Final

import msgspec

from llmgateway.access.keys import Caller
from llmgateway.api.endpoints import Body
from llmgateway.api.multipart import FormLook, Span, around_model, first_part
from llmgateway.api.peek import MOST_BYTES_OF_ANY, MOST_COMMAS_OF_ANY, STEP_BYTES, Peek, peek_at_once
from llmgateway.api.skim import Skim
from llmgateway.api.unpack import Unpacker
from llmgateway.api.unreadable import NoModel, Unreadable
from llmgateway.books.entry import Entry
from llmgateway.config.settings import Config
from llmgateway.errors import INVALID_REQUEST, GatewayError
from llmgateway.http.body import too_large
from llmgateway.http.client import Client
from llmgateway.http.room import Hold, Room
from llmgateway.http.spool import BATCH_BYTES, Spool, Spooled
from llmgateway.http.upload import Cargo, Live, Packed, Stored, Upload
from llmgateway.traffic.call import Call, CallReader, Forward
from llmgateway.traffic.proxy import Proxy

AT_ONCE_BYTES: Final = 32 * 1024
"""A body that is at hand and has no more than that is looked at without further ado."""
_MOST_ESCAPES: Final = 4_000
_WRITTEN_BYTES: Final = 1 << 20  # of a body that is written in one go, and looked at so if it is a chat
SPOOLED_BYTES: Final = 8_000_000
"""A form of more than that goes to a file, as long as it does not tell where else to go."""
_BEGINNING_BYTES: Final = 64 * 1024  # of a form, in which its first part begins


class Load(msgspec.Struct):
    """A body that was taken in: what is known of it, and where its model stands.

    `body` is empty where there is cargo.
    """

    body: Body
    seen: Peek | None = None
    model_at: Span | None = None
    cargo: Cargo | None = None
    around: tuple[bytes, bytes] = (b"", b"")
    """What stands around the model where the body has none, and the default one is put in."""


class Freight:
    """Takes in the bodies that need some care, as one config wants it."""

    def __init__(self, config: Config, calls: CallReader, proxy: Proxy, room: Room) -> None:
        self._max_bytes = config.server.max_body
        self._spool_folder = config.server.spool
        self._default_model = config.server.default_model
        self._calls = calls
        self._proxy = proxy
        self._room = room

    async def carry(
        self, client: Client, route: Forward, caller: Caller, entry: Entry, body: Body | None
    ) -> None:
        """Have a request answered; `body` is what was at hand. Raises GatewayError."""
        with self._room.hold() as hold, Spool(self._spool_folder) as spool:
            asked_at = time.monotonic()
            taking = self._take_in(client, route, body, hold, spool)
            body = None  # nobody holds it but the call, which lets go of it
            load = await taking
            entry.body_s = time.monotonic() - asked_at
            call = self._call(client, route, caller, entry, load)
            call.outgoing.hold = hold
            del load
            answering = self._answer(call, route, caller, client)
            cargo = call.outgoing.cargo
            try:
                await (answering if cargo is None else _while_sending(cargo.upload, answering))
            finally:
                entry.bytes_in = client.body.read_bytes or entry.bytes_in

    def _call(self, client: Client, route: Forward, caller: Caller, entry: Entry, load: Load) -> Call:
        if route.wanted:
            call = self._calls.recall(client, route, entry, load.body)
        else:
            call = self._calls.read(client, route, caller, entry, load.body, load.seen)
        outgoing = call.outgoing
        outgoing.model_at, outgoing.around, outgoing.cargo = load.model_at, load.around, load.cargo
        if load.cargo is not None:
            entry.bytes_in = load.cargo.upload.size() or 0
        if load.around[0]:
            call.outgoing = outgoing.asking_for(call.model)
        return call

    async def _answer(self, call: Call, route: Forward, caller: Caller, client: Client) -> None:
        if route.wanted:
            await self._proxy.recall(call, route.wanted, caller, client)
        else:
            await self._proxy.forward(call, caller, client)

    # -- what comes

    async def _take_in(
        self, client: Client, route: Forward, body: Body | None, hold: Hold, spool: Spool
    ) -> Load:
        kind = route.endpoint.body
        if (coding := _coding_of(client)) and kind in ("json", "multipart"):
            return await self._take_packed(client, coding, kind, hold)
        if kind == "multipart" and body is None:
            return await self._take_form(client, hold, spool)
        if body is None:
            body = await client.body.read(self._max_bytes, hold, _WRITTEN_BYTES)
        hold.grow_to(len(body))
        if kind == "json" and not client.body.ended:
            return await self._skim(client, body, hold)
        if kind == "json" and len(body) > AT_ONCE_BYTES:
            if len(body) <= _WRITTEN_BYTES and (seen := peek_at_once(body)):
                return Load(body, seen)
            if not _is_light(body):
                return await self._skim(client, body, hold)
        while not client.body.ended:
            assert isinstance(body, bytearray)
            await self._add_to(body, client, hold)
        return Load(body)

    async def _add_to(self, body: bytearray, client: Client, hold: Hold) -> None:
        """Wait for more of a body."""
        piece = await client.body.next_piece(self._max_bytes)
        hold.grow_to(len(body) + len(piece))
        body += piece

    async def _skim(self, client: Client, body: Body, hold: Hold) -> Load:
        """Look at a body while it comes."""
        skim = Skim(body)
        try:
            await _in_steps(skim.look())
            while not client.body.ended:
                assert isinstance(body, bytearray)
                await self._add_to(body, client, hold)
                await _in_steps(skim.look())
        except Unreadable:
            del body, skim
            hold.release()
            while not client.body.ended:  # so that the connection serves on
                await client.body.next_piece(self._max_bytes)
            raise
        load = self._load_of_json(skim, Stored(body))
        if len(body) <= _WRITTEN_BYTES and not load.around[0]:
            load.body, load.cargo = body, None
        return load

    # -- forms

    async def _take_form(self, client: Client, hold: Hold, spool: Spool) -> Load:
        """Take in a form until it tells where it is to go: its file need not have come by then."""
        client.body.check_length(self._max_bytes)
        content_type = client.head.named.get(b"content-type", b"")
        look = FormLook(content_type)
        body, beginning = bytearray(), b""
        while not client.body.ended:
            piece = await client.body.next_piece(self._max_bytes)
            await _in_steps(_looks(look, piece))
            body += piece
            if spool.size or len(body) > SPOOLED_BYTES:
                if not spool.size:
                    beginning = bytes(body[:_BEGINNING_BYTES])
                if not spool.size or len(body) > BATCH_BYTES or client.body.ended:
                    await spool.add(body)
                    body = bytearray()
                    hold.release()
            elif look.tells_enough and not client.body.ended:
                live = Live(client.body, body, self._max_bytes, hold)
                return Load(b"", look.peek(), look.model_at, Cargo(live))
            hold.grow_to(len(body))
        look.check_end()
        if not spool.size:
            return _load_of(body, _peek_if_told(look), look.model_at)
        return self._load_of_form(look, content_type, beginning, Spooled(spool))

    def _load_of_form(self, look: FormLook, content_type: bytes, beginning: Body, upload: Upload) -> Load:
        try:
            return Load(b"", look.peek(), look.model_at, Cargo(upload))
        except NoModel:
            if self._default_model is None:
                raise
        start = first_part(beginning, content_type)
        load = Load(b"", look.peek(self._default_model), (start, start), Cargo(upload))
        load.around = around_model(content_type)
        return load

    def _load_of_json(self, skim: Skim, upload: Upload) -> Load:
        try:
            seen = skim.peek()
            return Load(b"", seen, seen.model_at, Cargo(upload))
        except NoModel:
            if self._default_model is None:
                raise
        end = skim.closed_at
        load = Load(b"", skim.peek(self._default_model), (end, end), Cargo(upload))
        load.around = (b'"model":' if skim.is_empty else b',"model":', b"")
        return load

    # -- what is compressed

    async def _take_packed(self, client: Client, coding: bytes, kind: str, hold: Hold) -> Load:
        """Take in a body that goes on as it comes, and look at what it stands for."""
        client.body.check_length(self._max_bytes, hold)
        content_type = client.head.named.get(b"content-type", b"")
        packed, plain = bytearray(), bytearray()
        skim, unpacker = Skim(plain), Unpacker(coding)
        look = FormLook(content_type) if kind == "multipart" else None
        while not client.body.ended:
            piece = await client.body.next_piece(self._max_bytes)
            packed += piece
            for step in unpacker.steps(piece):
                plain += step
                if len(plain) > self._max_bytes:
                    raise too_large(self._max_bytes)
                hold.grow_to(len(packed) + len(plain))
                await _in_steps(skim.look() if look is None else _looks(look, step))
                await asyncio.sleep(0)
        unpacker.check_end()
        upload = Packed(packed, plain)
        if look is not None:
            look.check_end()
            return self._load_of_form(look, content_type, plain[:_BEGINNING_BYTES], upload)
        return self._load_of_json(skim, upload)


def _load_of(body: Body, seen: Peek | None, model_at: Span | None) -> Load:
    if seen is None or len(body) <= _WRITTEN_BYTES:
        return Load(body, seen, model_at)
    return Load(b"", seen, model_at, Cargo(Stored(body)))


def _peek_if_told(look: FormLook) -> Peek | None:
    """Tell what a form says; None if it has no model."""
    try:
        return look.peek()
    except NoModel:
        return None


def _coding_of(client: Client) -> bytes:
    """Give the coding of a body; none if it is not compressed. Raises GatewayError (400)."""
    named = client.head.named.get(b"content-encoding", b"").lower()
    codings = [coding for each in named.split(b",") if (coding := each.strip()) not in (b"", b"identity")]
    if not codings:
        return b""
    if len(codings) > 1 or codings[0] not in Unpacker.CODINGS:
        words = "A request body that is compressed otherwise than by gzip, deflate or zstd is not understood."
        raise GatewayError(INVALID_REQUEST, words)
    return codings[0]


def _looks(look: FormLook, piece: bytes) -> Iterator[None]:
    for start in range(0, len(piece), STEP_BYTES):
        look.add(piece[start : start + STEP_BYTES])
        yield


async def _while_sending(upload: Upload, answering: Coroutine[Any, Any, None]) -> None:
    """Wait for an answer while the body is still being sent. Raises what either of them does."""
    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(upload.run())
            await answering
            sending.cancel()
    except BaseExceptionGroup as failed:
        failure: BaseException = failed
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        if isinstance(failure, ConnectionError):  # the client's
            raise asyncio.CancelledError from None
        raise failure from None


async def _in_steps(work: Iterator[None]) -> None:
    """Let others go on between the steps of some work."""
    for _ in work:
        await asyncio.sleep(0)


def _is_light(body: Body) -> bool:
    """Tell whether a body that is odd or wrong can be looked at in one go."""
    if (
        len(body) > MOST_BYTES_OF_ANY
        or body.count(b",") > MOST_COMMAS_OF_ANY
        or body.count(rb"\u") > _MOST_ESCAPES
    ):
        return False
    return b"NaN" not in body and b"Infinity" not in body  # each of which `peek` mends with another look
