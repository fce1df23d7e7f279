"""Code: the script's bytes, what it needs beside it, and what unpacks the model.

What the script uses is told by its syntax tree, with all that is packed in it: a file that only a
comment or a message names is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sweeper.evidence.claims import read_text
from sweeper.evidence.imports import imported, named_in_calls, on_the_path, parsed
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.rules import (
    BUDGET,
    AuditFinding,
    Context,
    Said,
    failed,
    not_said,
    passed,
    rule,
    unknown,
    warned,
)

# Files beside the script that hold more than text: code made ahead, archives, tensors.
BINARIES = (
    *(".so", ".pyc", ".zip", ".tar", ".gz", ".xz", ".lzma", ".bz2", ".br", ".zst", ".7z", ".whl"),
    *(".bin", ".pt", ".ptz", ".pth", ".npz", ".npy", ".safetensors", ".pkl", ".model"),
)
# Compressors outside Python's own library: the module that is imported -> the package it is in.
PACKAGES = {
    "zstandard": "zstandard",
    "zstd": "zstd",
    "pyzstd": "pyzstd",
    "brotli": "brotli",
    "brotlicffi": "brotlicffi",
    "lz4": "lz4",
    "snappy": "python-snappy",
    "blosc": "blosc",
    "constriction": "constriction",
}
# What a log calls its compressor -> the packages or programs that can be meant.
COMPRESSORS = {
    "brotli": ("brotli", "brotlicffi"),
    "zstd": ("zstandard", "zstd", "pyzstd"),
    "pergroup": ("lrzip", "brotli", "zstandard"),
    "lrzip": ("lrzip",),
    "lz4": ("lz4",),
}
PROGRAMS = re.compile(r"""["'](lrzip|zstd|xz|brotli|zpaq|7za?|paq8\w*|cmix)["' ]""")
SURE = "high"  # confidence of the audit's findings
# Reasons of findings that code is in another file.
ELSEWHERE = re.compile(r"lies beside|runs another file|built from files|imports what is not")
READS = re.compile(r"\bopen\b|read_text|read_bytes|\bglob\b|\bPath\b")
NAMED_MODULE = re.compile(r"""(?:import_module|__import__)\(\s*["']([\w.]+)["']\s*\)""")
NO_CODE = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".md", ".csv"})
SHOWN = 3
MOST_FILES = 2_000  # of a folder


@rule(
    "code-counted",
    "The script's bytes are those that the logs count",
    source="Rules: artifact; Failures: bytes",
    advice="Put the very train_gpt.py of the runs into the folder, and count all of it.",
)
def code_counted(context: Context) -> Iterator[Said]:
    script = context.record.script
    if script is None:
        yield unknown("no train_gpt.py to hold the logged code size against")
        return
    size = script.stat().st_size
    beside = {size + sum(path.stat().st_size for path in context.record.code)}
    for run in context.record.counted:
        code = run.facts.bytes_code
        if code is None:
            yield not_said(run, "bytes_code", "the code's size")
        elif code in ({size} | beside):
            yield passed(f"{code:,} bytes of code, as the folder's", run, "bytes_code")
        elif code > size:
            text = f"{code:,} bytes of code are logged, train_gpt.py has {size:,}: another script"
            yield warned(text, run, "bytes_code")
        elif run.facts.code_compressed:
            yield _compressed(run, code, size)
        else:
            text = f"train_gpt.py has {size:,} bytes, the log counts {code:,}"
            yield failed(text, run, "bytes_code")


def _compressed(run: LoggedRun, code: int, size: int) -> Said:
    """The log counts packed code; the folder has it readable."""
    model = run.facts.bytes_model
    text = f"the log counts {code:,} bytes of packed code; train_gpt.py here has {size:,}"
    if model is not None and model + size >= BUDGET:
        return warned(f"{text}, with which the artifact has {model + size:,}", run, "bytes_code")
    return passed(f"{text}, within the budget as it is", run, "bytes_code")


@rule(
    "code-beside",
    "The script needs no code or data beside it that is not counted",
    source="Rules: artifact; Failures: bytes",
    advice="All counted code belongs into train_gpt.py: move it there, or count these files.",
)
def code_beside(context: Context) -> Iterator[Said]:
    record = context.record
    if record.script is None:
        yield unknown("no train_gpt.py in the folder")
        return
    tree = parsed(context.source)
    named = named_in_calls(tree) if tree is not None else frozenset[str]()
    used = imported(tree) if tree is not None else frozenset[str]()
    counted = {run.facts.bytes_code for run in record.counted} - {None}
    whole = record.script.stat().st_size + sum(path.stat().st_size for path in record.code)
    for path in record.code:
        size = f"{path.name} has {path.stat().st_size:,} bytes"
        package = path.relative_to(record.path).parts[0].removesuffix(".py")
        if whole in counted:
            yield passed(f"{size} and is counted", path)
        elif path.name in named or package in used:
            yield failed(f"{size}, train_gpt.py uses it, and the logs do not count it", path)
        elif tree is None:
            yield unknown(f"{size}, and train_gpt.py cannot be read", path)
        else:
            yield passed(f"{size}; nothing shows that train_gpt.py uses it", path)
    yield from _run_from_elsewhere(context, counted=bool(record.code) and whole in counted)
    yield from _binaries(record, named, on_the_path(tree) if tree is not None else frozenset())
    yield passed(f"{record.script.stat().st_size:,} bytes", record.script)


