"""The published export from a hub: listed, checked, downloaded shard by shard, put in place.

What is here already and as published is not downloaded again, so a fetch that was cut goes on
with the shards that it lacks, and asking for more shards brings only those.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import tqdm

from jobs.data.datadir import DataDir, describe_split, file_facts, file_sha256, shard_facts
from jobs.data.errors import DataError
from jobs.data.meter import Meter
from model.shards import ShardError, check_ids, read_shard, sample_blocks
from model.tokens import TokenizerError, load_token_bytes

SHARD = re.compile(r"fineweb_(train|val)_(\d{6})\.bin")
DOWNLOADS_AT_ONCE = 8
# The disk is left with some room for whoever else writes to it.
SPARE_BYTES = 256 << 20
# Whichever HTTP client this version of huggingface_hub stands on, these are its errors.
CLIENT_ERRORS = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)


@dataclass(frozen=True, kw_only=True)
class Export:
    """A published export: <prefix>/datasets/… and <prefix>/tokenizers/… of a dataset repo."""

    repo: str
    prefix: str
    revision: str = "main"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One file of an export, and where it belongs here."""

    remote: RepoFile
    place: Path
    split: str | None  # None: the tokenizer

    @property
    def bytes(self) -> int:
        return int(self.remote.size)

    @property
    def sha256(self) -> str | None:
        """Hash of the contents, which the hub knows of large files only."""
        return self.remote.lfs.sha256 if self.remote.lfs is not None else None


def fetch(export: Export, data: DataDir, train_shards: int, meter: Meter) -> int:
    """Bring the validation split, the first `train_shards` shards and the tokenizer here.

    Returns how many files were downloaded. Raises DataError: no such export, too few shards, no
    room, a damaged file, or files here that are not the published ones.
    """
    with data.hold(), hub_errors(export):
        known = _known_shards(export, data)
        api = HfApi()
        commit = api.dataset_info(export.repo, revision=export.revision).sha
        assert commit is not None
        files = list_export(api, export, commit, data, train_shards)
        missing = [file for file in files if not _is_here(file, known, meter)]
        _check_room(missing, data.root)
        facts = _download(export, commit, missing, data, meter)
        shards = [file for file in files if file.split is not None]
        for file in shards:
            if file.place.name not in facts:
                facts[file.place.name] = known.get(file.place.name) or _check_shard(
                    file.place, data.vocab_size
                )
        data.describe_fetched(
            {"kind": "fetched", "repo": export.repo, "prefix": export.prefix, "commit": commit},
            {split: _split(shards, facts, split) for split in ("train", "val")},
        )
    return len(missing)


def _split(files: list[Published], facts: dict[str, Any], split: str) -> dict[str, Any]:
    names = [file.place.name for file in files if file.split == split]
    return describe_split({name: facts[name] for name in names})


def _known_shards(export: Export, data: DataDir) -> dict[str, dict[str, Any]]:
    """Facts of the shards that an earlier fetch of the same export has put here."""
    there = data.described()
    if there is None:
        return {}
    source = there["source"]
    if source["kind"] != "fetched" or source["repo"] != export.repo:
        what = source.get("repo", source["kind"])
        raise DataError(
            f"{data.dataset}: holds another data set ({what}); choose another directory with "
            "--out, or remove it"
        )
    return shard_facts(there)


def list_export(
    api: HfApi, export: Export, commit: str, data: DataDir, train_shards: int
) -> list[Published]:
    """The files wanted: the tokenizer, all of validation, and the first shards of training."""
    shards = {}
    for remote in _list_folder(api, export, commit, f"datasets/{data.name}"):
        found = SHARD.fullmatch(Path(remote.path).name)
        if found is not None:
            file = Published(remote=remote, place=data.dataset / found[0], split=found[1])
            shards[found[0]] = file
    train = sorted(name for name, file in shards.items() if file.split == "train")
    val = sorted(name for name, file in shards.items() if file.split == "val")
    if not val:
        raise DataError(f"{export.repo}: no validation shards of {data.name} in {export.prefix!r}")
    if train_shards > len(train):
        raise DataError(
            f"{export.repo}: {data.name} has {len(train)} training shards, asked for "
            f"{train_shards}; lower --train-shards"
        )
    tokenizer = [
        Published(remote=remote, place=data.tokenizer, split=None)
        for remote in _list_folder(api, export, commit, "tokenizers")
        if Path(remote.path).name == data.tokenizer.name
    ]
    if not tokenizer:
        raise DataError(f"{export.repo}: no {data.tokenizer.name} in {export.prefix!r}")
    # What is here beyond the number asked for is trained on as well, so it is described too.
    more = [name for name in train[train_shards:] if shards[name].place.exists()]
    return tokenizer + [shards[name] for name in val + train[:train_shards] + more]


