"""A PostgreSQL for tests: a server that is given, or one of our own from the installed binaries."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

URL_NAME = "SWEEPER_TEST_POSTGRES"  # of a server whose databases may be written to
BINARIES = "/usr/lib/postgresql"  # where Debian keeps them, by version


@contextmanager
def a_postgres() -> Iterator[str]:
    """The URL of a database; skips the test, and says why, where there can be none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if given := os.environ.get(URL_NAME):
        yield given
        return
    found = sorted(Path(BINARIES).glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip(f"no PostgreSQL: give {URL_NAME}, or install postgresql")
    with tempfile.TemporaryDirectory(prefix="swp-pg-", dir="/tmp") as directory:
        home = Path(directory)
        as_user = _not_root(home)
        data, tools = home / "data", Path(initdb).resolve().parent
        _run([*as_user, initdb, "-D", str(data), "--auth=trust", "-U", "sweeper", "--no-sync"])
        # No port is opened: the socket alone.
        options = f"-c listen_addresses='' -k {home} -c fsync=off"
        control = [*as_user, str(tools / "pg_ctl"), "-D", str(data), "-w"]
        _run([*control, "-o", options, "-l", str(home / "log"), "start"])
        try:
            yield f"postgresql+psycopg://sweeper@/postgres?host={home}"
        finally:
            _run([*control, "-m", "immediate", "stop"])


def _not_root(home: Path) -> list[str]:
    """What to put before a command, since PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("nobody")
    os.chown(home, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
