"""Scripts tried out in a locked child: honest ones run, hostile ones end and leave nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sweeper.errors import UserError
from sweeper.evidence.smoke import SmokeResult, Stage, _needs_torch, as_json, as_text, smoke
from tests.sweeper.evidence.audit_honest import HONEST
from tests.sweeper.evidence.audit_scripts import exported

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its locks are Linux's")
NATIVE = "import ctypes, os\nlibc = ctypes.CDLL(None)\n"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where smoke runs have their folders: empty after each test, and no process left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []
    assert [each.cmdline() for each in psutil.Process().children() if _is_ours(each)] == []


def _is_ours(process: psutil.Process) -> bool:
    return "smoke_child" in " ".join(process.cmdline())


def tried(tmp_path: Path, source: str, timeout: float = 30.0) -> SmokeResult:
    script = tmp_path / "script.py"
    script.write_text(source, encoding="utf-8")
    return smoke(script, timeout=timeout, memory_bytes=256 << 20)


# ---- honest scripts


def test_a_public_layout_runs_and_says_what_its_model_is(tmp_path: Path, scratch: Path) -> None:
    # GPUs, kernels and a compiler are asked for as the module is imported.
    early = (
        "import triton, triton.language as tl\n"
        "from flash_attn_interface import flash_attn_func as attend\n"
        "@triton.jit\ndef kernel(x, BLOCK: tl.constexpr):\n    pass\n"
        "@torch.compile(dynamic=False)\ndef double(x):\n    return 2 * x\n"
        "TABLE = double(torch.ones(4, device='cuda')).cuda().to('cuda:0')\n"
        "q = torch.ones(1, 8, 4, 16, device=torch.device('cuda', 0))\n"
        "assert attend(q, q[:, :, :2], q[:, :, :2], causal=True).shape == q.shape\n"
    )
    script = tmp_path / "train_gpt.py"
    script.write_text(HONEST.replace("class Hyper", early + "\nclass Hyper", 1), encoding="utf-8")
    result = smoke(script, settings={"VOCAB_SIZE": "512", "NUM_LAYERS": "2"})
    assert result.error is None, as_text(result)
    assert result.ok
    assert (result.model, result.settings) == ("GPT", "Hyperparameters")
    assert (result.vocab_size, result.layers, result.dim) == (512, 2, 64)
    assert (result.heads, result.kv_heads) == (4, 2)
    a_block = 2 * 64 * 64 + 2 * 64 * 32 + 2 * 2 * 64 * 64
    assert result.parameters == 512 * 64 + 2 * a_block
    assert result.code_bytes == script.stat().st_size
    assert result.loss is not None
    assert math.isfinite(result.loss)
    assert "smoke: runs" in as_text(result)
    body = json.loads(json.dumps(as_json(result)))
    assert body["ok"]
    assert body["held"] == list(result.held)


def test_our_own_export_runs_wrapped(tmp_path: Path, scratch: Path) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_bytes(exported())
    result = smoke(script, settings={"PRESET": "tiny"})
    assert result.ok, as_text(result)
    assert (result.model, result.settings) == ("GPT", "Config")
    assert result.vocab_size is not None
    assert result.loss == pytest.approx(math.log(result.vocab_size), rel=0.02)


def test_a_failure_says_in_which_stage_and_why(tmp_path: Path, scratch: Path) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text(HONEST.replace("F.rms_norm(x, (x.size(-1),)))", "x[..., :3])"), "utf-8")
    result = smoke(script)
    assert result.stage is Stage.FORWARD
    assert result.error is not None
    assert "RuntimeError" in result.error
    assert result.traceback is not None
    assert "c_q(x)" in result.traceback
    assert result.parameters is not None  # what was known before stays known


@pytest.mark.parametrize(
    ("source", "stage", "error"),
    [
        ("import no_such_module\n", Stage.IMPORT, "No module named 'no_such_module'"),
        ("def f(:\n", Stage.IMPORT, "SyntaxError"),
        ("raise SystemExit(3)\n", Stage.IMPORT, "the script ended by itself"),
        ("import os\nos._exit(0)\n", Stage.IMPORT, "ended by itself before it was done"),
        ("x = 1\n", Stage.BUILD, "has no model"),
    ],
)
def test_what_is_no_trainer_fails_with_a_reason(
    tmp_path: Path, scratch: Path, source: str, stage: Stage, error: str
) -> None:
    result = tried(tmp_path, source)
    assert (result.stage, result.ok) == (stage, False)
    assert error in str(result.error)
    assert f"failed at {stage}" in as_text(result)


def test_main_is_not_run(tmp_path: Path, scratch: Path) -> None:
    result = tried(tmp_path, "print(__name__)\nif __name__ == '__main__':\n    print('main ran')\n")
    assert result.output.split() == ["train_gpt"]


def test_no_script_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        smoke(tmp_path / "none.py")


# ---- hostile scripts


def test_an_endless_loop_is_ended(tmp_path: Path, scratch: Path) -> None:
    result = tried(tmp_path, "while True: pass\n", timeout=1.0)
    assert (result.stage, result.error) == (Stage.IMPORT, "it took longer than 1 s")


@pytest.mark.parametrize(
    "source",
    [
        "held = []\nwhile True: held.append(bytearray(1 << 24))\n",
        "import mmap\nmmap.mmap(-1, 1 << 33)\n",
    ],
    ids=["private", "shared"],
)
def test_a_memory_bomb_runs_out(tmp_path: Path, scratch: Path, source: str) -> None:
    result = tried(tmp_path, source)
    assert "memory" in str(result.error)


def test_a_full_disk_is_not_had(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.evidence.smoke.SCRATCH_BYTES", 16 << 20)
    source = "n = 0\nwhile True:\n    open(f'{(n := n + 1)}', 'wb').write(b'x' * (1 << 20))\n"
    result = tried(tmp_path, source)
    assert result.error == "it wrote more than 16 MiB"


@pytest.mark.parametrize(
    "write",
    [
        "open(VICTIM, 'w').write('x')",
        "import os; os.open(VICTIM, os.O_CREAT | os.O_WRONLY)",
        "import shutil; shutil.copyfile(__file__, VICTIM)",
        "import os; os.rename(__file__, VICTIM)",
        "import os; os.symlink('/', 'up'); open('up' + VICTIM, 'w')",
    ],
)
def test_nothing_outside_is_written(tmp_path: Path, scratch: Path, write: str) -> None:
    victim = tmp_path / "victim"
    result = tried(tmp_path, f"VICTIM = {str(victim)!r}\n{write}\n")
    assert not victim.exists()
    assert "refused" in str(result.error)
    assert result.refused


def test_native_code_is_held_as_well(tmp_path: Path, scratch: Path) -> None:
    """What passes by Python's hooks: by the C library, a script gets no file, socket or process."""
    victim = tmp_path / "victim"
    source = f"{NATIVE}print([libc.open({os.fsencode(victim)!r}, os.O_CREAT | os.O_WRONLY, 0o600),"
    source += "libc.socket(2, 1, 0), libc.fork(), libc.kill(os.getppid(), 9), libc.kill(-1, 9)])\n"
    result = tried(tmp_path, source)
    if not all(any(each.startswith(name) for each in result.held) for name in ("Land", "seccomp")):
        pytest.skip(f"this machine has only {result.held}")
    assert result.output.split("\n")[0] == "[-1, -1, -1, -1, -1]"
    assert not victim.exists()


