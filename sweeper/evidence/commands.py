"""The commands by which a record is run, as its README gives them: read from one, written for one.

A README's code blocks are shell. What is read of it: assignments before a command, `export`,
continued lines, `$NAME` and `${NAME:-default}` of what was assigned before, programs that run
another one (`timeout`, `docker run -e A=1 …`, `bash -c '…'`). A value that only the shell knows (of
a loop, of a command) is left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

SCRIPT = "train_gpt.py"
FENCE = re.compile(r"^\s{0,3}(```+|~~~+)")
PROMPT = re.compile(r"^\s*\$\s+")
ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)=(.*)$", re.DOTALL)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?[-=]([^}]*))?\})")
LITERAL_DOLLAR = "\0"
# What a command says in the midst of another one: $(nvidia-smi -L | wc -l).
SUBSTITUTION = re.compile(r"\$\([^()]*\)|`[^`]*`")
SAID_BY_A_COMMAND = "${said_by_a_command}"
HEREDOC = re.compile(r"(?<!<)<<-?\s*[\"']?([A-Za-z_]\w*)[\"']?")  # and not <<< "text"
INDENTED = re.compile(r"^(?: {4,}|\t)\s*(\S.*)$")
INLINE = re.compile(r"`([^`]+)`")
BACKSLASH = "\\"
OPERATORS = frozenset(";|&<>()")
# Words of the shell that may stand before a command.
BEFORE = frozenset({"do", "then", "else", "{"})
# Programs that run another one: what is before that is theirs, but for what they set.
WRAPPERS = frozenset(
    {
        *("env", "nohup", "time", "sudo", "exec", "timeout", "stdbuf", "setsid", "caffeinate"),
        *("uv", "poetry", "pipenv", "conda", "numactl", "nice", "ionice", "taskset", "srun"),
        *("docker", "podman", "singularity", "apptainer"),
    }
)
SET_BY_A_WRAPPER = re.compile(r"^(?:-e|--env=)?([A-Za-z_]\w*)=(.*)$", re.DOTALL)
EXPORTED_BY_SLURM = "--export="  # and then a list with commas
SHELLS = frozenset({"sh", "bash", "zsh"})
SHELL_TEXT = re.compile(r"-[a-z]*c")  # the next word is a text of commands
PYTHON = re.compile(r"python[\d.]*")
# What may run a script, where how is not understood.
MAY_RUN = re.compile(
    r"\b(?:python[\d.]*|torch\.distributed|bash|srun|uv run|modal run|accelerate|deepspeed)\b"
)
PROCESSES = re.compile(r"--nproc[-_]per[-_]node(?:=(.*))?")

Launcher = Literal["torchrun", "exec"]


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """One command that runs the script; `line` is where it begins in the README, from 1.

    `processes` is None where the command does not give a number (`gpu`, or nothing).
    """

    env: Mapping[str, str]
    launch: Launcher
    processes: int | None = None
    arguments: tuple[str, ...] = ()
    line: int = 0


@dataclass
class _Shell:
    """What a shell would know so far: what is exported, and what is only assigned."""

    exported: dict[str, str] = field(default_factory=dict)
    assigned: dict[str, str] = field(default_factory=dict)

    def expand(self, text: str) -> str | None:
        """A word with its variables replaced; None where one is not known."""
        known = self.assigned | self.exported
        unknown: list[str] = []

        def value(match: re.Match[str]) -> str:
            found = known.get(match[1] or match[2], match[3])
            unknown.extend([match[0]] if found is None else [])
            return found or ""

        expanded = VARIABLE.sub(value, text).replace(LITERAL_DOLLAR, "$")
        left = "`" in text or "$(" in text
        return None if unknown or left else expanded


def read_commands(text: str) -> list[RunCommand]:
    """The commands in a README that run train_gpt.py, in their order.

    Those of its fenced code blocks; where these have none, of indented and inline code.
    """
    return _commands(_blocks(text)) or _commands(_loose(text))


def not_understood(text: str) -> list[int]:
    """The lines that name torchrun, or the script beside something that may run it, from 1."""
    return [
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if "torchrun" in line or (SCRIPT in line and MAY_RUN.search(line))
    ]


def _loose(text: str) -> Iterator[list[tuple[int, str]]]:
    """Code outside of fences: indented lines, and spans within a line that name the script."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        indented = INDENTED.match(line)
        if indented is not None:
            block.append((number, indented[1]))
            continue
        yield _joined(block)
        block = []
        yield from ([(number, span)] for span in INLINE.findall(line) if SCRIPT in span)
    yield _joined(block)


