"""Real reverse proxies and load balancers in front of gateways, with the very files that contrib/ offers."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tests.guard import HANG_S
from tests.journey import eventually
from tests.tools import tool

CONTRIB: Final = Path(__file__).resolve().parent.parent / "contrib"
HOST: Final = "llm.example.org"
AS_ROOT: Final = "    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n"
"""What HAProxy can give up only where it has it."""


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """A file of contrib/ for this place. Fails when something to be replaced is not there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is missing"
        text = text.replace(old, new)
    return text


def uncommented(text: str, first: str) -> str:
    """The variant that a file offers in comments: uncomment from the line `first` to the end of its block."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == f"# {first}")
    end = next(number for number in range(start, len(lines)) if lines[number].strip() == "# }")
    block = [line.replace("# ", "", 1) for line in lines[start : end + 1]]
    return "\n".join([*lines[:start], *block, *lines[end + 1 :], ""])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signed itself, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = (
        f"{tool('openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        f" -subj /CN={HOST} -addext subjectAltName=IP:127.0.0.1,DNS:{HOST} -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=HANG_S)
    return cert, key


@asynccontextmanager
async def process(*command: str, env: Mapping[str, str], port: int) -> AsyncIterator[None]:
    """Run a server until the end of the block, once it accepts connections."""
    server = await asyncio.create_subprocess_exec(
        *command,
        env=dict(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stderr
    said = asyncio.ensure_future(server.stderr.read())
    try:
        await eventually(lambda: server.returncode is not None or accepts(port))
        assert server.returncode is None, (await said).decode()
        yield
    finally:
        if server.returncode is None:
            server.terminate()
        async with asyncio.timeout(HANG_S):
            await server.wait()
            await said


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def nginx(
    gateways: Sequence[int], folder: Path, port: int, *, under: str = ""
) -> AsyncIterator[tuple[str, Path]]:
    """contrib/nginx.conf in an nginx without privileges; gives its URL and its certificate."""
    cert, key = certificate(folder)
    site = (CONTRIB / "nginx.conf").read_text()
    if under:
        site = uncommented(replaced(site, {"location / {": "location /unused/ {"}), f"location {under}/ {{")
    site = replaced(
        site,
        {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "/etc/ssl/llm.example.org/fullchain.pem": str(cert),
            "/etc/ssl/llm.example.org/privkey.pem": str(key),
            "http://127.0.0.1:8900": f"http://127.0.0.1:{gateways[0]}",
        },
    )
    (folder / "site.conf").write_text(site)
    scratch = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{scratch}\ninclude {folder}/site.conf;\n}}\n"
    )
    command = (tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr")
    async with process(*command, env={}, port=port):
        yield f"https://127.0.0.1:{port}{under}", cert


@asynccontextmanager
async def caddy(
    gateways: Sequence[int], folder: Path, port: int, *, under: str = ""
) -> AsyncIterator[tuple[str, Path]]:
    """contrib/Caddyfile in a Caddy that asks nobody for certificates; gives its URL and its certificate."""
    cert, key = certificate(folder)
    site = (CONTRIB / "Caddyfile").read_text()
    if under:
        site = uncommented(
            replaced(site, {"\n\treverse_proxy 127": "\n\treverse_proxy /unused 127"}), f"handle {under}/* {{"
        )
    site = replaced(
        site,
        {
            f"{HOST} {{": f"https://127.0.0.1:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}",
            "127.0.0.1:8900": f"127.0.0.1:{gateways[0]}",
        },
    )
    file = folder / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n" + site)
    command = (tool("caddy"), "run", "--adapter", "caddyfile", "--config", str(file))
    async with process(*command, env={"HOME": str(folder)}, port=port):
        yield f"https://127.0.0.1:{port}{under}", cert


@asynccontextmanager
async def haproxy(
    gateways: Sequence[int], folder: Path, port: int, *, under: str = ""
) -> AsyncIterator[tuple[str, Path]]:
    """contrib/haproxy.cfg in an HAProxy that looks often; gives its URL and its certificate."""
    cert, key = certificate(folder)
    both = folder / "both.pem"
    both.write_text(cert.read_text() + key.read_text())
    changes = {
        AS_ROOT: "",
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "/etc/haproxy/llm.example.org.pem": str(both),
        "/run/haproxy/admin.sock": str(folder / "admin.sock"),
        "uri /readyz": f"uri {under}/readyz",
        "inter 1s": "inter 100ms",
    }
    text = replaced((CONTRIB / "haproxy.cfg").read_text(), changes)
    head, _, _ = text.partition("    server gw1 ")
    lines = [f"    server gw{number} 127.0.0.1:{one}" for number, one in enumerate(gateways, 1)]
    file = folder / "haproxy.cfg"
    file.write_text(head + "\n".join([*lines, ""]))
    async with process(tool("haproxy"), "-db", "-f", str(file), env={}, port=port):
        yield f"https://127.0.0.1:{port}{under}", cert


@asynccontextmanager
async def envoy(
    gateways: Sequence[int], folder: Path, port: int, *, under: str = ""
) -> AsyncIterator[tuple[str, Path]]:
    """contrib/envoy.yaml in an Envoy that looks often; gives its URL and its certificate."""
    cert, key = certificate(folder)
    changes = {
        "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {port}",
        "/etc/envoy/fullchain.pem": str(cert),
        "/etc/envoy/privkey.pem": str(key),
        "path: /readyz": f"path: {under}/readyz",
        "interval: 1s": "interval: 0.1s",
    }
    text = replaced((CONTRIB / "envoy.yaml").read_text(), changes)
    start = "              - endpoint: "
    head, _, _ = text.partition(start)
    place = "{{address: {{socket_address: {{address: 127.0.0.1, port_value: {0}}}}}}}"
    file = folder / "envoy.yaml"
    file.write_text(head + "\n".join([*(start + place.format(one) for one in gateways), ""]))
    command = (tool("envoy"), "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error")
    async with process(*command, env={}, port=port):
        yield f"https://127.0.0.1:{port}{under}", cert