def test_no_connection_is_made(tmp_path: Path, scratch: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        place = server.getsockname()
        source = "import socket\ntry:\n    "
        source += (
            f"socket.create_connection({place!r})\nexcept OSError as error:\n    print(error)\n"
        )
        result = tried(tmp_path, source)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert any("socket" in each for each in result.refused)  # said, though the script went on
    assert "refused in a smoke run" in result.output


@pytest.mark.parametrize(
    "source",
    [
        "import os\nwhile True: os.fork()\n",
        "import subprocess\nsubprocess.run(['true'])\n",
        "import os\nos.kill(os.getppid(), 9)\n",
        "import os\nos.system('true')\n",
    ],
)
def test_no_other_process_is_reached(tmp_path: Path, scratch: Path, source: str) -> None:
    result = tried(tmp_path, source)
    assert "PermissionError" in str(result.error)
    assert result.refused


def test_threads_are_allowed(tmp_path: Path, scratch: Path) -> None:
    source = "import threading\nt = threading.Thread(target=print, args=('went',))\n"
    assert tried(tmp_path, source + "t.start(); t.join()\n").output.strip() == "went"


def test_much_output_is_cut(tmp_path: Path, scratch: Path) -> None:
    result = tried(tmp_path, "for _ in range(64): print('x' * (1 << 20))\nprint('\\x1b[31mlast')\n")
    assert len(result.output) <= 4_000
    assert result.output.rstrip().endswith(" [31mlast")  # nothing that a terminal obeys
    assert any("67,1" in each for each in result.notes)


def test_a_crash_names_its_signal(tmp_path: Path, scratch: Path) -> None:
    result = tried(tmp_path, "import ctypes\nctypes.string_at(0)\n")
    assert result.error == f"it was ended by {signal.SIGSEGV.name}"


def test_what_it_says_of_itself_may_be_anything(tmp_path: Path, scratch: Path) -> None:
    said = r'b"\xff{]\n[1]\n{\"layers\": \"x\", \"loss\": 1e999, \"stage\": [1], \"held\": 3}\n"'
    source = f"import os\nfor fd in range(3, 30):\n    try: os.write(fd, {said})\n"
    result = tried(tmp_path, source + "    except OSError: pass\nos._exit(7)\n")
    assert (result.layers, result.loss, result.held) == (None, None, ())
    assert "exit code 7" in str(result.error)
    assert as_text(result)


def test_it_is_done_only_with_a_model_and_a_loss(tmp_path: Path, scratch: Path) -> None:
    huge = "9" * 400
    for said in (
        '{"done": true}',
        '{"stage": "done", "model": "M"}',
        f'{{"done": true, "model": "M", "loss": {huge}}}',
    ):
        line = f"{said}\n".encode()
        source = f"import os\nfor fd in range(3, 30):\n    try: os.write(fd, {line!r})\n"
        result = tried(tmp_path, source + "    except OSError: pass\nos._exit(0)\n")
        assert not result.ok
        assert result.error == "it ended by itself before it was done, with exit code 0"
        assert "failed at" in as_text(result)
    numbers = f'{{"parameters": {huge}, "layers": -1, "dim": true, "notes": [[1], "said"]}}\n'
    source = f"import os\nfor fd in range(3, 30):\n    try: os.write(fd, {numbers.encode()!r})\n"
    result = tried(tmp_path, source + "    except OSError: pass\nos._exit(0)\n")
    assert (result.parameters, result.layers, result.dim) == (None, None, None)
    assert result.notes == ("said",)


def test_dimensions_are_those_of_the_model(tmp_path: Path, scratch: Path) -> None:
    source = (
        "import torch.nn as nn\n"
        "class Hyperparameters:\n"
        "    vocab_size, num_layers, model_dim, num_heads, num_kv_heads = 4096, 11, 512, 8, True\n"
        "class GPT(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.wte, self.head = nn.Embedding(64, 16), nn.Linear(16, 64)\n"
        "        self.blocks = nn.ModuleList([nn.Linear(16, 4096), nn.Linear(16, 16)])\n"
        "        self.blocks[1].num_heads = 4\n"
        "    def forward(self, x):\n"
        "        return self.head(self.wte(x))\n"
    )
    result = tried(tmp_path, source)
    assert result.ok, result.error
    assert (result.vocab_size, result.layers, result.dim, result.kv_heads) == (64, 2, 16, None)
    assert result.heads == 4
    for doubt in ("vocab_size is 4,096", "layers is 11", "dim is 512", "heads is 8"):
        assert any(each.startswith(f"{doubt} in the settings, and ") for each in result.notes)


@pytest.mark.parametrize("timeout", [0.0, -5.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(UserError, match="above 0"):
        tried(tmp_path, "", timeout)


def test_files_outside_keep_their_modes_and_times(tmp_path: Path, scratch: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    victim.chmod(0o600)
    before = victim.stat()
    source = f"import ctypes, os\nfd = os.open({str(victim)!r}, os.O_RDONLY)\n"
    source += "libc = ctypes.CDLL(None)\nway = {way}\ntry:\n    way()\nexcept OSError: pass\n"
    for way in (
        "lambda: os.fchmod(fd, 0o777)",
        "lambda: os.chmod(fd, 0o777)",
        "lambda: os.utime(fd, (0, 0))",
        "lambda: os.setxattr(fd, 'user.x', b'1')",
        f"lambda: libc.chmod({str(victim).encode()!r}, 0o777)",
        f"lambda: libc.utimes({str(victim).encode()!r}, None)",
    ):
        assert tried(tmp_path, source.format(way=way)).stage is Stage.BUILD
        after = victim.stat()
        assert (after.st_mode, after.st_mtime, after.st_ctime) == (
            *(before.st_mode, before.st_mtime, before.st_ctime),
        )


def test_nothing_is_kept_where_no_limit_counts(tmp_path: Path, scratch: Path) -> None:
    source = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    source += (
        "try:\n    os.memfd_create('x')\n    raise SystemExit('memfd')\nexcept OSError: pass\n"
    )
    source += "assert libc.shmget(0, 1 << 20, 0o1600) == -1, 'shm'\n"
    source += "assert libc.syscall(248, b'user', b'x', b'y', 1, -3) == -1, 'key'\n"
    assert tried(tmp_path, source).stage is Stage.BUILD


def test_files_without_a_name_count_too(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.evidence.smoke.SCRATCH_BYTES", 8 << 20)
    source = "import os, time\nkept = []\n"
    source += "for n in range(8):\n    f = open(str(n), 'wb'); f.write(bytes(4 << 20)); f.flush()\n"
    source += "    os.unlink(str(n)); kept.append(f)\ntime.sleep(60)\n"
    assert "wrote more than" in str(tried(tmp_path, source).error)
    # It may close what it is heard by.
    closed = (
        "import os, time\nfor fd in range(30):\n    try: os.close(fd)\n    except OSError: pass\n"
    )
    result = tried(tmp_path, closed + source, timeout=20.0)
    assert "wrote more than" in str(result.error)
    silent = tried(tmp_path, closed + "time.sleep(60)", timeout=1.5)
    assert "took longer than 1.5 s" in str(silent.error)


def test_files_count_that_are_mapped_alone(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.evidence.smoke.SCRATCH_BYTES", 8 << 20)
    # The first thread ends, and the name is one that breaks a line where lines are taken for text.
    source = (
        f"{NATIVE}import threading, time\nname = 'a\\u2028b'\n"
        "with open(name, 'w+b') as f:\n"
        "    f.write(bytes(4 << 20)); f.flush()\n"
        "    libc.mmap(None, ctypes.c_long(4096), 1, 1, f.fileno(), ctypes.c_long(0))\n"
        "os.unlink(name)\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
        "libc.pthread_exit(None)\n"
    )
    assert "wrote more than" in str(tried(tmp_path, source).error)


def test_threads_are_counted(tmp_path: Path, scratch: Path) -> None:
    source = (
        "import threading, time\nthreading.stack_size(1 << 15)\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: time.sleep(60)\n"
    )
    assert tried(tmp_path, source).error == "it started more than 1,000 threads"


def test_torch_is_there_for_what_names_it_and_where_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = f"import zlib\nexec(zlib.decompress({zlib.compress(b'import torch')!r}))\n".encode()
    for data, needs in ((b"import torch", True), (packed, True), (b"exec('x = 1')", False)):
        assert _needs_torch(data, 60.0) is needs
    monkeypatch.setattr("sweeper.evidence.smoke.limited", lambda *_, **__: None)
    assert _needs_torch(b"exec('x = 1')", 60.0)


@pytest.mark.parametrize(
    "call",
    [
        "libc.prctl(1, 0)",  # to outlive its parent
        "libc.prctl(4, 0)",  # not to be looked at
        "libc.socketpair(1, 1, 0, (ctypes.c_int * 2)())",
        "libc.ioctl(0, 0x40086602, ctypes.byref(ctypes.c_long()))",  # flags of a file
        "libc.ioctl(0, 0x8901, ctypes.byref(ctypes.c_int(os.getppid())))",  # FIOSETOWN
        "libc.fallocate(kept, 1, ctypes.c_long(0), ctypes.c_long(1 << 20))",
        "libc.truncate(b'kept', ctypes.c_long(0))",
        "libc.close_range(900, 901, 2)",
        "libc.sched_setscheduler(os.getppid(), 0, (ctypes.c_int * 1)())",
        "os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0))",
    ],
)
def test_what_gets_around_the_locks_is_no_call(tmp_path: Path, call: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import ctypes, os\n"
        "from sweeper.evidence import smoke_lockdown as l\n"
        "libc, kept = ctypes.CDLL(None, use_errno=True), os.open('kept', os.O_CREAT | os.O_RDWR)\n"
        "assert l.confine_calls()\nos.sched_setaffinity(0, os.sched_getaffinity(0))\n"
        f"os.isatty(0)\ntry: print({call}, ctypes.get_errno())\n"
        "except PermissionError as error: print(-1, error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "AssertionError" in done.stderr:
        pytest.skip("this machine does not have it")
    assert done.stdout == "-1 1\n", done.stderr


def test_a_folder_that_is_hard_to_remove_is_removed(tmp_path: Path, scratch: Path) -> None:
    source = (
        "import os\nfor _ in range(1100):\n    os.mkdir('d'); os.chdir('d')\nos.mkdir('e', 0)\n"
    )
    assert tried(tmp_path, source).stage is Stage.BUILD


@pytest.mark.parametrize(
    ("lock", "then"),
    [
        ("assert l.confine_calls()", "import os; os.fork()"),
        ("assert l.confine_calls()", "import socket; socket.socket()"),
        ("assert l.confine_calls()", "import os; os.kill(os.getppid(), 0)"),
        ("assert l.confine_calls()", "import os; os.execv('/bin/true', ['true'])"),
        (
            "assert l.confine_calls()",
            "import fcntl, os; r = open('kept'); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        ),
        (
            "assert l.confine_calls()",
            "import os, resource as r; r.prlimit(0, r.RLIMIT_CPU); r.prlimit(os.getpid(), "
            "r.RLIMIT_CPU); r.prlimit(os.getppid(), r.RLIMIT_CPU)",
        ),
        ("assert l.confine_calls()", "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 9)"),
        ("assert l.confine_calls()", "import os; os.chmod('kept', 0o777)"),
        ("assert l.confine_calls()", "import os; os.mknod('device')"),
        ("assert l.drop_capabilities()", "import os; os.chroot('.')"),
        ("assert l.confine_writes(Path('.'))", "open('../victim', 'w')"),
        ("l.watch(Path.cwd(), [])", "open('../victim', 'w')"),
        ("l.watch(Path.cwd(), [])", "import os; os.fork()"),
    ],
)
def test_each_lock_holds_alone(tmp_path: Path, lock: str, then: str) -> None:
    """Where a machine does not have one of them, the others are all there is."""
    inside = tmp_path / "inside"
    inside.mkdir()
    setup = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
    setup += (
        f"from sweeper.evidence import smoke_lockdown as l\n{lock}\nopen('kept', 'w').close()\n"
    )
    code = f"{setup}try:\n    {then}\nexcept PermissionError:\n    print('refused')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=inside, capture_output=True, text=True, check=False
    )
    if "AssertionError" in done.stderr:
        pytest.skip("this machine does not have it")
    assert done.stdout == "refused\n", done.stderr
    assert (inside / "kept").exists()
    assert not (tmp_path / "victim").exists()
