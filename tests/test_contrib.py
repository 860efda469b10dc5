"""What contrib/ offers agrees with the program: its metrics, its command line, its times."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml

from llmgateway.config.settings import ServerConfig
from llmgateway.config.values import duration
from llmgateway.service.gateway import LAST_WORDS_S
from tests.conftest import GatewayFor
from tests.fake_provider import FakeProvider
from tests.guard import HANG_S
from tests.journey import ASK, KEY, settings
from tests.program import run, running
from tests.tools import tool

if TYPE_CHECKING:
    from llmgateway.service.gateway import Gateway

ROOT = Path(__file__).resolve().parent.parent
CONTRIB = ROOT / "contrib"


# --- Dashboard and alerts -------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CONTRIB / "grafana-dashboard.json").read_text())
    return read


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CONTRIB / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def targets() -> Iterator[dict[str, Any]]:
    """Everything on the dashboard that asks for data."""
    board = dashboard()
    yield from board["annotations"]["list"]
    for panel in board["panels"]:
        yield from panel.get("targets", ())


def expressions() -> list[str]:
    """All PromQL of the dashboard and the alerts; `label_values(metric, label)` as `metric{label=""}`."""
    variables = [each["definition"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    return [
        *(target["expr"] for target in targets()),
        *(rule["expr"] for rule in alerts()),
        *(re.sub(r"label_values\((\w+), (\w+)\)", r'\1{\2=""}', variable) for variable in variables),
    ]


def asked_for(expression: str) -> dict[str, set[str]]:
    """The metrics that an expression names, each with the labels that it picks them by."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, selector in re.findall(r"\b((?:gateway|process|python)_\w+)(?:\{([^}]*)\})?", expression):
        found[name].update(re.findall(r"(\w+)\s*[=!]~?\s*\"", selector))
    return found


async def scrape(gateway: Gateway) -> dict[str, set[str]]:
    """What /metrics offers: each series' name, and its labels as far as there are samples."""
    async with aiohttp.ClientSession() as session, session.get(f"{gateway.url}/metrics") as response:
        assert response.status == 200
        text = await response.text()
    found: dict[str, set[str]] = defaultdict(set)
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        for suffix in ("_bucket", "_count", "_sum") if kind == "histogram" else ("",):
            found[name + suffix] = set()
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        found[name].update(re.findall(r"(\w+)=\"", labels))
    return found


async def test_the_dashboard_and_the_alerts_ask_only_for_what_the_gateway_exports(
    provider: FakeProvider, gateway_for: GatewayFor
) -> None:
    gateway = await gateway_for(provider, cluster={"name": "gw1", "limits": "redis://127.0.0.1:1/0"})
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{gateway.url}/v1/chat/completions", json=ASK) as response,
    ):
        assert response.status == 200
    exported = await scrape(gateway)
    for expression in expressions():
        for name, labels in asked_for(expression).items():
            assert name in exported, expression
            if exported[name]:
                assert labels <= exported[name], expression


def test_no_panel_counts_what_two_gateways_see_of_the_same_thing_twice() -> None:
    """States, configs and versions are the same at all gateways; the rest is each one's own, and added up."""
    same = re.compile(r"gateway_(provider_state|config_valid|config_loaded_timestamp_seconds|build_info)\b")
    for target in targets():
        if same.search(target["expr"]) and " and on (" not in target["expr"]:
            assert re.match(r"(sum\()?(max|min|count)\b", target["expr"]), target["expr"]
        else:
            assert "instance" in target.get("legendFormat", "") or "sum" in target["expr"], target["expr"]


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    cells: dict[tuple[int, int], str] = {}
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert cells.setdefault(cell, panel["title"]) == panel["title"], f"{panel['title']}: taken"


def test_everything_on_the_dashboard_uses_the_datasource_that_was_chosen() -> None:
    board = dashboard()
    variables = [each for each in board["templating"]["list"] if each["type"] == "query"]
    charts = [panel for panel in board["panels"] if panel["type"] != "row"]
    for each in (*variables, *charts, *targets()):
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, each


def test_the_variables_match_requests_that_never_found_a_provider() -> None:
    variables = [each for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    assert [each["name"] for each in variables] == ["provider", "model", "user"]
    assert all(each["allValue"] == ".*" for each in variables)


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]


