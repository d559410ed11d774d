"""What lies in deploy/, as those read it who use it: schemas, parsers, and the daemon itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from conftest import environment
from service_harness import DAEMON

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES_VERSION = "1.31"
# Kinds that are not Kubernetes' own: kustomize's and the Prometheus operator's.
OTHER_KINDS = {"Kustomization", "PodMonitor"}
METRICS = set(re.findall(r"`(piecewised_\w+)`", (ROOT / "docs/metrics.md").read_text()))


def manifests(folder: Path) -> list[dict[str, Any]]:
    return [document for file in sorted(folder.glob("*.yaml")) for document in yaml.safe_load_all(file.read_text())]


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def effective(*flags: str, **variables: str) -> dict[str, Any]:
    """The configuration as the daemon reads it."""
    command = [DAEMON, "serve", "--check", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(**variables), check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def pod(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return only(documents, kind)["spec"]["template"]["spec"]


def daemon_container(spec: dict[str, Any]) -> dict[str, Any]:
    (found,) = [it for it in [*spec["containers"], *spec["initContainers"]] if it["name"] == "piecewised"]
    return found


VARIANTS = [("daemonset", "DaemonSet"), ("sidecar", "Deployment")]


@pytest.mark.parametrize("folder", ["daemonset", "sidecar"])
def test_manifests_are_what_kubernetes_takes(folder: str) -> None:
    documents = manifests(DEPLOY / "kubernetes" / folder)
    assert documents
    for document in documents:
        if document["kind"] not in OTHER_KINDS:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("folder", ["daemonset", "sidecar"])
def test_kustomizations_name_what_is_there(folder: str) -> None:
    path = DEPLOY / "kubernetes" / folder
    kustomization = only(manifests(path), "Kustomization")
    named = [*kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]]
    assert all((path / name).is_file() for name in named)
    others = {file.name for file in path.iterdir()} - {"kustomization.yaml", "podmonitor.yaml"}
    assert others == set(named), "what is there is used"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize(("folder", "kind"), VARIANTS)
def test_kustomize_builds_them(folder: str, kind: str) -> None:
    command = ["kubectl", "kustomize", DEPLOY / "kubernetes" / folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    config = only(documents, "ConfigMap")["metadata"]["name"]
    (volume,) = [it for it in pod(documents, kind)["volumes"] if it["name"] == "config"]
    assert volume["configMap"]["name"] == config != "piecewised", "a changed configuration restarts the pods"
    assert daemon_container(pod(documents, kind))["image"] == "vllm-piecewised:0.26.0"


@pytest.mark.parametrize(("folder", "kind"), VARIANTS)
def test_pods_agree_with_the_daemons_configuration(folder: str, kind: str) -> None:
    path = DEPLOY / "kubernetes" / folder
    config = effective("--config", str(path / "piecewised.toml"))
    spec = pod(manifests(path), kind)
    container = daemon_container(spec)
    assert container["command"][:3] == ["piecewised", "serve", "--config"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for key in ("socket", "store_dir"):
        assert any(Path(config[key]).is_relative_to(mount) for mount in mounts), key
    assert str(Path(container["command"][3]).parent) in mounts
    port = int(config["listen_http"].rpartition(":")[2])
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if probe in container:
            assert container[probe]["httpGet"]["port"] == "http"
            assert container[probe]["httpGet"]["path"] == ("/readyz" if probe == "readinessProbe" else "/healthz")
    assert spec["terminationGracePeriodSeconds"] > config["drain_deadline_s"]
    assert config["store_max_bytes"] > 0, "a node's disk is others' too"
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] != 0
    for volume in container["volumeMounts"]:
        assert volume["name"] in {it["name"] for it in spec["volumes"]}


def test_workers_beside_it_reach_it() -> None:
    path = DEPLOY / "kubernetes/sidecar"
    spec = pod(manifests(path), "Deployment")
    (worker,) = spec["containers"]
    variables = {it["name"]: it["value"] for it in worker["env"]}
    config = effective("--config", str(path / "piecewised.toml"))
    assert variables["PIECEWISED_ENDPOINT"] == f"unix://{config['socket']}"
    shared = {it["name"] for it in worker["volumeMounts"]} & {
        it["name"] for it in daemon_container(spec)["volumeMounts"]
    }
    assert "socket" in shared


@pytest.mark.parametrize(("folder", "kind"), VARIANTS)
def test_who_may_scrape_reaches_the_port_that_is_scraped(folder: str, kind: str) -> None:
    documents = manifests(DEPLOY / "kubernetes" / folder)
    labels = only(documents, kind)["spec"]["template"]["metadata"]["labels"]
    policy, monitor = only(documents, "NetworkPolicy")["spec"], only(documents, "PodMonitor")["spec"]
    assert policy["podSelector"]["matchLabels"] == monitor["selector"]["matchLabels"] == labels
    (endpoint,) = monitor["podMetricsEndpoints"]
    scrapes, *others = policy["ingress"]
    assert scrapes["ports"] == [{"port": endpoint["port"], "protocol": "TCP"}] and scrapes["from"]
    ports = {port["name"]: port["containerPort"] for port in daemon_container(pod(documents, kind))["ports"]}
    assert endpoint["path"] == "/metrics" and endpoint["port"] in ports
    # Nobody else reaches it; a worker beside it has ports of its own.
    assert not any(port["port"] in ports for rule in others for port in rule["ports"])
    assert policy.get("egress") == ([] if folder == "daemonset" else None)


def unit() -> dict[str, list[str]]:
    lines = (DEPLOY / "systemd/piecewised.service").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_the_daemon_as_it_wants_to_be_started() -> None:
    (start,), (before,) = unit()["ExecStart"], unit()["ExecStartPre"]
    program, serve, *flags = start.split()
    assert (program, serve) == ("/usr/local/bin/piecewised", "serve") and before == f"{program} serve --check"
    config = effective(*flags)
    assert config["socket"].startswith(f"/run/{unit()['RuntimeDirectory'][0]}/")
    assert config["store_dir"].startswith(f"/var/cache/{unit()['CacheDirectory'][0]}/")
    assert int(unit()["TimeoutStopSec"][0]) > config["drain_deadline_s"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd/piecewised.service").read_text()
    file = tmp_path / "piecewised.service"
    file.write_text(text.replace("/usr/local/bin/piecewised", str(DAEMON)))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
    )
    words = [line for line in verified.stderr.splitlines() if "piecewised.service" in line]
    assert not words, words
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=35", file]
    rated = subprocess.run(command, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout[-2000:]


def names_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads; raises where it is none."""
    promql_parser.parse(expression)
    return set(re.findall(r"\b(piecewised_\w+)", expression))


