"""A sweep as a Ray job: what is sent, under which name, and how it is followed and stopped.

All of it goes by the port of the cluster's dashboard. `client` is what sweeper/cluster.py makes of
Ray's own client; the job runs `python -m jobs.sweep`, holds no GPU, and keeps the sweep in a
directory that outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import re
import shlex
import shutil
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import UnreachableError, UserError
from sweeper.settings import PATH_NAME
from sweeper.snapshot import check_overrides, sources
from sweeper.spec import SweepSpec, load_spec

PROJECT = Path(__file__).resolve().parent.parent
# Outlives the job, and its copy of the project, on the head's disk.
DEFAULT_ROOT = "~/sweeper-runs"
MAX_BYTES = 100 << 20  # what Ray takes
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
WORKLOAD = "workload"  # where a script lies, in what is sent
IGNORE_LISTS = {".gitignore", ".rayignore"}
INSTALLED = {"site-packages", "dist-packages"}
# Between SIGTERM and SIGKILL: the runs have half of it (jobs/sweep.py). Ray's own are 3 s.
STOP_WAIT_SECONDS = 20
STOPPED_SECONDS = 60.0
POLL_SECONDS = 0.5
# A stream that says nothing for so long is opened anew: the other end may have gone silently.
SILENCE_SECONDS = 90.0
LOOK_SECONDS = 1.0
RECONNECT_SECONDS = 1.0
PATIENCE_SECONDS = 120.0  # with a server that does not answer while a job is followed
OVER = {"SUCCEEDED", "STOPPED", "FAILED"}


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to submit; relative paths of the spec are taken from the current directory."""

    spec: Path
    env: Mapping[str, str]
    root: str = DEFAULT_ROOT
    python: str = "python"
    options: tuple[str, ...] = ()  # more of `sweeper run`

    @property
    def entrypoint(self) -> str:
        arguments = [self.python, "-m", "jobs.sweep", "spec.toml", "--root", self.root]
        for name, value in self.env.items():
            arguments += ["--env", f"{name}={value}"]
        return shlex.join([*arguments, *self.options])


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One sweep's job, as the cluster knows it. Unix seconds."""

    id: str
    sweep: str
    root: str
    python: str
    status: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def over(self) -> bool:
        return self.status in OVER


# ---- what is sent


def submit(client: Any, submission: Submission) -> str:
    """Send a sweep to a cluster; the job's id.

    The id follows from all that is sent, so that Ray refuses it a second time. Raises UserError
    when the sweep is at work there or is finished, and when something of it cannot be sent.
    """
    spec = load_spec(submission.spec, env=dict(submission.env))
    with tempfile.TemporaryDirectory(prefix="sweeper-submit-") as scratch:
        stage(spec, submission, Path(scratch))
        digest = content_hash(Path(scratch), submission.entrypoint)
        rows = jobs(client)
        _check_alone(spec.name, submission.root, rows)
        identity = choose_id(f"{spec.name}-{digest[:8]}", rows)
        try:
            return str(
                client.submit_job(
                    entrypoint=submission.entrypoint,
                    submission_id=identity,
                    runtime_env={
                        "working_dir": scratch,
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SECONDS)},
                    },
                    metadata={
                        "sweeper": "sweep",
                        "sweep": spec.name,
                        "root": submission.root,
                        "python": submission.python,
                        "digest": digest,
                    },
                    entrypoint_num_cpus=0,
                    entrypoint_num_gpus=0,
                )
            )
        except RuntimeError as error:
            if "already exists" in str(error):
                raise UserError(_already(identity, "has been submitted")) from None
            raise UserError(f"the cluster does not take the job: {last_line(error)}") from error


def choose_id(identity: str, rows: list[JobRow]) -> str:
    """The id for a submission: the first one, or the next after one that broke off.

    Raises UserError when a job of the same content is at work or has finished.
    """
    status = {row.id: row.status for row in rows}
    chosen, number = identity, 1
    while (found := status.get(chosen)) is not None:
        if found == "SUCCEEDED":
            raise UserError(
                f"job {chosen} has done just this: `sweeper jobs pull {chosen}` brings its results"
            )
        if found not in OVER:
            raise UserError(_already(chosen, "is at work on just this"))
        number += 1
        chosen = f"{identity}-{number}"
    return chosen