def test_promtool_accepts_the_alerts_and_sees_them_fire() -> None:
    promtool = tool("promtool")
    for command in ("check rules alerts.yaml", "test rules alerts.test.yaml"):
        done = subprocess.run(
            [promtool, *command.split()], cwd=CONTRIB, capture_output=True, text=True, timeout=HANG_S
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_what_the_dashboard_asks(tmp_path: Path) -> None:
    promtool = tool("promtool")
    rules = [
        {"record": f"panel:{number}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, target in enumerate(targets())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stdout + done.stderr


# --- The systemd unit -----------------------------------------------------------------------------

INSTALLED = "/opt/llmgateway"
PYTHON = f"{INSTALLED}/.venv/bin/python"
CONFIG = "/etc/llmgateway/config.yaml"
MOST_EXPOSED = 15  # in tenths, of 100


def unit(name: str) -> list[str]:
    """The values of a setting of the unit, in their order."""
    lines = (CONTRIB / "llmgateway.service").read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def arguments(command: str, config: Path) -> list[str]:
    """What a command line of the unit gives to gateway.py, with this config."""
    python, program, *rest = shlex.split(command)
    assert (python, program) == (PYTHON, f"{INSTALLED}/gateway.py")
    assert CONFIG in rest
    return [str(config) if argument == CONFIG else argument for argument in rest]


@pytest.fixture
def config(tmp_path: Path, provider: FakeProvider) -> Path:
    """A config file for whatever command line."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(provider)))
    return file


@pytest.mark.parametrize(
    ("source", "name"),
    [("llmgateway.service", "llmgateway.service"), ("llmgateway@.service", "llmgateway@1.service")],
)
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, source: str, name: str) -> None:
    analyze = tool("systemd-analyze")
    file = tmp_path / name
    text = (CONTRIB / source).read_text()
    # It looks whether the program is there.
    file.write_text(text.replace(PYTHON, sys.executable).replace(INSTALLED, str(ROOT)))
    command = (analyze, "verify", "--recursive-errors=no", file)
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    said = [line for line in (done.stdout + done.stderr).splitlines() if file.name in line]
    assert (done.returncode, said) == (0, [])


def test_systemd_finds_little_exposed() -> None:
    command = (tool("systemd-analyze"), "security", "--offline=true", f"--threshold={MOST_EXPOSED}")
    done = subprocess.run(
        [*command, CONTRIB / "llmgateway.service"], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_for_several_is_that_for_one_but_for_their_numbers() -> None:
    def settings_of(name: str) -> list[str]:
        lines = (CONTRIB / name).read_text().splitlines()
        return [line for line in lines if line and line[0] != "#" and not line.startswith("Description=")]

    several = settings_of("llmgateway@.service")
    several.remove("Environment=INSTANCE=%i")
    assert several == settings_of("llmgateway.service")


async def test_the_units_command_line_runs_the_gateway(config: Path, tmp_path: Path) -> None:
    [start] = unit("ExecStart")
    async with running(*arguments(start, config), cwd=tmp_path) as program:
        await program.url()


async def test_the_units_reload_checks_the_config_first(config: Path, tmp_path: Path) -> None:
    check, kill = unit("ExecReload")
    assert kill == "/bin/kill -HUP $MAINPID"
    assert (await run(*arguments(check, config), cwd=tmp_path)).code == 0
    config.write_text("nonsense: 1")
    assert (await run(*arguments(check, config), cwd=tmp_path)).code == 1


# --- The container --------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((CONTRIB / "compose.yaml").read_text())["services"]["gateway"]
    return service


def dockerfile(instruction: str) -> list[str]:
    """The arguments of an instruction, wherever it stands, in their order."""
    lines = (CONTRIB / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.removeprefix(instruction).strip() for line in lines if line.startswith(f"{instruction} ")]


def health_check() -> list[str]:
    command: list[str] = json.loads(dockerfile("HEALTHCHECK")[0].partition("CMD ")[2])
    return command


def health_url() -> str:
    found = re.search(r"HEALTH_URL=(\S+)", dockerfile("ENV")[0])
    assert found
    return found[1]


async def healthy(url: str) -> int:
    """Run the image's health check, with this Python; gives its exit code."""
    _, *rest = health_check()
    env: Mapping[str, str] = {"HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *rest, env=env, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(HANG_S):
        return await process.wait()


async def test_the_image_runs_the_gateway_and_knows_when_it_is_well(config: Path, tmp_path: Path) -> None:
    program, *options = json.loads(dockerfile("ENTRYPOINT")[0])
    assert program.endswith("/bin/llmgateway")
    command = [*options, *json.loads(dockerfile("CMD")[0])]
    command[command.index("/config/config.yaml")] = str(config)
    async with running(*command, cwd=tmp_path) as gateway:
        port = (await gateway.says(r"listening on http://0\.0\.0\.0:(\d+)"))[1]
        url = health_url().replace(str(ServerConfig().port), port)
        assert await healthy(url) == 0
        assert await healthy(f"{url}-not") == 1
    assert await healthy(url) == 1


def test_the_image_is_made_of_what_docker_is_shown_and_of_nothing_secret() -> None:
    shown = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert shown[0] == "*"
    copied = [source for line in dockerfile("COPY") if "--from" not in line for source in line.split()[:-1]]
    assert copied
    for source in copied:
        assert f"!{source}" in shown
        assert (ROOT / source).exists(), source


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    [user] = dockerfile("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_compose_and_the_image_agree() -> None:
    service = compose()
    assert service["healthcheck"]["test"] == ["CMD", *health_check()]
    assert (CONTRIB / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]) == CONTRIB / "Dockerfile"
    assert service["ports"] == [f"127.0.0.1:{ServerConfig().port}:{ServerConfig().port}"]
    assert dockerfile("EXPOSE") == [str(ServerConfig().port)]


def test_compose_takes_away_what_the_gateway_does_not_need() -> None:
    service = compose()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == ["./config:/config:ro", "data:/data"]


def test_whoever_stops_the_gateway_waits_until_it_has_drained() -> None:
    needed_s = ServerConfig().drain_timeout + LAST_WORDS_S
    assert float(unit("TimeoutStopSec")[0]) > needed_s
    assert duration(compose()["stop_grace_period"]) > needed_s
