"""Bytes: the artifact below its budget, everything counted, and the claims as the logs have it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sweeper.evidence.checks_common import claims_by_run, read_text
from sweeper.evidence.record import Claimed, LoggedRun, Record
from sweeper.evidence.rules import (
    BUDGET,
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
IMPORTS = re.compile(r"^[ \t]*(?:import|from)[ \t]+(\w+)", re.MULTILINE)


@rule(
    "artifact-bytes",
    "Code and model are below 16,000,000 bytes in every run",
    source="Rules: artifact",
    advice="Make the artifact smaller: it must be strictly below 16,000,000 bytes for each seed.",
)
def artifact_bytes(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        total, model = run.facts.bytes_total, run.facts.bytes_model
        if total is not None:
            yield _budget(total, "bytes", run, "bytes_total")
        elif model is not None and model >= BUDGET:
            yield _budget(model, "bytes of the model alone", run, "bytes_model")
        else:
            yield not_said(run, "bytes_total", "the artifact's size")
    for _, claims, _ in claims_by_run(context.record):
        if (claim := claims.get("artifact_bytes")) is not None and claim.value >= BUDGET:
            yield _budget(int(claim.value), "bytes claimed", claim)
    claim = context.record.claim.bytes_total
    if claim is not None and claim.value >= BUDGET:
        yield _budget(int(claim.value), "bytes claimed", claim)


def _budget(size: int, what: str, place: LoggedRun | Claimed, fact: str = "") -> Said:
    room = BUDGET - size
    if room <= 0:
        return failed(f"{size:,} {what}: {-room:,} over what is allowed", place, fact)
    return passed(f"{size:,} {what}, {room:,} to spare", place, fact)


@rule(
    "bytes-add-up",
    "Code and model add up to the total that is logged",
    source="Rules: artifact",
    advice="Say in each log what was counted: the total must be code + compressed model.",
)
def bytes_add_up(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        code, model, total = run.facts.bytes_code, run.facts.bytes_model, run.facts.bytes_total
        if total is None or code is None or model is None:
            missing = [
                n
                for n in ("bytes_total", "bytes_code", "bytes_model")
                if getattr(run.facts, n) is None
            ]
            yield not_said(run, missing[0], " and ".join(missing).replace("bytes_", ""))
        elif code + model == total:
            yield passed(f"{code:,} + {model:,} = {total:,}", run, "bytes_total")
        else:
            off = total - code - model
            text = f"code {code:,} + model {model:,} is not {total:,}: {off:+,} bytes"
            yield failed(text, run, "bytes_total")


@rule(
    "bytes-claimed",
    "The bytes claimed are those of the logs, code included",
    source="Failures: bytes",
    advice="Claim the largest total that a log of the counted runs gives, code included.",
)
def bytes_claimed(context: Context) -> Iterator[Said]:
    record = context.record
    if (claim := record.claim.bytes_total) is not None:
        yield _claimed_total(claim, record.counted)
    for key, claims, runs in claims_by_run(record):
        mine = claims.get("artifact_bytes")
        if mine is not None and runs:
            yield _claimed_of_a_run(mine, key, runs)
    code = record.claim.bytes_code
    logged = {run.facts.bytes_code for run in record.counted} - {None}
    if code is not None and logged and int(code.value) not in logged:
        text = f"{int(code.value):,} bytes of code claimed, the logs say {_numbers(logged)}"
        yield warned(text, code)
    if claim is None and not any("artifact_bytes" in c for c in record.claim.per_seed.values()):
        yield unknown("no size is claimed")


def _claimed_total(claim: Claimed, runs: Sequence[LoggedRun]) -> Said:
    totals = [run.facts.bytes_total for run in runs]
    models = {run.facts.bytes_model for run in runs if run.facts.bytes_model is not None}
    known, size = [total for total in totals if total is not None], int(claim.value)
    if size in models and size not in known:
        largest = f"; the largest logged total is {max(known):,}" if known else ""
        return failed(f"{size:,} bytes are those of the model alone{largest}", claim)
    if not known:
        return unknown(f"{size:,} bytes claimed, and no log gives a total", claim)
    if size == max(known):
        return passed(f"{size:,} bytes, the largest total of the logs", claim)
    if size in known:
        return warned(f"{size:,} bytes are not the largest total, {max(known):,}", claim)
    return _against(claim, max(known), "the largest total")


def _claimed_of_a_run(claim: Claimed, key: str, runs: Sequence[LoggedRun]) -> Said:
    size = int(claim.value)
    totals = {run.facts.bytes_total for run in runs} - {None}
    if size in totals:
        return passed(f"{size:,} bytes, as logged", claim)
    if size in {run.facts.bytes_model for run in runs}:
        more = f"; its log's total is {_numbers(totals)}" if totals else ""
        status = failed if totals else warned
        return status(f"{size:,} bytes are those of the model alone{more}", claim)
    if not totals:
        return unknown(f"{size:,} bytes claimed, and no log of {key} gives a total", claim)
    return _against(claim, max(total for total in totals if total is not None), "the log's total")


def _against(claim: Claimed, logged: int, what: str) -> Said:
    """A claim that no log has: too little is wrong, too much harmless, a round one rounded."""
    size = int(claim.value)
    unit = 10 ** (len(str(size)) - len(str(size).rstrip("0")))
    text = f"{size:,} bytes claimed, {what} is {logged:,} ({logged - size:+,})"
    if size >= logged or abs(size - logged) < unit:
        return warned(text, claim)
    return failed(text, claim)


def _numbers(sizes: set[int] | set[int | None]) -> str:
    return ", ".join(f"{size:,}" for size in sorted(size for size in sizes if size is not None))


# ---- code


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
    source = context.source
    counted = {run.facts.bytes_code for run in record.counted} - {None}
    whole = record.script.stat().st_size + sum(path.stat().st_size for path in record.code)
    for path in record.code:
        size = f"{path.name} has {path.stat().st_size:,} bytes"
        if whole in counted:
            yield passed(f"{size} and is counted", path)
        elif _mentions(source, path.name, path.stem):
            yield failed(f"{size}, train_gpt.py uses it, and the logs do not count it", path)
        else:
            yield passed(f"{size}; train_gpt.py does not name it", path)
    yield from _binaries(record, source)
    yield passed(f"{record.script.stat().st_size:,} bytes", record.script)


def _binaries(record: Record, source: str) -> Iterator[Said]:
    """Files of data that the script names; not the model itself, which is counted."""
    models = {run.facts.bytes_model for run in record.counted}
    for path in sorted(record.path.iterdir()) if record.path.is_dir() else []:
        if path.suffix.lower() in BINARIES and path.is_file() and path.name in source:
            bytes_there = path.stat().st_size
            if bytes_there not in models:
                text = (
                    f"train_gpt.py names these {bytes_there:,} bytes: they count if it reads them"
                )
                yield warned(text, path)


def _mentions(source: str, name: str, stem: str) -> bool:
    imported = rf"^[ \t]*(?:import|from)[ \t]+{re.escape(stem)}\b"
    return name in source or re.search(imported, source, re.MULTILINE) is not None


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
        source = context.source
        for module in sorted(set(IMPORTS.findall(source)) & PACKAGES.keys()):
            package = PACKAGES[module]
            if package in names:
                yield passed(f"{package} is in requirements.txt", record.requirements)
            else:
                text = f"imports {module}, which requirements.txt does not name"
                yield warned(text, record.script)
        runs_programs = any(str(each.kind) == "subprocess" for each in context.audit or ())
        for program in sorted(set(PROGRAMS.findall(source))) if runs_programs else []:
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