def _check_alone(sweep: str, root: str, rows: list[JobRow]) -> None:
    for row in rows:
        if (row.sweep, row.root) == (sweep, root) and not row.over:
            raise UserError(_already(row.id, f"is at work on sweep {sweep!r}"))


def _already(identity: str, what: str) -> str:
    return (
        f"job {identity} {what}; `sweeper jobs logs {identity} --follow` shows it, after "
        f"`sweeper jobs stop {identity}` another submission goes on where it was"
    )


def stage(spec: SweepSpec, submission: Submission, target: Path) -> None:
    """Put what the job needs into a directory, and nothing else.

    Raises UserError naming what is too large, or what would not be found over there.
    """
    check_root(submission.root)
    for part in ("sweeper", "jobs"):
        shutil.copytree(PROJECT / part, target / part, ignore=LEFT_OUT)
    if (PROJECT / "pyproject.toml").is_file():
        shutil.copy(PROJECT / "pyproject.toml", target)
    text = submission.spec.read_text(encoding="utf-8")
    work = spec.workload
    if work.script is not None:
        files = sources(work)
        check_overrides(spec, files)
        _copy(files, target / WORKLOAD)
        text = _with_places(text, target)
    elif not _is_there(work.module.partition(".")[0], target):
        _copy(sources(work), target)
    (target / "spec.toml").write_text(text, encoding="utf-8")
    check_paths(spec, tomllib.loads(text), submission.env)
    check_size(target)


def _is_there(name: str, target: Path) -> bool:
    """Whether a top-level package need not be sent: it is already, or is an installed library."""
    found = importlib.util.find_spec(name)
    places = [] if found is None else [*(found.submodule_search_locations or []), found.origin]
    paths = [Path(place) for place in places if place]
    installed = any(
        not INSTALLED.isdisjoint(path.parts) and not path.is_relative_to(PROJECT / name)
        for path in paths
    )
    return installed or (target / name).exists()


def _copy(files: Mapping[str, Path], target: Path) -> None:
    for name, path in files.items():
        if path.name in IGNORE_LISTS:
            continue  # Ray would go by it
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / name)


def _with_places(text: str, target: Path) -> str:
    """A spec's text with the places of script and include as they are sent."""
    given = tomllib.loads(text)["workload"]
    for said in (given["script"], *given.get("include", ())):
        for quote in ('"', "'"):
            there = f"{quote}{WORKLOAD}/{Path(said).name}{quote}"
            text = text.replace(f"{quote}{said}{quote}", there)
    now = tomllib.loads(text)["workload"]
    if not all((target / name).exists() for name in (now["script"], *now.get("include", ()))):
        raise UserError(
            "workload: write the paths of script and include as plain quoted text, so that they "
            "can be sent"
        )
    return text


def check_root(root: str) -> None:
    """UserError where a sweep would lie in its job's directory, which Ray removes with the job."""
    if not re.match(r"/|~(/|$)", root):
        raise UserError(
            f"--root {root}: a directory of the cluster's head, as /data/runs or ~/runs"
        )