def is_documented(name: str) -> bool:
    return name in METRICS or re.sub(r"_(bucket|count|sum)$", "", name) in METRICS


def test_alerts_are_rules_over_metrics_that_there_are() -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    operations = (ROOT / "docs/operations.md").read_text()
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names)
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert all(is_documented(name) for name in names_in(rule["expr"])), rule["expr"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"`{rule['alert']}`" in operations, f"docs/operations.md says what to do about {rule['alert']}"


def test_the_dashboard_reads_metrics_that_there_are() -> None:
    dashboard = json.loads((DEPLOY / "grafana/piecewised.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 5
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24 and panel["targets"]
        for target in panel["targets"]:
            read = names_in(target["expr"].replace("$instance", ".*"))
            assert read and all(is_documented(name) for name in read), target["expr"]
    taken = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(taken)) == len(taken), "panels lie beside each other"


@pytest.mark.parametrize("file", ["Dockerfile", "vllm.Dockerfile"])
def test_images_run_as_nobody_special_and_copy_what_there_is(file: str) -> None:
    lines = [line for line in (DEPLOY / "docker" / file).read_text().splitlines() if line and not line.startswith("#")]
    instructions = [line.split(maxsplit=1) for line in lines if not line.startswith(" ")]
    assert {name for name, _ in instructions} <= set(
        ["ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD"]
    )
    stages = [value.split()[-1] for name, value in instructions if name == "FROM" and " AS " in value]
    for name, value in instructions:
        if name == "COPY" and (stage := re.match(r"--from=(\S+)", value)):
            assert stage[1] in stages
    if file == "Dockerfile":
        assert [value for name, value in instructions if name == "USER"] == ["2000"]
        (entry,) = [value for name, value in instructions if name == "ENTRYPOINT"]
        assert any(value.split()[-1] == json.loads(entry)[0] for name, value in instructions if name == "COPY")
