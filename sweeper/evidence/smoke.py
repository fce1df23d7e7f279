"""A script tried out: imported in a locked child, its model built, one loss of random tokens.

It shows that a record's script runs at all, and what its model is. The script may be hostile: it
gets a scratch folder, no network and no way to other processes (smoke_lockdown.py), and it is ended
with all that it started. What it says of itself is its own word; a smoke test is no proof.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sweeper.errors import UserError
from sweeper.evidence.audit_child import CPU_SECONDS, limited
from sweeper.evidence.smoke_usage import overused, remove
from sweeper.evidence.unpack import unpack

MOST_BYTES = 32 << 20  # of a script
SCRATCH_BYTES = 256 << 20  # that a script may write in all
OUTPUT_CHARS = 4_000  # of its output that is kept, the last
TOLD_BYTES = 1 << 20  # of what the child says
POLL_SECONDS = 0.1
ROOT = Path(__file__).resolve().parents[2]
START = "import sys; sys.path.insert(0, {root!r}); from sweeper.evidence import smoke_child as c; "
START += "sys.path.remove({root!r}); c.main()"


class Stage(StrEnum):
    """How far a smoke run came."""

    START = "start"
    LOCKDOWN = "lockdown"
    IMPORT = "import"
    BUILD = "build"
    FORWARD = "forward"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class SmokeResult:
    """How far a script came and what its model is; None for what it did not come to.

    `error` says what failed in `stage`. `loss` is that of random tokens, in nats a token: about
    ln(vocab_size) for a model that has learned nothing. `refused` is what the script asked for and
    must not have; `held` what held it.
    """

    path: Path
    stage: Stage
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    import_seconds: float | None = None
    code_bytes: int | None = None
    settings: str | None = None
    model: str | None = None
    parameters: int | None = None
    vocab_size: int | None = None
    layers: int | None = None
    dim: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    loss: float | None = None
    refused: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    output: str = ""  # the last of what it printed

    @property
    def ok(self) -> bool:
        return self.stage is Stage.DONE and self.error is None


def smoke(
    path: Path,
    *,
    timeout: float = 60.0,
    memory_bytes: int = 4 << 30,
    settings: Mapping[str, str] | None = None,
) -> SmokeResult:
    """Try a script out; `settings` are its environment. UserError where there is none to try.

    `timeout` is in seconds of wall clock, for all of it. `memory_bytes` is on top of what Python
    and torch take.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise UserError(f"--timeout {timeout:g}: must be a number of seconds above 0")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a train_gpt.py")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES >> 20} MiB; no train_gpt.py is")
    scratch = Path(tempfile.mkdtemp(prefix="smoke-")).resolve()
    try:
        script = scratch / "train_gpt.py"
        shutil.copyfile(path, script)
        run = _Run(path, script, timeout, memory_bytes, dict(settings or {}))
        return run.result()
    finally:
        remove(scratch)


@dataclass
class _Run:
    """One child, from its start to its end."""

    path: Path
    script: Path
    timeout: float
    memory_bytes: int
    settings: dict[str, str]
    told: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    printed: int = 0
    ended_by: str | None = None

    def result(self) -> SmokeResult:
        started = time.monotonic()
        tell_read, tell_write = os.pipe()
        try:
            child = self._start(tell_write)
            os.close(tell_write)
            tell_write = -1
            try:
                self._listen(child, tell_read, started + self.timeout)
            finally:
                _end(child)
        finally:
            for each in (tell_read, tell_write):
                if each >= 0:
                    os.close(each)
        return self._judge(child.returncode, time.monotonic() - started)

    def _start(self, tell: int) -> subprocess.Popen[bytes]:
        request = {
            "tell": tell,
            "parent": os.getpid(),
            "folder": str(self.script.parent),
            "script": str(self.script),
            "torch": _needs_torch(self.script.read_bytes(), self.timeout),
            "memory_bytes": self.memory_bytes,
            "cpu_seconds": int(self.timeout * max(1, os.cpu_count() or 1)) + 5,
        }
        code = START.format(root=str(ROOT))
        return subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", code, json.dumps(request)],
            cwd=self.script.parent,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(tell,),
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        folder = str(self.script.parent)
        clean = {
            "PATH": os.defpath,
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(min(4, os.cpu_count() or 1)),
        }
        return clean | self.settings

    def _listen(self, child: subprocess.Popen[bytes], tell: int, deadline: float) -> None:
        """Take in what it says and prints until it has ended, or must be."""
        assert child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, self._take_output)
            selector.register(tell, selectors.EVENT_READ, self._take_told)
            checked = time.monotonic()
            while self.ended_by is None:
                now = time.monotonic()
                if now >= deadline:
                    self.ended_by = f"it took longer than {self.timeout:g} s"
                elif selector.get_map():
                    for key, _ in selector.select(min(POLL_SECONDS, deadline - now)):
                        data = os.read(key.fd, 1 << 16)
                        if not data:
                            selector.unregister(key.fileobj)
                        key.data(data)
                elif _has_ended(child, min(POLL_SECONDS, deadline - now)):
                    return
                if now - checked > 5 * POLL_SECONDS:
                    checked = now
                    self.ended_by = overused(child.pid, self.script.parent, SCRATCH_BYTES)

    def _take_output(self, data: bytes) -> None:
        self.printed += len(data)
        self.output += data
        del self.output[: -4 * OUTPUT_CHARS]

    def _take_told(self, data: bytes) -> None:
        self.told += data[: max(0, TOLD_BYTES - len(self.told))]

    def _judge(self, code: int | None, seconds: float) -> SmokeResult:
        said: dict[str, Any] = {}
        for each in _objects(bytes(self.told)):
            said.update(each)
        stage = _stage(said)
        error = self.ended_by or _text(said.get("error"))
        if error is None and stage is not Stage.DONE:
            error = _death(code)
        notes = [*_texts(said.get("notes"))]
        if self.printed > OUTPUT_CHARS:
            notes.append(f"it printed {self.printed:,} bytes, of which the last are kept")
        return SmokeResult(
            path=self.path,
            stage=stage,
            error=error,
            traceback=None if error is None else _text(said.get("traceback")),
            seconds=seconds,
            import_seconds=_number(said.get("import_seconds")),
            code_bytes=self.script.stat().st_size if self.script.exists() else None,
            settings=_text(said.get("settings")),
            model=_text(said.get("model")),
            **{name: _whole(said.get(name)) for name in WHOLE_NUMBERS},
            loss=_number(said.get("loss")),
            refused=tuple(_texts(said.get("refused"))),
            held=tuple(_texts(said.get("held"))),
            notes=tuple(notes),
            output=_clean(bytes(self.output).decode("utf-8", "replace"))[-OUTPUT_CHARS:],
        )