def check_paths(spec: SweepSpec, table: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """UserError when a setting names a place that will not be there: data is never sent."""
    settings = [table.get("env", {}) | env, *(trial.get("env", {}) for trial in table["trial"])]
    for name, value in ((name, value) for one in settings for name, value in one.items()):
        relative = isinstance(value, str) and value not in ("", "none") and value[0] != "/"
        if PATH_NAME.fullmatch(name) and relative:
            raise UserError(
                f"{name} = {value!r} is a path from here, and data is not sent: give its place on "
                f"the cluster, as with --env {name}=/data"
            )
    url = "" if spec.storage is None else spec.storage.url
    if url and "://" not in url and not url.startswith("/"):
        raise UserError(f"storage.url = {url!r} is a path from here; give an absolute one or a URL")


def check_size(directory: Path, most: int = MAX_BYTES) -> None:
    """UserError that names the largest files when there is more than Ray takes."""
    sizes = {path: path.stat().st_size for path in _files(directory)}
    total = sum(sizes.values())
    if total <= most:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
    named = ", ".join(
        f"{path.relative_to(directory)} ({sizes[path] / (1 << 20):.1f} MiB)" for path in largest
    )
    raise UserError(
        f"{total / (1 << 20):.1f} MiB would be sent, Ray takes {most >> 20} MiB; the largest: "
        f"{named}. Put them on the cluster and name their place there by a setting"
    )


def content_hash(directory: Path, entrypoint: str) -> str:
    """Identity of what is sent."""
    digest = hashlib.sha256(entrypoint.encode())
    for path in sorted(_files(directory)):
        name = path.relative_to(directory).as_posix()
        digest.update(f"\0{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


# ---- the jobs there are


def jobs(client: Any) -> list[JobRow]:
    """The cluster's jobs that are sweeps, in the order of their submission."""
    rows = [
        _row(found)
        for found in client.list_jobs()
        if (found.metadata or {}).get("sweeper") == "sweep" and found.submission_id
    ]
    return sorted(rows, key=lambda row: row.started or 0.0)


def find_job(client: Any, name: str) -> JobRow:
    """The job of an id, or the last one of a sweep; UserError when there is none."""
    rows = jobs(client)
    found = [row for row in rows if row.id == name] or [row for row in rows if row.sweep == name]
    if not found:
        known = ", ".join(row.id for row in rows[-5:]) or "none"
        raise UserError(f"no job or sweep {name!r} there (its sweeps' jobs: {known})")
    return found[-1]


def _row(found: Any) -> JobRow:
    metadata = found.metadata
    return JobRow(
        id=found.submission_id,
        sweep=metadata.get("sweep", ""),
        root=metadata.get("root", DEFAULT_ROOT),
        python=metadata.get("python", "python"),
        status=str(found.status.value),
        started=None if found.start_time is None else found.start_time / 1000,
        ended=None if found.end_time is None else found.end_time / 1000,
        exit_code=found.driver_exit_code,
        message=found.message or "",
    )


def look(client: Any, identity: str) -> JobRow:
    """One job as it is now; UserError where the cluster does not know it any more."""
    return _row(client.get_job_info(identity))


def stop(client: Any, job: JobRow) -> JobRow:
    """Stop a job and return how it ended; UserError when it does not end."""
    if job.over:
        return job
    client.stop_job(job.id)
    deadline = time.monotonic() + STOPPED_SECONDS
    while not (row := look(client, job.id)).over:
        if time.monotonic() > deadline:
            raise UserError(f"job {job.id} was told to stop and has not ended yet: {row.message}")
        time.sleep(POLL_SECONDS)
    return row


# ---- following


def follow(client: Any, identity: str, show: Callable[[str], None]) -> JobRow:
    """Show a job's log as it comes, until the job has ended; how it ended, by its status.

    A stream that breaks off is opened again. Raises UserError when the server stays away, or has
    forgotten the job.
    """
    shown, deadline = 0, time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            shown = asyncio.run(_follow_once(client, identity, shown, show))
            row = look(client, identity)
            deadline = time.monotonic() + PATIENCE_SECONDS
            if row.over:
                show(str(client.get_job_logs(identity))[shown:])
                return row
        except (UnreachableError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise UserError(f"job {identity} cannot be followed: {last_line(error)}") from error
        time.sleep(RECONNECT_SECONDS)


async def _follow_once(client: Any, identity: str, shown: int, show: Callable[[str], None]) -> int:
    """Show what comes after the first `shown` characters, until the stream or the job ends.

    Returns how many have been shown.
    """
    import aiohttp

    seen, heard = 0, time.monotonic()
    stream = client.tail_job_logs(identity)
    coming: asyncio.Future[str] | None = None
    breaks = (aiohttp.ClientError, OSError, RuntimeError, UnreachableError)
    with contextlib.suppress(StopAsyncIteration, *breaks):
        while time.monotonic() - heard < SILENCE_SECONDS:
            coming = coming or asyncio.ensure_future(anext(stream))
            await asyncio.wait({coming}, timeout=LOOK_SECONDS)
            if coming.done():
                text = coming.result()
                show(text[max(0, shown - seen) :])
                seen, heard, coming = seen + len(text), time.monotonic(), None
                shown = max(shown, seen)
            elif (await asyncio.to_thread(look, client, identity)).over:
                break  # the stream itself would end seconds later
    if coming is not None:
        coming.cancel()
        await asyncio.wait({coming})
    return shown


def last_line(error: Exception) -> str:
    """What an answer of the server comes down to: many hold a whole traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    text = (lines or [type(error).__name__])[-1]
    return re.sub(r"^\w+(Error|Exception): ", "", text).rstrip(".")


def as_json(rows: list[JobRow]) -> str:
    return json.dumps([vars(row) for row in rows], indent=1)