def _list_folder(api: HfApi, export: Export, commit: str, folder: str) -> list[RepoFile]:
    path = "/".join(part for part in (export.prefix.strip("/"), folder) if part)
    entries = api.list_repo_tree(export.repo, path, revision=commit, repo_type="dataset")
    return [entry for entry in entries if isinstance(entry, RepoFile)]


def _is_here(file: Published, known: dict[str, dict[str, Any]], meter: Meter) -> bool:
    """Whether a file is in place as published; DataError when another is in its place."""
    if not file.place.exists():
        return False
    found = file.place.stat().st_size
    same = found == file.bytes
    recorded = known.get(file.place.name, {}).get("sha256")
    if same and file.sha256 is not None and recorded != file.sha256:
        with meter.task(f"checking {file.place.name}", None):
            same = file_sha256(file.place) == file.sha256
    if not same:
        raise DataError(
            f"{file.place}: {found} bytes that are not the published file's {file.bytes}; remove "
            "it to fetch it again, or choose another directory with --out"
        )
    return True


def _check_room(missing: list[Published], root: Path) -> None:
    needed, free = sum(file.bytes for file in missing), shutil.disk_usage(root).free
    if missing and needed + SPARE_BYTES > free:
        raise DataError(
            f"{root}: {needed / 1e9:.2f} GB to download, {free / 1e9:.2f} GB free; make room, "
            "lower --train-shards, or choose another disk with --out"
        )


def _download(
    export: Export, commit: str, missing: list[Published], data: DataDir, meter: Meter
) -> dict[str, dict[str, Any]]:
    """Download, check and put in place; returns the facts of the shards by file name."""
    facts: dict[str, dict[str, Any]] = {}
    if not missing:
        return facts
    total = sum(file.bytes for file in missing)
    pool = ThreadPoolExecutor(DOWNLOADS_AT_ONCE)
    with meter.task(f"downloading {len(missing)} files of {data.name}", total):
        bar = _counting_bar(meter)
        waiting = {pool.submit(_bring, export, commit, file, data, bar): file for file in missing}
        try:
            for future in as_completed(waiting):
                found = future.result()
                if found is not None:
                    facts[waiting[future].place.name] = found
        finally:
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(data.staging, ignore_errors=True)
    return facts


def _bring(
    export: Export, commit: str, file: Published, data: DataDir, bar: type[tqdm]
) -> dict[str, Any] | None:
    """Download one file, check it and put it in place; the facts of a shard."""
    arrived = Path(
        hf_hub_download(
            export.repo,
            file.remote.path,
            repo_type="dataset",
            revision=commit,
            local_dir=data.staging / "hub",
            tqdm_class=bar,
        )
    )
    try:
        facts = _check(file, arrived, data.vocab_size)
    except DataError:
        arrived.unlink()
        raise
    file.place.parent.mkdir(parents=True, exist_ok=True)
    arrived.replace(file.place)
    return facts


def _check(file: Published, arrived: Path, vocab_size: int) -> dict[str, Any] | None:
    """Facts of a shard that has arrived; DataError unless it is what was published."""
    if file.split is None:
        try:
            load_token_bytes(arrived, vocab_size)
        except TokenizerError as error:
            raise DataError(str(error)) from error
        return None
    facts = _check_shard(arrived, vocab_size)
    if file.sha256 is not None and facts["sha256"] != file.sha256:
        raise DataError(f"{arrived}: damaged on the way (its hash differs); fetch it again")
    return facts


def _check_shard(path: Path, vocab_size: int) -> dict[str, Any]:
    """Facts of a shard; DataError when it is none, or one of another tokenizer."""
    try:
        tokens = read_shard(path)
        check_ids(path, sample_blocks(tokens), vocab_size)
    except ShardError as error:
        raise DataError(str(error)) from error
    return file_facts(path, tokens.size)


def _counting_bar(meter: Meter) -> type[tqdm]:
    """A bar for the hub's downloads that shows nothing of its own and tells the meter."""

    class CountingBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            meter.advance(n or 0)

    return CountingBar


@contextmanager
def hub_errors(export: Export) -> Iterator[None]:
    """Errors of the hub and of the way to it, as DataError that says what to do."""
    where = f"{export.repo} (revision {export.revision}, prefix {export.prefix!r})"
    try:
        yield
    except (HFValidationError, RevisionNotFoundError, GatedRepoError) as error:
        raise DataError(f"{where}: {_first_line(error)}") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{where}: no such dataset repository; check --repo, and set HF_TOKEN if it is private"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise DataError(f"{where}: the hub cannot be reached: {_first_line(error)}") from error
    except EntryNotFoundError as error:
        raise DataError(f"{where}: no such data set there; check --variant and --prefix") from error
    except CLIENT_ERRORS as error:
        raise DataError(
            f"{where}: the download failed: {_first_line(error)}; start it again, it goes on where "
            "it was"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
