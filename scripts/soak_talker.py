"""The client of scripts/soak that holds a session by WebSocket."""

import asyncio

from soak_clients import PATIENCE_S, World, request, seen

from tests.raw_client import RawClient
from tests.websocket import ASKS, close, said, text


async def talker(world: World) -> None:
    """Hold a session by WebSocket, and end it in some way."""
    chance = world.chance
    asked = world.ask("talker")
    fields = [*ASKS]
    data = request(
        asked,
        world.key(),
        f"/v1/realtime?model={chance.choice(['live', 'live', 'chatty', 'qwen'])}",
        None,
        *fields,
        method="GET",
    )
    async with RawClient(world.port) as client:
        await client.send(data)
        try:
            answer = await client.head(PATIENCE_S, to="GET")
        except EOFError:
            asked.ending = "cut"
            return
        seen(asked, answer)
        if answer.status != 101:
            while await client.piece(answer, PATIENCE_S):
                pass
            asked.ending, asked.body_bytes = "whole", len(answer.body)
            return
        asked.ending = "left"
        try:
            async with asyncio.timeout(PATIENCE_S):
                for number in range(chance.randrange(1, 20)):
                    await client.send(text(f'{{"type":"say","number":{number}}}'))
                    await said(lambda size: _exactly(client, size))
                    await asyncio.sleep(chance.uniform(0, 0.3))
                if chance.random() < 0.7:
                    await client.send(close(1000))
                    await client.closed(limit=PATIENCE_S)
        except (EOFError, ConnectionError):
            pass


async def _exactly(client: RawClient, size: int) -> bytes:
    while len(client._buffer) < size:
        await client._more()
    return client._take(size)
