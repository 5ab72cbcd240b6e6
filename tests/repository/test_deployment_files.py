"""Compose file, image, units and manifests: in step with the settings, with each other and with their schemas."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fakes.process_harness import UPLOADER, Home
from locations import ROOT

from sentinel_collector.settings import SETTINGS as COLLECTOR_SETTINGS
from sentinel_protocol import __version__
from sentinel_protocol.common.local_uploader import TOKEN_VARIABLES
from sentinel_protocol.common.settings.model import Setting
from sentinel_uploader.app.settings import SETTINGS as UPLOADER_SETTINGS

DEPLOYMENT = ROOT / "docs" / "deployment"
UNITS = sorted((DEPLOYMENT / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOYMENT / "kubernetes").glob("*.yaml"))
DOCUMENT = ROOT / "docs" / "deployment.md"
FILES = [ROOT / "docker-compose.yml", ROOT / "Dockerfile", DOCUMENT, *UNITS, *MANIFESTS]
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "sentinel-collector": COLLECTOR_SETTINGS,
    "sentinel-uploader": UPLOADER_SETTINGS,
}
NO_SETTINGS = {*TOKEN_VARIABLES, "SENTINEL_API_URL"}
"""Read by the uploader directly: secrets and what goes with them are no settings."""
OWN_OPTIONS = {"--config", "--help", "--version", "--json", "--timeout", "--replace"}
EXPOSURE_LIMIT = 2.0
"""`systemd-analyze security`: 0 is safest, 10 most exposed."""


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def objects() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from (one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if "kustomize" not in str(one))


def the(kind: str) -> dict[str, Any]:
    (found,) = (one for one in objects() if one["kind"] == kind)
    return found


def kustomization() -> dict[str, Any]:
    text = (DEPLOYMENT / "kubernetes" / "kustomization.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def pods() -> list[dict[str, Any]]:
    return [the(kind)["spec"]["template"]["spec"] for kind in ("StatefulSet", "DaemonSet", "Job")]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    known = {setting.env for settings in SETTINGS.values() for setting in settings} | NO_SETTINGS
    named = set(re.findall(r"\b(?:SENTINEL|TRACKER)_[A-Z0-9_]*[A-Z0-9]", path.read_text(encoding="utf-8")))
    assert named - known == set()


def test_variables_of_a_service_are_those_of_its_command() -> None:
    services = compose()["services"]
    for name, service in services.items():
        command = "sentinel-collector" if "collector" in name else "sentinel-uploader"
        known = {setting.env for setting in SETTINGS[command]} | NO_SETTINGS
        for variable in service["environment"]:
            assert variable in known or not variable.startswith(("SENTINEL_", "TRACKER_")), f"{name}: {variable}"


def test_every_flag_of_the_document_is_one_of_its_command() -> None:
    flags = {command: {setting.flag for setting in settings} | OWN_OPTIONS for command, settings in SETTINGS.items()}
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    used = 0
    for line in lines:
        for command, words in re.findall(r"(sentinel-(?:collector|uploader))((?: [^\s`|]+)*)", line):
            for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*", words.partition(" -- ")[0]):
                assert flag in flags[command], line
                used += 1
    assert used


def test_the_token_is_the_uploaders_alone() -> None:
    for name, service in compose()["services"].items():
        assert (set(service["environment"]) & set(TOKEN_VARIABLES) != set()) == (name == "uploader")
    assert "TOKEN" not in (DEPLOYMENT / "systemd" / "sentinel-collector.service").read_text(encoding="utf-8")


def test_services_have_what_the_engine_needs_to_know() -> None:
    services = compose()["services"]
    assert services["uploader"]["stop_grace_period"] == "30s"
    assert services["collector"]["pid"] == "host"
    assert services["collector"]["restart"] == services["remote-collector"]["restart"] == "on-failure"
    assert all("healthcheck" in services[name] for name in ("uploader", "collector", "remote-collector"))
    # "Another machine" shares no network and no volume with the rest.
    remote, others = services["remote-collector"], [services[name] for name in ("uploader", "collector")]
    assert remote["networks"] == ["elsewhere"]
    volumes = {mount.partition(":")[0] for mount in remote["volumes"]}
    assert not volumes & {mount.partition(":")[0] for service in others for mount in service["volumes"]}
    assert services["uploader"].get("networks") is None


def test_the_image_is_built_from_locks_and_runs_as_nobody() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installed = re.findall(r"pip install --require-hashes .*?-r (\S+)", text)
    assert installed == ["requirements-build.lock", "requirements.lock"]
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .* CMD \["', text, re.MULTILINE)
    assert re.search(r'^CMD \["', text, re.MULTILINE)
    # What the build copies is what it may see.
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in re.findall(r"!([\w.-]+)", "\n".join(ignored)):
        assert (ROOT / name).exists(), name
    assert {"!requirements.lock", "!requirements-build.lock"} <= set(ignored)


_SIGNED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in {"open", "os.listdir"} else None)
from sentinel_uploader.runs.ports import Credentials
from sentinel_uploader.backends.objectstore.s3.sigv4 import signed_headers
given = Credentials(access_key="A", secret_key="B", session_token="C", obtained_at=0.0)
url = "https://bucket.example/key"
told = {"Host": "bucket.example"}
assert signed_headers("PUT", url, headers=told, body=b"", credentials=given, region="us-east-1", now=0.0)
assert any("botocore" in path for path in opened)
print(*(path for path in opened if "/botocore/data" in path or "/boto3/data" in path))
"""


