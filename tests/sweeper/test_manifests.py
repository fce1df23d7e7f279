"""The files of jobs/cluster/, against the schemas of who reads them and against this project.

Ray's own schema comes with Ray. KubeRay's is that of its Go types (ray-operator/apis/ray/v1), as
far as the manifests use it: an unknown or misspelt key is refused there, and here.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from sweeper.spec import load_spec
from tests.sweeper.conftest import ROOT

CLUSTER = ROOT / "jobs" / "cluster"
MANIFESTS = ("rayjob.yaml", "raycluster.yaml")
RAY_UP = ("ray-up.yaml", "ray-up.aws.yaml")

Json = dict[str, Any]


def documents(name: str) -> list[Json]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def of_kind(name: str, kind: str) -> Json:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def cluster_spec(name: str) -> Json:
    """The spec of the Ray cluster that a manifest makes."""
    if name == "rayjob.yaml":
        spec: Json = of_kind(name, "RayJob")["spec"]["rayClusterSpec"]
        return spec
    return of_kind(name, "RayCluster")["spec"]


# ---- KubeRay


def table(required: tuple[str, ...] = (), **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Json) -> Json:
    return {"type": "array", "items": items, "minItems": 1}


TEXT: Json = {"type": "string", "minLength": 1}
COUNT: Json = {"type": "integer", "minimum": 0}
# What Kubernetes calls an int-or-string, kept to strings: 8 and "8" are not the same to everybody.
QUANTITIES: Json = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"},
}
TEXTS: Json = {"type": "object", "additionalProperties": TEXT}
CONTAINER = table(
    ("name", "image"),
    name={"type": "string", "pattern": "^[a-z0-9-]+$"},
    image={"type": "string", "pattern": r"^[a-z0-9.-]+(/[a-z0-9.-]+)+:[\w.-]+$"},
    workingDir=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(table(("name", "value"), name=TEXT, value=TEXT)),
    ports=listed(table(("containerPort", "name"), containerPort=COUNT, name=TEXT)),
    resources=table(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=listed(table(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = table(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=table(("claimName",), claimName=TEXT),
    configMap=table(("name",), name=TEXT),
    emptyDir=table(medium=TEXT, sizeLimit=TEXT),
)
POD = table(
    ("spec",),
    spec=table(
        ("containers",),
        containers=listed(CONTAINER),
        initContainers=listed(CONTAINER),
        volumes=listed(VOLUME),
        tolerations=listed(table(("key", "operator"), key=TEXT, operator=TEXT, effect=TEXT)),
        securityContext=table(fsGroup=COUNT),
    ),
)
RAY_CLUSTER = table(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions"),
    rayVersion=TEXT,
    authOptions=table(("mode",), mode={"const": "token"}),
    headGroupSpec=table(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=listed(
        table(
            ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAY_JOB = table(
    ("entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes"),
    entrypoint=TEXT,
    entrypointNumCpus={"const": 0},
    entrypointNumGpus={"const": 0},
    rayClusterSpec=RAY_CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes={"const": True},
    ttlSecondsAfterFinished=COUNT,
)
CLAIM = table(
    ("accessModes", "resources"),
    accessModes=listed({"enum": ["ReadWriteOnce"]}),
    resources=table(("requests",), requests=QUANTITIES),
)
SPECS = {
    ("v1", "PersistentVolumeClaim"): CLAIM,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kuberay_reads(name: str) -> None:
    for document in documents(name):
        schema = table(
            ("apiVersion", "kind", "metadata", "spec"),
            apiVersion=TEXT,
            kind=TEXT,
            metadata=table(("name",), name=TEXT),
            spec=SPECS[document["apiVersion"], document["kind"]],
        )
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_gpus_are_the_workers_alone(name: str) -> None:
    spec = cluster_spec(name)
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head)
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert {"name": "RAY_worker_niceness", "value": "0"} in container["env"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_mount_has_its_volume_and_every_claim_is_made(name: str) -> None:
    spec = cluster_spec(name)
    claims = {of_kind(name, "PersistentVolumeClaim")["metadata"]["name"]}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        containers = pod["containers"] + pod.get("initContainers", [])
        mounted = {mount["name"] for one in containers for mount in one["volumeMounts"]}
        assert mounted == volumes.keys()
        used = {
            v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persi" in str(v)
        }
        assert used <= claims


def test_the_job_runs_the_sweep_by_a_command_line_that_there_is() -> None:
    entrypoint = shlex.split(of_kind("rayjob.yaml", "RayJob")["spec"]["entrypoint"])
    assert entrypoint[:3] == ["python", "-m", "jobs.sweep"]
    (head,) = cluster_spec("rayjob.yaml")["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {mount["mountPath"] for mount in head["volumeMounts"]}
    spec, root = entrypoint[3], entrypoint[entrypoint.index("--root") + 1]
    assert {str(Path(spec).parent), root} == mounts
    # It says what is wrong with its spec, so it has understood the rest of the line.
    done = run("jobs.sweep", str(ROOT / "no such file"), *entrypoint[4:])
    assert done.returncode == 2
    assert "no such file: cannot be read" in done.stderr


@pytest.mark.parametrize("name", MANIFESTS)
def test_workers_fetch_their_data_to_where_the_runs_read_it(name: str) -> None:
    (group,) = cluster_spec(name)["workerGroupSpecs"]
    (data,) = group["template"]["spec"]["initContainers"]
    (worker,) = group["template"]["spec"]["containers"]
    check_fetches(data["command"] + data["args"], "/data")
    assert data["volumeMounts"][0] in worker["volumeMounts"]
    assert "DATA_DIR=/data" in (CLUSTER / name).read_text()


def check_fetches(command: list[str], out: str) -> None:
    """A command fetches a data set into a directory, with options that there are."""
    place = command.index("jobs.data")
    assert command[place - 1] == "-m"
    assert command[-2:] == ["--out", out]
    known = run("jobs.data", "fetch", "--help").stdout
    for option in [word for word in command[place:] if word.startswith("--")]:
        assert option in known
    assert "fetch" in command


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ---- ray up


@pytest.mark.parametrize("name", RAY_UP)
def test_a_cluster_file_is_what_ray_up_reads(name: str) -> None:
    (config,) = documents(name)
    schema = Path(str(distribution("ray").locate_file("ray/autoscaler/ray-schema.json")))
    jsonschema.validate(config, json.loads(schema.read_text()))
    prepared = json.loads(prepare(CLUSTER / name))
    workers = 2
    node_types = prepared["available_node_types"].values()
    assert max(kind["max_workers"] for kind in node_types) == prepared["max_workers"] == workers
    assert max(kind["min_workers"] for kind in node_types) == workers


# What `ray up` does with the file before it reaches for the network.
PREPARE = """
import json, sys, yaml
from ray.autoscaler._private import util
config = util.prepare_config(yaml.safe_load(open(sys.argv[1])))
util.validate_config(config)
print(json.dumps(config))
"""


def prepare(path: Path) -> str:
    command = [sys.executable, "-c", PREPARE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", RAY_UP)
def test_the_heads_of_ray_up_hold_nothing_and_every_node_has_the_token(name: str) -> None:
    (config,) = documents(name)
    for role in ("head", "worker"):
        stop, start = config[f"{role}_start_ray_commands"]
        assert stop.endswith("/ray stop")
        assert "RAY_AUTH_MODE=token" in start
    head = config["head_start_ray_commands"][1]
    assert "--num-cpus=0 --num-gpus=0" in head
    assert "/home/ubuntu/.ray/auth_token" in config["file_mounts"]
    (fetch,) = config["worker_setup_commands"]
    check_fetches(shlex.split(fetch), "~/data")
    kept_out = set(config["rsync_exclude"])
    assert {".git", ".venv", "runs", "data"} <= kept_out
    if name == "ray-up.aws.yaml":
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
        assert types["gpu"]["min_workers"] == types["gpu"]["max_workers"] == config["max_workers"]


# ---- versions


def test_one_version_of_ray_everywhere_and_the_project_takes_it() -> None:
    files = [path for path in CLUSTER.iterdir() if path.is_file() and path.name != "__init__.py"]
    text = "\n".join(path.read_text() for path in files)
    pattern = (
        r"rayVersion: \"([\d.]+)\"|sweeper:ray([\d.]+\d)|ray\[default\]==([\d.]+)|/ray:([\d.]+)"
    )
    found = [next(filter(None, match)) for match in re.findall(pattern, text)]
    assert len(found) >= 12
    (version,) = set(found)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = [line for line in project["dependencies"] if line.startswith("ray[")]
    lowest = re.fullmatch(r"ray\[default\]>=([\d.]+)", needed)
    assert lowest is not None, "the range of Ray has another form now; hold it here"
    assert numbers(version) >= numbers(lowest[1])
    # KubeRay asks for 2.52 where a token is wanted.
    assert numbers(version) >= (2, 52)
    python = re.search(r"-py(3)(\d+)-gpu", text)
    assert python is not None
    assert project["requires-python"] == ">=3.11"
    assert int(python[2]) >= 11


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_the_image_holds_what_a_sweep_needs() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY --chown=ray (.+) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert set(names) == {"pyproject.toml", "README.md", "sweeper", "model", "jobs"}
    assert all((ROOT / name).exists() for name in names)


def test_specs_and_scripts_that_are_named_are_there() -> None:
    for path in CLUSTER.iterdir():
        if path.is_file():
            for name in re.findall(r"jobs/[\w./-]+\.(?:toml|yaml|sh|py)", path.read_text()):
                assert (ROOT / name).is_file(), f"{path.name} names {name}"
                if name.endswith(".toml"):
                    load_spec(ROOT / name)
