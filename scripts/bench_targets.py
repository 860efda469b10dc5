"""The targets of scripts/bench: direct, the gateway, plain aiohttp, and whatever else is installed.

A target is a row: its program, its command, its config files. To compare with something else, add a row.
Commands and files are templates; `fill` has the words. Every target but `direct` checks the caller's key.
None logs requests, but for the gateway, which runs as it comes.
"""

import hashlib
import resource
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final

from bench_load import KEY

ROOT: Final = Path(__file__).resolve().parent.parent
SYSTEM_FOLDERS: Final = "/usr/sbin:/usr/local/sbin"
OPEN_FILES: Final = 16384  # two for each of many streams
OTHER_FILES: Final = 192


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    name: str
    command: tuple[str, ...]
    program: str | None = None  # None for this project's own
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def found(self) -> str | None:
        """Give the path of its program; None if that is not installed."""
        if self.program is None:
            return sys.executable
        folders = (None, str(Path(sys.executable).parent), SYSTEM_FOLDERS)
        return next(filter(None, (shutil.which(self.program, path=path) for path in folders)), None)


def fill(template: str, directory: Path, port: int, other_port: int, provider_port: int) -> str:
    open_files = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return Template(template).substitute(
        root=ROOT,
        directory=directory,
        port=port,
        other_port=other_port,
        provider_port=provider_port,
        key=KEY,
        key_digest=hashlib.sha256(KEY.encode()).hexdigest(),
        open_files=open_files,
        connections=(open_files - OTHER_FILES) // 2,
    )


DIRECT: Final = Target("direct", ("$root/scripts/bench_provider.py", "$port"))
GATEWAY: Final = Target(
    "gateway",
    ("$root/gateway.py", "-c", "$directory/config.yaml", "--host", "127.0.0.1", "--port", "$port"),
    files={
        "config.yaml": "users: {bench: {keys: ['sha256:$key_digest']}}\n"
        "providers: {fake: {url: 'http://127.0.0.1:$provider_port/v1'}}\n"
    },
)
PLAIN: Final = Target("plain-aiohttp", ("$root/scripts/bench_plain.py", "$port", "$provider_port", "$key"))
PEERS: Final = (
    Target(
        "nginx",
        ("-p", "$directory", "-c", "$directory/nginx.conf"),
        program="nginx",
        files={
            "nginx.conf": """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr; worker_rlimit_nofile $open_files;
events { worker_connections $open_files; }
http {
  access_log off; keepalive_requests 1000000; client_max_body_size 32m; client_body_buffer_size 256k;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream provider { server 127.0.0.1:$provider_port; keepalive $connections; keepalive_requests 1000000; }
  server {
    listen 127.0.0.1:$port backlog=4096;
    location / {
      if ($$http_authorization != "Bearer $key") { return 401; }
      proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""
        },
    ),
    Target(
        "haproxy",
        ("-db", "-f", "$directory/haproxy.cfg"),
        program="haproxy",
        files={
            "haproxy.cfg": """
global
  nbthread 1
  maxconn $connections
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  option http-no-delay
  http-reuse always
frontend clients
  bind 127.0.0.1:$port backlog 4096
  http-request deny deny_status 401 unless { req.hdr(authorization) -m str "Bearer $key" }
  default_backend provider
backend provider
  server provider 127.0.0.1:$provider_port pool-max-conn $connections
"""
        },
    ),
    Target(
        "caddy",
        ("run", "--config", "$directory/Caddyfile", "--adapter", "caddyfile"),
        program="caddy",
        environment={"XDG_DATA_HOME": "$directory", "XDG_CONFIG_HOME": "$directory"},
        files={
            "Caddyfile": """
{
  admin off
  auto_https off
}
http://:$port {
  bind 127.0.0.1
  @stranger not header Authorization "Bearer $key"
  respond @stranger 401
  reverse_proxy 127.0.0.1:$provider_port {
    flush_interval -1
    transport http {
      keepalive_idle_conns_per_host $connections
    }
  }
}
"""
        },
    ),
    Target(
        "litellm",
        (
            *("--config", "$directory/litellm.yaml", "--telemetry", "False"),
            *("--host", "127.0.0.1", "--port", "$port"),
        ),
        program="litellm",
        environment={
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        },
        files={
            "litellm.yaml": """
model_list:
  - model_name: m
    litellm_params: {model: openai/m, api_base: "http://127.0.0.1:$provider_port/v1", api_key: none}
general_settings: {master_key: $key, disable_spend_logs: true}
litellm_settings: {telemetry: false, set_verbose: false}
"""
        },
    ),
    Target(
        "vllm-router",
        (
            *("--worker-urls", "http://127.0.0.1:$provider_port", "--api-key", "$key"),
            *("--host", "127.0.0.1", "--port", "$port", "--log-level", "warning"),
            *("--policy", "round_robin", "--max-concurrent-requests", "$connections"),
            *("--prometheus-port", "$other_port"),
        ),
        program="vllm-router",
    ),
)
TARGETS: Final = (DIRECT, GATEWAY, PLAIN, *PEERS)