def _commands(blocks: Iterable[list[tuple[int, str]]]) -> list[RunCommand]:
    shell = _Shell()
    found = []
    for block in blocks:
        for number, line in block:
            for words in _statements(line):
                found += _take(words, shell, number)
    return found


def listed_settings(text: str) -> dict[str, str]:
    """The assignments in code blocks that hold nothing else: a list of settings, no command."""
    found: dict[str, str] = {}
    for block in _blocks(text):
        words = [word for _, line in block for each in _statements(line) for word in each]
        pairs = [ASSIGNMENT.match(word) for word in words]
        if all(pairs):
            found |= {pair[1]: pair[2] for pair in pairs if pair is not None}
    return {name: value for name, value in found.items() if "$" not in value}


def _blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """The fenced code blocks, each as its lines with their numbers; continued lines are one."""
    fence, block = "", list[tuple[int, str]]()
    for number, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if mark is not None and (not fence or mark[1].startswith(fence)):
            yield _joined(block)
            fence, block = "" if fence else mark[1], []
        elif fence:
            block.append((number, line))
    yield _joined(block)  # of a fence that was never closed


def _joined(block: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines of a block, continued ones as one; those of here-documents are no commands."""
    lines: list[tuple[int, str]] = []
    continued, document = False, ""
    for place, (number, line) in enumerate(block):
        if document:
            document = "" if line.strip() == document else document
            continue
        begun = PROMPT.sub("", line).rstrip()
        if continued:
            first, before = lines.pop()
            lines.append((first, f"{before} {begun.removesuffix(BACKSLASH)}"))
        else:
            lines.append((number, begun.removesuffix(BACKSLASH)))
        continued = begun.endswith(BACKSLASH)
        here = HEREDOC.search(begun)
        # One without an end is none: a number that is shifted.
        if here is not None and any(later.strip() == here[1] for _, later in block[place + 1 :]):
            document = here[1]
    return lines


def _statements(line: str) -> Iterator[list[str]]:
    """The commands of a line, each as its words; one that is no shell has none."""
    line = SUBSTITUTION.sub(SAID_BY_A_COMMAND, line)
    lexer = shlex.shlex(_marked(line), posix=True, punctuation_chars="".join(OPERATORS))
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for token in lexer:
            if not token or set(token) - OPERATORS:
                words.append(token)
                continue
            redirects = token[0] in "<>"
            yield words[:-1] if redirects and words[-1:] in (["1"], ["2"]) else words
            # What is redirected to is no command, nor are its words.
            words = ["#"] if redirects else []
    except ValueError:  # quotes that do not end: prose in a code block
        return
    yield words


def _marked(line: str) -> str:
    """A line in which a `$` that is meant as such is told from those before a name."""
    quote, marked, escaped = "", "", False
    for character in line:
        literal = escaped or quote == "'"
        if character in "\"'" and not escaped and quote in ("", character):
            quote = "" if quote else character
        escaped = character == "\\" and not literal
        marked += LITERAL_DOLLAR if character == "$" and literal else character
    return marked.replace(f"\\{LITERAL_DOLLAR}", LITERAL_DOLLAR)


def _take(words: Sequence[str], shell: _Shell, line: int) -> list[RunCommand]:
    """One statement: what it assigns is remembered, what it runs is returned."""
    rest = list(words)
    own: dict[str, str] = {}
    exports = rest[:1] == ["export"]
    while rest and (rest[0] in BEFORE or rest[0] == "export" or ASSIGNMENT.match(rest[0])):
        match = ASSIGNMENT.match(rest.pop(0))
        if match is not None and (value := shell.expand(match[2])) is not None:
            own[match[1]] = value
    if rest and not exports:
        wrapper, command = _unwrapped(rest)
        return _run(command, shell.exported | own | _set_by(wrapper, shell), line)
    (shell.exported if exports else shell.assigned).update(own)
    return []


def _unwrapped(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What a command is wrapped in, and the command without it."""
    if Path(words[0]).name not in WRAPPERS:
        return [], words
    starts = (place for place, word in enumerate(words) if _runs(Path(word).name))
    start = next(starts, 0)
    return words[:start], words[start:]


def _runs(program: str) -> bool:
    return program == "torchrun" or program in SHELLS or PYTHON.fullmatch(program) is not None


def _set_by(wrapper: Iterable[str], shell: _Shell) -> dict[str, str]:
    """The settings among the words of what wraps a command: `env A=1`, `docker run -e A=1`."""
    found: dict[str, str] = {}
    for word in wrapper:
        slurm = word.startswith(EXPORTED_BY_SLURM)
        for part in word.removeprefix(EXPORTED_BY_SLURM).split(",") if slurm else [word]:
            match = SET_BY_A_WRAPPER.match(part)
            if match is not None and (value := shell.expand(match[2])) is not None:
                found[match[1]] = value
    return found


def _run(words: Sequence[str], env: Mapping[str, str], line: int) -> list[RunCommand]:
    """What a command runs: the script, or a text of commands that is handed to a shell."""
    if Path(words[0]).name in SHELLS:
        pairs = pairwise(words[1:])
        text = next((text for option, text in pairs if SHELL_TEXT.fullmatch(option)), "")
        inner = _Shell(exported=dict(env))
        statements = _statements(text.replace(LITERAL_DOLLAR, "$"))
        return [command for each in statements for command in _take(each, inner, line)]
    command = _command(words, env, line)
    return [] if command is None else [command]


def _command(words: Sequence[str], env: Mapping[str, str], line: int) -> RunCommand | None:
    """What a command's words run, if that is the script."""
    at = next((i for i, word in enumerate(words) if Path(word).name == SCRIPT), None)
    if at is None or at == 0:
        return None
    program = Path(words[0]).name
    by_torchrun = program == "torchrun" or any("torch.distributed" in w for w in words[:at])
    options = words[1:at]
    by_python = PYTHON.fullmatch(program) and all(
        option.startswith("-") and option not in ("-m", "-c") for option in options
    )
    if not by_torchrun and not by_python:
        return None
    return RunCommand(
        env=dict(env),
        launch="torchrun" if by_torchrun else "exec",
        processes=_processes(words[:at]) if by_torchrun else 1,
        arguments=tuple(word.replace(LITERAL_DOLLAR, "$") for word in words[at + 1 :]),
        line=line,
    )


def _processes(options: Sequence[str]) -> int | None:
    """Ranks of one node; torchrun starts one where nothing is said."""
    for option, following in zip(options, [*options[1:], ""], strict=True):
        match = PROCESSES.fullmatch(option)
        if match is not None:
            text = match[1] if match[1] is not None else following
            return int(text) if text.isdecimal() else None
    return 1


# ---- writing


def exports(env: Mapping[str, str]) -> list[str]:
    """Lines that set what all commands below have in common."""
    return [f"export {name}={shlex.quote(value)}" for name, value in env.items()]


def run_lines(
    env: Mapping[str, str],
    *,
    launch: Launcher,
    processes: int,
    nodes: int = 1,
    arguments: Sequence[str] = (),
) -> str:
    """One command in shell: settings, then the script; two lines, of which the first goes on."""
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in env.items())
    start = "--standalone"
    if nodes > 1:
        start = f'--nnodes={nodes} --rdzv_backend=c10d --rdzv_endpoint="$HEAD_NODE:29500"'
    torchrun = f"torchrun {start} --nproc_per_node={processes // nodes}"
    program = torchrun if launch == "torchrun" else "python"
    return f"{settings} \\\n  {program} {shlex.join([SCRIPT, *arguments])}"
