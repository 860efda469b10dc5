"""The least that passes requests on with aiohttp: `bench_plain.py PORT PROVIDER_PORT KEY`.

What scripts/bench compares the gateway with: aiohttp's server and its client, on uvloop, as one would write
them in an hour and then leave out what costs time. It knows one key and one provider, and passes pieces on
as they come. No routing, no limits, no accounting, no log.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web
from yarl import URL

PASSED_ON = ("Content-Type", "Content-Length")
BACKLOG = 4096
MOST_BYTES = 64 << 20


class Proxy:
    def __init__(self, http: aiohttp.ClientSession, provider_port: int, key: str) -> None:
        self.http = http
        self.url = URL(f"http://127.0.0.1:{provider_port}/v1/chat/completions")
        self.headers = {"Content-Type": "application/json"}
        self.authorization = f"Bearer {key}"

    async def forward(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != self.authorization:
            raise web.HTTPUnauthorized
        body = await request.read()
        async with self.http.post(self.url, data=body, headers=self.headers) as answer:
            headers = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


async def main(port: int, provider_port: int, key: str) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    ) as http:
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_post("/v1/chat/completions", Proxy(http, provider_port, key).forward)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=BACKLOG).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
