"""The folder: the files that a record has, submission.json's fields, the machine it ran on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

from sweeper.evidence.claims import read_text
from sweeper.evidence.record import FILL_IN
from sweeper.evidence.rules import (
    Context,
    Said,
    failed,
    passed,
    rule,
    say,
    unknown,
    warned,
)

FOLDER_NAME = re.compile(r"^(\d{4}-\d\d-\d\d)_\w")
LOG_NAME = re.compile(r"^train_seed(\d+)\.log$")
# Of 44 merged records 42 have these.
NEEDED = ("author", "date", "name", "val_bpb")
USUAL = ("github_id", "val_loss", "bytes_total", "seeds", "seed_results", "hardware")
WORLD_SIZE = 8
GPU = re.compile(r"h100", re.IGNORECASE)
EIGHT = re.compile(
    r"(?<![\d.])8\s*[x×*]|[x×*]\s*8(?![\d.])|(?<![\d.])8\s+(?:NVIDIA\s+)?(?:H100|GPU)|\(8\)",
    re.IGNORECASE,
)
SHORT_TRACK = re.compile(r"10min", re.IGNORECASE)
NO_FOLDER = "not a published folder: `sweeper publish` writes one"


@rule(
    "folder-files",
    "The folder has README.md, submission.json, train_gpt.py and a log for each seed",
    source="Rules: folder",
    advice="Add what is missing; `sweeper publish` writes the whole folder from a sweep.",
)
def folder_files(context: Context) -> Iterator[Said]:
    record = context.record
    if not context.is_folder:
        yield unknown(NO_FOLDER)
        return
    for name, path in (
        ("README.md", record.readme),
        ("submission.json", record.claim.path),
        ("train_gpt.py", record.script),
    ):
        if path is None:
            yield say(context.lenient, f"{name} is missing")
        elif path.stat().st_size == 0:
            yield say(context.lenient, "empty", path)
        else:
            yield passed("there", path)
    for path in dict.fromkeys(run.path for run in record.counted):
        if LOG_NAME.match(path.name):
            yield passed("a log of its own", path)
        else:
            yield warned("records call their logs train_seed<N>.log", path)


@rule(
    "folder-name",
    "The folder's name has a real date and says what it is",
    source="Rules: folder",
    advice="Call the folder YYYY-MM-DD_Description, by the date in submission.json.",
)
def folder_name(context: Context) -> Iterator[Said]:
    record = context.record
    if not context.is_folder:
        yield unknown(NO_FOLDER)
        return
    found = FOLDER_NAME.match(record.name)
    said = str(record.claim.fields.get("date", ""))[:10]
    if found is None:
        yield warned(f"{record.name} is not YYYY-MM-DD_Description")
        return
    try:
        named = date.fromisoformat(found[1])
        claimed = date.fromisoformat(said) if said else None
    except ValueError as error:
        yield warned(f"{found[1]}, and {said or 'none'} in submission.json: {error}")
        return
    if claimed is not None and abs((named - claimed).days) > 31:
        yield warned(f"{named} in the name, {claimed} in submission.json")
    else:
        yield passed(f"{named}")


@rule(
    "submission-json",
    "submission.json can be read and has the fields in use",
    source="Rules: submission.json fields",
    advice="Write submission.json with author, date, name and val_bpb at least.",
)
def submission_json(context: Context) -> Iterator[Said]:
    claim = context.record.claim
    if not context.is_folder:
        yield unknown(NO_FOLDER)
        return
    if claim.path is None:
        yield unknown("there is none: see folder-files")
        return
    if claim.error is not None:
        yield failed(f"cannot be read: {claim.error}", claim.path)
        return
    missing = [name for name in NEEDED if not _has(claim.fields, name)]
    if claim.val_bpb is not None and "val_bpb" in missing:
        yield warned(f"val_bpb is called otherwise: {claim.val_bpb.where}", claim.path)
        missing.remove("val_bpb")
    if missing:
        yield warned(f"without {', '.join(missing)}", claim.path)
    text = [name for name in ("val_bpb", "val_loss") if isinstance(claim.fields.get(name), str)]
    if text:
        yield warned(f"{', '.join(text)} as text, not as a number", claim.path)
    open_ = [name for name, value in claim.fields.items() if FILL_IN in str(value)]
    if open_:
        yield warned(f"left to fill in: {', '.join(open_)}", claim.path)
    there = [name for name in (*NEEDED, *USUAL) if _has(claim.fields, name)]
    yield passed(f"has {', '.join(there) or 'none of the usual fields'}", claim.path)


def _has(fields: Any, name: str) -> bool:
    return fields.get(name) not in (None, "")


@rule(
    "script-compiles",
    "train_gpt.py is Python that compiles",
    source="Rules: folder, train_gpt.py that runs inside the folder",
    advice="Add the script as it ran.",
)
def script_compiles(context: Context) -> Iterator[Said]:
    script = context.record.script
    if script is None:
        yield unknown("no train_gpt.py in the folder" if context.is_folder else NO_FOLDER)
        return
    try:
        # As bytes: the script may name an encoding of its own.
        tree = ast.parse(script.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield failed(f"does not compile: {error}", script)
        return
    if tree.body:
        yield passed(f"{len(tree.body)} statements", script)
    else:
        yield failed("holds no statement", script)


@rule(
    "hardware",
    "The runs were made on 8 H100 GPUs",
    source="Rules: training on 8xH100",
    advice="Times count on 8xH100 only: run there, or claim another track.",
)
def hardware(context: Context) -> Iterator[Said]:
    record, fields = context.record, context.record.claim.fields
    for run in record.counted:
        size = run.facts.world_size
        if size is not None:
            say_of_it = passed if size == WORLD_SIZE else warned
            yield say_of_it(f"{size} processes", run, "world_size")
    machine = next((str(fields[n]) for n in ("hardware", "gpu", "gpu_type") if fields.get(n)), None)
    if machine is not None and record.claim.path is not None:
        right = GPU.search(machine) and (EIGHT.search(machine) or fields.get("num_gpus") == 8)
        yield (passed if right else warned)(machine, record.claim.path)
    track = str(fields.get("track", ""))
    if track and not SHORT_TRACK.search(track):
        yield warned(f"of the track {track}, not of the 10-minute one", record.claim.path)
    if machine is None and all(run.facts.world_size is None for run in record.counted):
        yield unknown("neither the logs nor submission.json say on what")


@rule(
    "reproduce",
    "README.md says how to run it again",
    source="README sections: torchrun command 40 of 45, seed table 34",
    advice="Write the torchrun command, a table of all seeds' scores, and what is left open.",
)
def reproduce(context: Context) -> Iterator[Said]:
    if not context.is_folder or context.record.readme is None:
        yield unknown("no README.md")
        return
    text = read_text(context.record.readme)
    for number, line in enumerate(text.splitlines(), start=1):
        if FILL_IN in line:
            left = line[line.index(FILL_IN) + len(FILL_IN) :].strip()
            yield warned(f"left to fill in: {left[:80]}", context.record.readme, number)
    for what, there in (
        ("a torchrun command", "torchrun" in text),
        ("a table", re.search(r"^\s*\|.*\|", text, re.MULTILINE) is not None),
    ):
        status = passed if there else warned
        yield status(f"{what} is {'there' if there else 'missing'}", context.record.readme)