def test_what_the_image_leaves_out_is_not_used() -> None:
    assert "boto*/data" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-B", "-c", _SIGNED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock"])
def test_the_build_installs_what_the_tests_were_run_with(name: str) -> None:
    def versions(file: str) -> set[str]:
        text = (ROOT / file).read_text(encoding="utf-8")
        return set(re.findall(r"^([a-z0-9][a-z0-9._-]*==\S+)", text, re.MULTILINE))

    assert versions(name)
    assert versions(name) <= versions("requirements-dev.lock")


def test_manifests_are_valid() -> None:
    checked = 0
    for one in objects():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        checked += 1
    assert checked == 5


def test_manifests_name_what_is_there() -> None:
    kustomized = kustomization()
    assert all((DEPLOYMENT / "kubernetes" / name).exists() for name in kustomized["resources"])
    assert kustomized["images"][0]["newTag"] == __version__
    secrets = {entry["name"]: entry["files"] for entry in kustomized["secretGenerator"]}
    for pod in pods():
        volumes = {volume["name"] for volume in pod["volumes"]} | {"data"}
        for volume in pod["volumes"]:
            if "secret" in volume:
                # Readable by the group that it is given to, as key files have to be.
                assert volume["secret"]["defaultMode"] == 0o440
                assert volume["secret"]["secretName"] in secrets
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
        assert pod["terminationGracePeriodSeconds"] >= 30
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"] == 10001


def test_the_documents_commands_make_the_files_of_the_secrets(home: Home) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text[text.index("## Kubernetes") :]
    commands = re.findall(r"^\$ (sentinel-uploader keys .*)$", section, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = home.run(UPLOADER, *command.split()[1:])
        assert done.returncode == 0, done.stderr
    named = {name.rpartition("=")[2] for entry in kustomization()["secretGenerator"] for name in entry["files"]}
    made = {str(path.relative_to(home.directory)) for path in (home.directory / "keys").rglob("*") if path.is_file()}
    assert named - made == {"token"}


def test_collectors_in_the_cluster_know_every_uploader() -> None:
    uploaders, service = the("StatefulSet"), the("Service")
    name = uploaders["metadata"]["name"]
    assert uploaders["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    port = service["spec"]["ports"][0]["port"]
    expected = [
        f"tcp://{name}-{index}.{service['metadata']['name']}:{port}" for index in range(uploaders["spec"]["replicas"])
    ]
    for kind in ("DaemonSet", "Job"):
        (container,) = (
            one for one in the(kind)["spec"]["template"]["spec"]["containers"] if one["image"] == "sentinel-stream"
        )
        assert environment(container)["SENTINEL_CONNECT"].split(",") == expected


def test_probes_ask_what_is_served() -> None:
    (container,) = the("StatefulSet")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    served = re.findall(
        r'"(/\w+)": ', (ROOT / "uploader/sentinel_uploader/telemetry/routes.py").read_text(encoding="utf-8")
    )
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = container[probe]["httpGet"]
        assert request["path"] in served
        assert environment(container)["SENTINEL_HTTP"] == f"0.0.0.0:{ports[request['port']]}"
    test = " ".join(compose()["services"]["uploader"]["healthcheck"]["test"])
    assert compose()["services"]["uploader"]["environment"]["SENTINEL_HTTP"] in test


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_are_sound_and_closed(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # The program is not where a machine would have it.
    text = unit.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    verified = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    words = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_LIMIT * 10:.0f}", str(copy)]
    rated = subprocess.run(words, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout.splitlines()[-1:]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_say_what_a_service_needs(unit: Path) -> None:
    lines = unit.read_text(encoding="utf-8").splitlines()
    said = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith(("#", "Environment=")))
    assert said["Type"] == ("notify" if "uploader" in unit.name else "exec")
    assert said["Restart"] == "on-failure"
    assert said["ProtectSystem"] == "strict"
    assert said["ExecStart"].endswith(f"/{unit.stem}")
    assert {"StateDirectory", "LimitNOFILE", "SystemCallFilter", "NoNewPrivileges"} <= said.keys()
    assert said["LimitCORE"] == "0"
    for directive in lines:
        assert directive == "" or directive.startswith(("#", "[")) or re.fullmatch(r"[A-Z][A-Za-z]+=.*", directive)