def _run_from_elsewhere(context: Context, *, counted: bool) -> Iterator[Said]:
    """Code that the script surely runs and that is not in it, by the audit.

    A fail where the folder has files that it may be, whatever their names; else nothing says
    whether it is the record's own at all, and a reader must look.
    """
    beside = _files_beside(context.record)
    for each in context.audit or ():
        if str(each.confidence) != SURE or not _is_elsewhere(each):
            continue
        if counted and str(each.kind) == "uncounted_code":
            continue
        text = f"runs code that is not in it: {each.why}: {each.text.strip()[:100]}"
        mine = _may_be(each, beside)
        if mine:
            text += f"; beside it lies {', '.join(path.name for path in mine[:SHOWN])}"
        yield (failed if mine else warned)(text, context.record.script, _line_of(each))


def _is_elsewhere(finding: AuditFinding) -> bool:
    """Whether a finding is of code in a file, and not of how code is packed or its size told."""
    if str(finding.kind) == "uncounted_code":
        return ELSEWHERE.search(finding.why) is not None
    reads = READS.search(finding.text) is not None and "__file__" not in finding.text
    return str(finding.kind) == "hidden_exec" and (reads or "exec of a file" in finding.why)


def _may_be(finding: AuditFinding, beside: Sequence[Path]) -> Sequence[Path]:
    """The files that a finding may be of: of a module that is named in full only its own."""
    module = NAMED_MODULE.search(finding.text)
    if module is None:
        return beside
    top = module[1].lstrip(".").partition(".")[0]
    return [path for path in beside if top in (path.stem, *(p.name for p in path.parents))]


def _line_of(finding: AuditFinding) -> int:
    return 0 if finding.layer else finding.line


def _files_beside(record: Record) -> list[Path]:
    """All files of the folder that may hold code: neither its logs nor its papers."""
    if not record.path.is_dir():
        return []
    papers = {record.script, record.readme, record.requirements, record.claim.path}
    papers |= {run.path for run in record.runs}
    found = (path for path in sorted(record.path.rglob("*"))[:MOST_FILES] if path.is_file())
    likely = (path for path in found if path.suffix.lower() not in NO_CODE)
    return [path for path in likely if path not in papers and not path.name.startswith(".")]


def _binaries(record: Record, named: frozenset[str], paths: frozenset[str]) -> Iterator[Said]:
    """Files of data that the script opens; not the model itself, which is counted.

    An archive that modules are looked for in holds code.
    """
    models = {run.facts.bytes_model for run in record.counted}
    for path in sorted(record.path.iterdir()) if record.path.is_dir() else []:
        if path.suffix.lower() in BINARIES and path.is_file() and path.name in named:
            bytes_there = path.stat().st_size
            if path.name in paths:
                yield failed(f"{bytes_there:,} bytes from which train_gpt.py imports", path)
            elif bytes_there not in models:
                text = (
                    f"train_gpt.py names these {bytes_there:,} bytes: they count if it reads them"
                )
                yield warned(text, path)


@rule(
    "compressor",
    "What unpacks the model is installed where it is evaluated",
    source="Failures: bytes",
    advice="Name the package in requirements.txt, or use zlib, lzma or bz2 of Python itself.",
)
def compressor(context: Context) -> Iterator[Said]:
    record = context.record
    wanted = {line.strip().lower() for line in read_text(record.requirements).splitlines()}
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in wanted}
    if record.script is not None:
        tree = parsed(context.source)
        modules = imported(tree) if tree is not None else frozenset[str]()
        for module in sorted(modules & PACKAGES.keys()):
            package = PACKAGES[module]
            if package in names:
                yield passed(f"{package} is in requirements.txt", record.requirements)
            else:
                text = f"imports {module}, which requirements.txt does not name"
                yield warned(text, record.script)
        runs_programs = any(str(each.kind) == "subprocess" for each in context.audit or ())
        for program in sorted(set(PROGRAMS.findall(context.source))) if runs_programs else []:
            yield warned(f"runs the program {program}, which pip cannot install", record.script)
    for run in record.counted[:1]:
        yield _logged_compressor(run, names, context)


def _logged_compressor(run: LoggedRun, names: set[str], context: Context) -> Said:
    """What the settings in the log say of it: all runs of a record do it alike."""
    label = run.facts.hyperparameters.get("compressor", "").lower()
    packages = COMPRESSORS.get(label)
    if packages is None:
        return passed("the settings name no compressor from outside", run)
    if names & set(packages):
        return passed(f"{label}: {', '.join(sorted(names & set(packages)))} is required", run)
    text = f"packed by {label}; requirements.txt names none of {', '.join(packages)}"
    return warned(text, run) if context.is_folder else unknown(text, run)
