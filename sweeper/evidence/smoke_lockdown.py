"""What holds a process that runs somebody's script: no network, no other process, no file outside.

Each layer is Linux's own, asked for without any privilege, and stands where another is not to be
had: namespaces (no network, and with its first process all others end), Landlock (writes in one
folder alone), no privileges, seccomp (no new process, no socket, no signal to others, no mode or
owner of a file changed, nothing that outlives it), limits of memory, time and file sizes, and last
Python's audit hooks, which a script's native code can pass by. `SmokeResult.held` says which of
them hold.

Standard library only; it runs in the child, before any line of the script.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD, CLONE_FILES = 0x20000000, 0x40000000, 0x10000, 0x400
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # of every machine
# write a file, remove, make of any kind; from the second version on link, then truncate
LANDLOCK_WRITES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
FILE_BYTES = 64 << 20  # of one file that the script writes
OPEN_FILES = 512
MOST_REFUSALS = 20

# System calls that start processes, reach others, or get around what is refused here; by the line:
# modes, owners, times and attributes of files, which Landlock leaves to everyone; device files,
# disk space that no limit of a file's size counts; memory that no limit counts, and what stays when
# all processes have ended: shared memory, queues, keys; the priorities of other processes.
DENIED = {
    "x86_64": (
        *(41, 42, 53, 57, 58, 59, 101, 129, 165, 200, 272, 297, 308, 310, 311, 321, 322),
        *(424, 425, 434),
        *(90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280),
        *(188, 189, 190, 197, 198, 199, 463, 466, 469, 133, 259, 76, 285),
        *(319, 447, 29, 30, 64, 68, 240, 248, 249, 250, 141, 251, 142, 144, 314),
    ),
    "aarch64": (
        *(40, 97, 117, 130, 138, 198, 199, 203, 221, 240, 268, 270, 271, 280, 281, 424, 425, 434),
        *(52, 53, 54, 55, 452, 88),
        *(5, 6, 7, 14, 15, 16, 463, 466, 469, 33, 45, 47),
        *(279, 447, 194, 196, 190, 186, 180, 217, 218, 219, 140, 30, 118, 119, 274),
    ),
}
# Calls that depend on what is asked for. kill, tgkill: to itself alone.
SIGNALLING = {"x86_64": (62, 234), "aarch64": (129, 131)}
# prlimit64 and sched_setaffinity, which also set what another process may use: of itself alone.
OWN_LIMITS = {"x86_64": (302, 203), "aarch64": (261, 122)}
# fcntl's F_SETOWN, F_SETSIG and F_SETOWN_EX: a signal to others by way of a file.
FCNTL = {"x86_64": 72, "aarch64": 25}
FCNTL_SIGNALLING = (8, 10, 15)
# ioctl: what terminals and pipes are asked; all else may change files, or signal others.
IOCTL = {"x86_64": 16, "aarch64": 29}
IOCTL_ASKING = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
# prctl: to end with the parent, and to be looked at by it, stay as they are.
PRCTL = {"x86_64": 157, "aarch64": 167}
PRCTL_KEPT = (1, 4)
# close_range, which may give a thread files of its own, that nobody would count.
CLOSE_RANGE, CLOSE_UNSHARING = 436, (2, 6)
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION, MOST_CAPABILITIES, PR_CAPBSET_DROP = 0x20080522, 64, 24
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000

# What audit hooks refuse outright, by the beginning of the event's name.
REFUSED = (
    *("socket.", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"),
    *("os.fork", "os.forkpty", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"),
    *("urllib.Request", "ftplib.", "smtplib.", "http.client.connect"),
)
# Those that change files: where the path stands among the event's arguments.
CHANGING = {
    **dict.fromkeys(
        ("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate"), 1
    ),
    **dict.fromkeys(("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"), 2),
    **dict.fromkeys(("shutil.rmtree", "os.utime", "os.setxattr"), 1),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """End this process when the one that made it ends."""
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter_namespaces() -> bool:
    """Go where there is no network and no other process; the next fork's child is the first.

    False where the machine does not allow it; nothing has changed then.
    """
    libc = _libc()
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC
    if libc.unshare(flags) != 0:
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", encoding="ascii")
    except OSError:
        pass  # a user without a name; all else holds
    return True


def run_first(work: Callable[[], None]) -> None:
    """Be the first process of a namespace: run work in a second, and end with it, and all others.

    Never returns; what the second ended with is this one's exit code, 128 and more a signal.
    """
    die_with_parent()
    worker = os.fork()
    if worker == 0:
        die_with_parent()
        work()
        os._exit(0)
    while True:
        pid, status = os.wait()
        if pid == worker:
            os._exit(exit_code(status))


def exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def limit(*, memory_bytes: int, cpu_seconds: int) -> None:
    """Limits of what is used from here on; memory is counted on top of what is in use already."""
    in_use, data = 0, 0
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
        page = resource.getpagesize()
        in_use, data = int(fields[0]) * page, int(fields[5]) * page
    except (OSError, IndexError, ValueError):
        pass
    _set(resource.RLIMIT_AS, in_use + memory_bytes)
    _set(resource.RLIMIT_DATA, data + memory_bytes)
    _set(resource.RLIMIT_CPU, cpu_seconds)
    _set(resource.RLIMIT_FSIZE, FILE_BYTES)
    _set(resource.RLIMIT_NOFILE, OPEN_FILES)
    _set(resource.RLIMIT_CORE, 0)


def _set(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (value, value))


def drop_capabilities() -> bool:
    """Be without any privilege, for good: root's as well, and those of a namespace's own root."""
    libc, number = _libc(), CAPSET.get(platform.machine())
    for capability in range(MOST_CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if number is None:
        return False
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0), 8)
    none = ctypes.create_string_buffer(bytes(24), 24)
    return bool(libc.syscall(number, header, none) == 0)


# ---- Landlock


def confine_writes(folder: Path) -> bool:
    """Let this process and its threads write in one folder alone, and to /dev/null."""
    libc = _libc()
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return False
    writes = LANDLOCK_WRITES | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    attributes = ctypes.create_string_buffer(struct.pack("=Q", writes), 8)
    ruleset = libc.syscall(LANDLOCK_CREATE, attributes, 8, 0)
    if ruleset < 0:
        return False
    try:
        on_file = writes & ((1 << 1) | (1 << 14))
        for path, allowed in ((folder, writes), (Path("/dev/null"), on_file)):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place), 12)
            added = libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0)
            os.close(place)
            if added != 0:
                return False
        return bool(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


# ---- seccomp


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def confine_calls() -> bool:
    """Refuse system calls that start processes, open sockets, signal others, or leave something
    behind; for good.
    """
    machine = platform.machine()
    if machine not in AUDIT_ARCH or sys.maxsize < 1 << 32:
        return False
    program = b"".join(struct.pack("=HBBI", *each) for each in _rules(machine))
    code = ctypes.create_string_buffer(program, len(program))
    found = _Filter(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    libc = _libc()
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(found), 0, 0) == 0)


Instruction = tuple[int, int, int, int]
REFUSED_CALL: Instruction = (RETURN, 0, 0, REFUSE | errno.EPERM)
ALLOWED_CALL: Instruction = (RETURN, 0, 0, ALLOW)


def _rules(machine: str) -> list[Instruction]:
    """A classic BPF program over (number, machine, address, arguments) of a system call."""
    refuse, allow, itself = REFUSED_CALL, ALLOWED_CALL, os.getpid()
    rules = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH[machine]), refuse, (LOAD, 0, 0, 0)]
    # Calls of another machine's numbers: they would pass by all that follows.
    rules += [(AT_LEAST, 0, 1, 0x40000000), refuse]
    # The C library falls back to clone, whose flags can be seen.
    rules += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    for number in DENIED[machine]:
        rules += [(EQUAL, 0, 1, number), refuse]
    # A thread that shares the files of the others, and no process.
    rules += [(EQUAL, 0, 5, CLONE[machine]), (LOAD, 0, 0, 16)]
    rules += [(ANY_BIT, 0, 1, CLONE_THREAD), (ANY_BIT, 1, 0, CLONE_FILES), refuse, allow]
    for number in SIGNALLING[machine]:
        rules += _by_argument(number, 0, (itself,), allow, refuse)
    for number in OWN_LIMITS[machine]:
        rules += _by_argument(number, 0, (0, itself), allow, refuse)
    rules += _by_argument(FCNTL[machine], 1, FCNTL_SIGNALLING, refuse, allow)
    rules += _by_argument(IOCTL[machine], 1, IOCTL_ASKING, allow, refuse)
    rules += _by_argument(PRCTL[machine], 0, PRCTL_KEPT, refuse, allow)
    rules += _by_argument(CLOSE_RANGE, 2, CLOSE_UNSHARING, refuse, allow)
    return [*rules, allow]


def _by_argument(
    number: int, place: int, values: Sequence[int], listed: Instruction, other: Instruction
) -> list[Instruction]:
    """What becomes of one call, by whether one of its arguments is among some values."""
    left = range(len(values), 0, -1)
    tests = [(EQUAL, skipped, 0, value) for skipped, value in zip(left, values, strict=True)]
    block = [(LOAD, 0, 0, 16 + 8 * place), *tests, other, listed]
    return [(EQUAL, 0, len(block), number), *block]


# ---- Python's own hooks


def watch(folder: Path, refused: list[str]) -> None:
    """Refuse in Python what must not be, and write down what was asked for; for good."""
    inside = str(folder) + os.sep
    allowed = {os.devnull, "/dev/tty", str(folder)}

    def outside(path: object) -> bool:
        if isinstance(path, int) or path is None:
            return False
        try:
            name = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return True
        return name not in allowed and not name.startswith(inside)

    def refuse(what: str) -> None:
        if len(refused) < MOST_REFUSALS and what not in refused:
            refused.append(what)
        raise PermissionError(errno.EPERM, f"refused in a smoke run: {what}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = (*args, None, None)[:3]
            written = bool(set(mode) & set("wax+")) if isinstance(mode, str) else False
            written = written or (isinstance(flags, int) and bool(flags & WRITING))
            if written and outside(path):
                refuse(f"writing {path!r:.120}")
        elif event in CHANGING:
            for path in args[: CHANGING[event]]:
                # A number is a file that may have been opened to be read, wherever it lies.
                if isinstance(path, int) or outside(path):
                    refuse(f"{event} {path!r:.120}")
        elif event.startswith(REFUSED):
            refuse(f"{event} {', '.join(f'{each!r:.60}' for each in args[:3])}"[:160])

    sys.addaudithook(hook)
