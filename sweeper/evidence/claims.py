"""What a record says of itself: submission.json in all its public forms, and README.md's headline.

Field names differ between submissions; those in public use are known here. Every number keeps its
digits, since a claim of 1.0924 is held against a log's 1.09244346 by the digits that it gives.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper.evidence.record import Claim, Claimed
from sweeper.scores import HEADLINES, Kind, name_score

MOST_BYTES = 4 << 20  # of a text: a submission.json that is larger is none
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # the marks that such a text begins with

# Names of one fact, in the order of precedence.
VAL_BPB = (
    *("val_bpb", "mean_val_bpb", "val_bpb_mean", "val_bpb_mean_3seed", "mean_bpb", "bpb"),
    *("final_val_bpb", "bpb_mean"),
)
VAL_LOSS = ("val_loss", "mean_val_loss", "val_loss_mean")
STD = (
    *("val_bpb_std", "val_bpb_std_sample", "std_val_bpb", "val_bpb_std_3seed"),
    *("std_bpb", "bpb_std", "std", "val_std", "std_dev", "sample_std", "val_bpb_sample_std"),
)
STD_POPULATION = ("val_bpb_std_population", "std_val_bpb_population")
BYTES_TOTAL = (
    *("bytes_total", "bytes_total_max", "artifact_bytes_max", "artifact_bytes"),
    *("total_artifact_bytes", "total_bytes", "artifact_size", "artifact_size_bytes"),
)
BYTES_CODE = ("bytes_code", "code_bytes")
# Tables of several facts a run, by the run's seed or name, or as a list in the seeds' order.
TABLES = ("seed_results", "results", "seeds", "runs", "per_seed", "per_seed_results")
# Tables of one fact by seed: the fact's name, and what the table's begins and ends with.
ONE_FACT = re.compile(r"^(?P<fact>\w+?)_(?:per_seed|by_seed|seeds)$")
# A run's facts -> the names that they have in tables.
OF_A_RUN = {
    "val_loss": ("val_loss", "val_loss_post_quant"),
    "artifact_bytes": ("artifact_bytes", "bytes_total", "bytes"),
    "steps": ("steps", "stop_step", "train_steps", "training_steps"),
    "step_avg_ms": ("step_avg_ms", "ms_per_step"),
    "eval_time_s": ("eval_time_s", "eval_time_seconds", "eval_seconds", "ttt_eval_time_s"),
    "train_time_s": ("train_time_s", "training_time_seconds", "train_wallclock_s"),
}
IN_MILLISECONDS = {
    "eval_time_s": ("eval_time_ms", "ttt_eval_ms"),
    "train_time_s": ("train_time_ms", "training_time_ms"),
}
NO_SCORE = re.compile(r"pre_?quant|gain|gap|delta|diff|std|before|baseline|raw|ema")
# In the names of numbers that are of something else than the record's artifact and score.
OF_ELSE = re.compile(r"pre_?quant|gain|gap|delta|diff|before|baseline|raw|model|loss|_mean$|^mean_")
SCORE_NAME = re.compile(r"bp[bp](?:_|$)")  # bpb, and bpp as some write it
# "1337", "seed_42", "seed1", "s7", "1337_aggressive"; "run1" has a place and no seed.
SEED_KEY = re.compile(
    r"(?:seed|s)?[_-]?(\d{1,10})(?!\d)(?:[_-][a-z]\w*)?(?: \(\d+\))?", re.IGNORECASE
)
RUN_KEY = re.compile(r"run[_ -]?\d+(?: \(\d+\))?", re.IGNORECASE)

# What is between them holds no sign: a difference is none.
HEADLINE = re.compile(
    r"val[_ -]bpb[^\w+−-]{0,8}(?:is |of )?[^\w+−-]{0,3}(\d\.\d{2,12})(?!\d)"
    r"|\*\*(\d\.\d{2,12})(?:\*\*)? *(?:val[_ -])?bpb\b",
    re.IGNORECASE,
)
MEAN_ROW = re.compile(r"^\|[\s*_]*(?:\d+[- ]seed )?(?:mean|average)\b", re.IGNORECASE)
BPB_LIKE = re.compile(r"(?<![\d.+-])(\d\.\d{4,12})(?![\d.])")
# What follows may be of a record before, as far as the next stop: "PR #1019 had".
OF_ANOTHER = re.compile(
    r"\b(?:previous|prior|earlier|baseline|standing"
    r"|(?:old|current|last|former) (?:sota|record|best)|PR ?#?\d+)\b(?:(?![.;](?:\s|$)).)*$",
    re.IGNORECASE,
)
LEAST_BPB, MOST_BPB = 0.01, 9.0


class Written(float):
    """A number of a JSON file that remembers how it was written."""

    text: str

    def __new__(cls, text: str) -> Written:
        self = super().__new__(cls, float(text))
        self.text = text
        return self


def read_claim(folder: Path) -> Claim:
    """The claims of a record's folder; a submission.json that cannot be read is said in `error`."""
    readme = tuple(_readme(folder / "README.md"))
    path = folder / "submission.json"
    if not path.is_file():
        return Claim(readme=readme)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes: no submission is so long")
        # In whatever encoding of Unicode.
        written = json.loads(
            path.read_bytes(), parse_float=Written, parse_int=_whole, parse_constant=_no_number
        )
        if not isinstance(written, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        return Claim(path=path, error=f"{type(error).__name__}: {error}", readme=readme)
    return claim_of(written, path=path, readme=readme)


def _whole(text: str) -> Written | int:
    """A whole number; as a float where it is too long to be a count of anything."""
    return int(text) if len(text) < 20 else Written(text)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def claim_of(
    fields: Mapping[str, Any], *, path: Path | None = None, readme: tuple[Claimed, ...] = ()
) -> Claim:
    """The numbers in a submission.json, as `read_claim` has read it."""
    per_seed = _per_seed(fields)
    return Claim(
        path=path,
        fields=fields,
        val_bpb=_find(fields, VAL_BPB),
        val_loss=_find(fields, VAL_LOSS),
        val_bpb_std=_find(fields, STD),
        val_bpb_std_population=_find(fields, STD_POPULATION),
        bytes_total=_find(fields, BYTES_TOTAL),
        bytes_code=_find(fields, BYTES_CODE),
        seeds=tuple(_seeds(fields, per_seed)),
        per_seed=per_seed,
        readme=readme,
    )


# ---- single numbers


def _find(fields: Mapping[str, Any], names: Iterable[str]) -> Claimed | None:
    """The first of these names that has a number, at the top or in an object below it."""
    below = [
        (f"{key}.", value)
        for key, value in fields.items()
        if isinstance(value, Mapping) and not _is_of_runs(key, value)
    ]
    for prefix, part in [("", fields), *below]:
        for name in names:
            found = _claimed(part.get(name), f"submission.json: {prefix}{name}")
            if found is not None:
                return found
    return None


def _is_of_runs(key: str, value: Mapping[str, Any]) -> bool:
    """Whether an object holds facts by run, or about something else than the record."""
    if any(word in key for word in ("baseline", "comparison", "ablation", "reference", "delta")):
        return True
    return (key in TABLES and key != "results") or ONE_FACT.match(key) is not None


def _claimed(value: Any, where: str) -> Claimed | None:
    text = getattr(value, "text", None)
    if isinstance(value, str):  # some write numbers as text
        text = value.strip()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    text = str(value) if text is None else text
    try:
        number = float(text)
    except ValueError:
        return None
    return Claimed(value=number, text=text, where=where) if math.isfinite(number) else None


def unread(fields: Mapping[str, Any], words: str, known: Iterable[str]) -> list[str]:
    """The fields of a submission.json with a number that are called like a fact, and not read."""
    read = set(known)
    return [
        name
        for name, value in fields.items()
        if re.search(words, name, re.IGNORECASE)
        and not OF_ELSE.search(name)
        and name not in read
        and ONE_FACT.match(name) is None
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]


# ---- tables by run


def _per_seed(fields: Mapping[str, Any]) -> dict[str, dict[str, Claimed]]:
    """Each run's claims by the key that the record gives it; in a list by its seed, or place."""
    found: dict[str, dict[str, Claimed]] = {}
    for key, value in fields.items():
        one = ONE_FACT.match(key)
        if one is not None and key not in TABLES and isinstance(value, Mapping | list):
            rows = value if isinstance(value, Mapping) else _in_order(fields, value)
            _take_fact(found, key, one["fact"], rows)
        elif key in TABLES:
            for name, row in _numbered(_rows(fields, value)):
                where = f"submission.json: {key}.{name}"
                claims = _of_a_run(row, where)
                if claims:
                    found[name] = claims | found.get(name, {})
    return found


def _in_order(fields: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    """A list of one fact by the seeds, where they are listed as well; else by its places."""
    seeds = fields.get("seeds")
    known = seeds if isinstance(seeds, list) and len(seeds) == len(values) else []
    return {
        str(s) if type(s) is int else f"run {n}": value
        for n, (s, value) in enumerate(
            zip(known or [None] * len(values), values, strict=True), start=1
        )
    }


def _numbered(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Rows with keys of their own: of the second with a key, "42 (2)"."""
    times: Counter[str] = Counter()
    for name, row in rows:
        times[name] += 1
        yield name if times[name] == 1 else f"{name} ({times[name]})", row


def _rows(fields: Mapping[str, Any], table: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(table, Mapping):
        for key, row in table.items():
            if seed_of(str(key)) is not None or RUN_KEY.fullmatch(str(key)):
                yield str(key), row
    elif isinstance(table, list):
        seeds = fields.get("seeds")
        in_order = seeds if isinstance(seeds, list) and len(seeds) == len(table) else []
        for place, row in enumerate(table):
            if isinstance(row, Mapping):
                yield str(row.get("seed", f"run {place + 1}")), row
            elif isinstance(row, float):  # a score; seeds are whole numbers
                known = in_order[place] if in_order and isinstance(in_order[place], int) else None
                yield str(known if known is not None else f"run {place + 1}"), row


def _of_a_run(row: Any, where: str) -> dict[str, Claimed]:
    if not isinstance(row, Mapping):
        score = _claimed(row, where)
        return {} if score is None or not LEAST_BPB < score.value < MOST_BPB else {"val_bpb": score}
    claims = {}
    name = _score_name(row)
    if name is not None and (score := _claimed(row[name], f"{where}.{name}")) is not None:
        claims["val_bpb"] = score
    for fact, names in OF_A_RUN.items():
        if (found := _first(row, names, where)) is not None:
            claims[fact] = found
    for fact, names in IN_MILLISECONDS.items():
        if fact not in claims and (found := _first(row, names, where)) is not None:
            claims[fact] = _in_seconds(found)
    return claims


def _first(row: Mapping[str, Any], names: Iterable[str], where: str) -> Claimed | None:
    found = (_claimed(row.get(name), f"{where}.{name}") for name in names)
    return next((claim for claim in found if claim is not None), None)


def _score_name(row: Mapping[str, Any]) -> str | None:
    """The field that is a run's score: `val_bpb`, else the best kind of metric that is there."""
    if "val_bpb" in row:
        return "val_bpb"
    names = [key for key in row if SCORE_NAME.search(key) and not NO_SCORE.search(key)]
    order = [kind.value for kind in HEADLINES]

    def rank(name: str) -> int:
        kind = name_score(name)[1]
        return order.index(kind.value) if kind in HEADLINES else order.index(Kind.QUANT.value)

    return min(names, key=rank, default=None)


def _take_fact(
    found: dict[str, dict[str, Claimed]], key: str, fact: str, table: Mapping[str, Any]
) -> None:
    """A table of one fact: val_bpb_by_seed, eval_time_ms_by_seed."""
    names = {"val_bpb": ("val_bpb", "bpb"), **OF_A_RUN}
    mine = next((mine for mine, theirs in names.items() if fact in theirs), None)
    slow = next((mine for mine, theirs in IN_MILLISECONDS.items() if fact in theirs), None)
    for name, value in table.items():
        claim = _claimed(value, f"submission.json: {key}.{name}")
        if claim is None or (mine or slow) is None:
            continue
        claim = claim if mine else _in_seconds(claim)
        found.setdefault(str(name), {})[mine or slow or ""] = claim


def _in_seconds(claim: Claimed) -> Claimed:
    return Claimed(value=claim.value / 1000, text=f"{claim.value / 1000:.3f}", where=claim.where)


def seed_of(key: str) -> int | None:
    """The seed in the key of a run; None where it has none."""
    found = SEED_KEY.fullmatch(key)
    return None if found is None else int(found[1])


def _seeds(fields: Mapping[str, Any], per_seed: Mapping[str, Any]) -> Iterator[int]:
    """The seeds that the record names."""
    listed = fields.get("seeds")
    whole = [seed for seed in listed if type(seed) is int] if isinstance(listed, list) else []
    if whole:
        yield from dict.fromkeys(whole)
        return
    keyed = [seed_of(key) for key in per_seed]
    yield from dict.fromkeys(seed for seed in keyed if seed is not None)


# ---- README.md


def read_text(path: Path | None) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark; empty where there is no regular file.

    A pipe is none: to open it would be to wait for who writes into it.
    """
    if path is None or not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except OSError:
        return ""
    encoding = "utf-16" if data.startswith(UTF_16) else "utf-8-sig"
    return data.decode(encoding, errors="replace")


def _readme(path: Path) -> Iterator[Claimed]:
    """The val_bpb in a README's opening, and the mean in its first table that has one.

    Further below other records' scores are quoted as well.
    """
    opening, means = True, 0
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        opening = opening and not line.startswith("##")
        found = _headline(line) if opening else None
        texts = [] if found is None else [found[1] or found[2]]
        if not texts and not means and MEAN_ROW.match(line):
            texts = BPB_LIKE.findall(line)
            means += 1
        texts = [text for text in texts if LEAST_BPB < float(text) < MOST_BPB]
        if len(texts) == 1:
            yield Claimed(value=float(texts[0]), text=texts[0], where=f"README.md:{number}")


def _headline(line: str) -> re.Match[str] | None:
    """The first score in a line that is not said to be of a record before, else the first."""
    found = list(HEADLINE.finditer(line))
    own = (each for each in found if not of_another(line[: each.start()]))
    return next(own, found[0] if found else None)


def of_another(words: str) -> bool:
    """Whether what follows these words may be of another record than this one.

    "1.0824 against the baseline's 1.2244" it tells; a score that beats the baseline it takes for
    the baseline's.
    """
    return OF_ANOTHER.search(words) is not None