WHOLE_NUMBERS = ("parameters", "vocab_size", "layers", "dim", "heads", "kv_heads")


def _needs_torch(data: bytes, seconds: float) -> bool:
    """Whether any source of a script may name torch; importing it takes a second or two."""
    if re.search(rb"\btorch\b", data):
        return True
    if not re.search(rb"exec|eval|compile", data):
        return False
    try:
        # A process of its own: unpacking may take more memory and time than there is.
        most = math.ceil(min(CPU_SECONDS, seconds))
        said = limited(f"from {__name__} import naming_torch as run", [], data, cpu_seconds=most)
    except RuntimeError:
        return True
    return said != b"no"


def naming_torch(data: bytes) -> bytes:
    """Whether a source of a script names torch, in the process that finds out."""
    found = any(re.search(r"\btorch\b", layer.source) for layer in unpack(data).layers)
    return b"yes" if found else b"no"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all of its session; where it has namespaces, all of these."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _has_ended(child: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ends within so many seconds; one that closed its output may still be at work."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


# ---- what the child said: anything may stand there


def _objects(told: bytes) -> Iterator[dict[str, Any]]:
    for line in told.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def _stage(said: Mapping[str, Any]) -> Stage:
    scored = _number(said.get("loss")) is not None and _text(said.get("model")) is not None
    if said.get("done") is True and said.get("error") is None and scored:
        return Stage.DONE
    # That it is done is not its own to say as a stage.
    come_to = (each for each in Stage if each is not Stage.DONE and each == said.get("stage"))
    return next(come_to, Stage.START)


def _death(code: int | None) -> str:
    """Why a child ended that said nothing of it."""
    number = -code if code is not None and code < 0 else (code or 0) - 128
    if number == signal.SIGXCPU:
        return "it used more CPU time than it may"
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(number).name}"
    return f"it ended by itself before it was done, with exit code {code}"


def _text(value: object) -> str | None:
    return _clean(value)[:TOLD_BYTES] if isinstance(value, str) else None


def _texts(value: object) -> list[str]:
    listed = value[:50] if isinstance(value, list) else []
    return [_clean(each)[:300] for each in listed if isinstance(each, str)]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A whole number may be of any length.
    return float(value) if abs(value) <= sys.float_info.max else None


def _whole(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < 1 << 63 else None


def _clean(text: str) -> str:
    """Text without what a terminal could take for a command."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


# ---- for people and programs


def as_json(result: SmokeResult) -> dict[str, Any]:
    """The result for programs, ready for JSON."""
    facts = asdict(result) | {"path": str(result.path), "ok": result.ok}
    return {"schema": 1, "kind": "smoke", **facts}


def as_text(result: SmokeResult) -> str:
    """The result as plain lines."""
    if result.ok:
        head = f"smoke: runs; loss of random tokens {result.loss:.4f} nats"
    else:
        head = f"smoke: failed at {result.stage}: {result.error}"
    shape = [
        f"{name} {value:,}"
        for name in WHOLE_NUMBERS
        if (value := getattr(result, name)) is not None
    ]
    lines = [head]
    if result.model is not None:
        lines.append(f"model     {result.model}: {', '.join(shape)}")
    if result.import_seconds is not None:
        lines.append(f"import    {result.import_seconds:.1f} s of {result.seconds:.1f} s")
    lines += [f"refused   {each}" for each in result.refused]
    lines.append(f"held by   {'; '.join(result.held) or 'nothing: it did not come so far'}")
    lines += [f"note      {each}" for each in result.notes]
    if not result.ok and result.traceback:
        lines += ["", result.traceback.rstrip()]
    return "\n".join(lines)
