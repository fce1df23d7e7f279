"""A data directory in the challenge's layout; the only place that knows where its files lie.

<root>/datasets/fineweb10B_sp<V>/fineweb_{train,val}_%06d.bin, dataset.json
       tokenizers/fineweb_<V>_bpe.model
       manifest.json

`dataset.json` says what its folder holds and where that comes from; `manifest.json` is made from
all of them, in the form that the field's own tools read. Everything appears by rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.data.errors import DataError

SCHEMA = 1
SPLITS = ("train", "val")

Description = dict[str, Any]


def shard_name(split: str, number: int) -> str:
    """The field's name of a shard; `split` is `train` or `val`."""
    return f"fineweb_{split}_{number:06d}.bin"


def file_facts(path: Path, tokens: int) -> dict[str, Any]:
    """What `dataset.json` says about a shard."""
    return {"bytes": path.stat().st_size, "tokens": tokens, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Files of a data set that is not in place yet."""

    dataset: Path
    tokenizer: Path


@dataclass(frozen=True)
class DataDir:
    """The files of one vocabulary size in a data directory."""

    root: Path
    vocab_size: int

    @property
    def name(self) -> str:
        return f"fineweb10B_sp{self.vocab_size}"

    @property
    def dataset(self) -> Path:
        return self.root / "datasets" / self.name

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizers" / f"fineweb_{self.vocab_size}_bpe.model"

    @property
    def description(self) -> Path:
        return self.dataset / "dataset.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def staging(self) -> Path:
        """Where files grow before they are renamed into place; on the same file system."""
        return self.root / f".partial-{self.name}"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only one who changes this directory; DataError when somebody else does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"{self.root}: another `sweeper data` is at work there; wait for it, or "
                    "choose another directory with --out"
                ) from None
            yield

    def described(self) -> Description | None:
        """What `dataset.json` says; None where there is none that can be read."""
        try:
            description = json.loads(self.description.read_bytes())
        except (OSError, ValueError):
            return None
        known = isinstance(description, dict) and description.get("schema") == SCHEMA
        return description if known else None

    def complete(self, description: Description) -> bool:
        """Whether all files of a description are in place with their sizes."""
        files = {self.dataset / name: facts for name, facts in shard_facts(description).items()}
        wanted = {path: facts["bytes"] for path, facts in files.items()}
        wanted[self.tokenizer] = description["tokenizer"]["bytes"]
        return all(path.is_file() and path.stat().st_size == wanted[path] for path in wanted)

    def describe(
        self, tokenizer: Path, *, source: dict[str, Any], splits: dict[str, Any]
    ) -> Description:
        """What `dataset.json` will say; `tokenizer` is that file where it is now."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "vocab_size": self.vocab_size,
            "tokenizer": {
                "path": self.tokenizer.relative_to(self.root).as_posix(),
                "bytes": tokenizer.stat().st_size,
                "sha256": file_sha256(tokenizer),
            },
            "source": source,
            "splits": splits,
        }

    def check_free(self, *, replace: bool) -> None:
        """DataError when there is a data set that nobody has asked to replace."""
        if self.dataset.exists() and not replace:
            raise _taken(self.dataset)

    def stage(self) -> Staged:
        """An empty place for a new data set, without what an interrupted one has left."""
        shutil.rmtree(self.staging, ignore_errors=True)
        files = Staged(
            dataset=self.staging / self.name, tokenizer=self.staging / self.tokenizer.name
        )
        files.dataset.mkdir(parents=True)
        return files

    def publish(self, files: Staged, description: Description, *, replace: bool) -> None:
        """Put a staged data set in place of what was there, if anything.

        Raises DataError when another tokenizer is there that nobody has asked to replace.
        """
        # The same one may be left of a build that was killed just here.
        other = self.tokenizer.exists() and (
            file_sha256(self.tokenizer) != file_sha256(files.tokenizer)
        )
        if other and not replace:
            raise _taken(self.tokenizer)
        write_json(files.dataset / self.description.name, description)
        self.tokenizer.parent.mkdir(parents=True, exist_ok=True)
        self.dataset.parent.mkdir(parents=True, exist_ok=True)
        if self.dataset.exists():
            self.dataset.replace(self.staging / "replaced")
        # The data set goes last: with it the tokenizer is there too.
        files.tokenizer.replace(self.tokenizer)
        files.dataset.replace(self.dataset)
        shutil.rmtree(self.staging)
        self.write_manifest()

    def describe_fetched(self, source: dict[str, Any], splits: dict[str, Any]) -> None:
        """Describe files that are in place one by one."""
        write_json(self.description, self.describe(self.tokenizer, source=source, splits=splits))
        self.write_manifest()

    def write_manifest(self) -> None:
        """List all data sets of the directory, whatever their vocabulary."""
        datasets, tokenizers = [], []
        for path in sorted((self.root / "datasets").glob("fineweb10B_sp*/dataset.json")):
            vocab_size = path.parent.name.removeprefix("fineweb10B_sp")
            place = DataDir(self.root, int(vocab_size)) if vocab_size.isdigit() else None
            description = place.described() if place is not None else None
            if place is None or description is None:
                continue
            datasets.append(_dataset_entry(place, description))
            tokenizers.append(_tokenizer_entry(place, description))
        write_json(self.manifest, {"datasets": datasets, "tokenizers": tokenizers})


def _taken(path: Path) -> DataError:
    return DataError(
        f"{path}: is there already, made otherwise; choose another directory with --out, or "
        "replace it with --replace"
    )


def shard_facts(description: Description) -> dict[str, dict[str, Any]]:
    """File name -> facts of every shard of a description."""
    return {
        name: facts
        for split in SPLITS
        for name, facts in description["splits"][split]["files"].items()
    }


def describe_split(files: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One split of a description: its shards by name, and the sum of their tokens."""
    tokens = sum(facts["tokens"] for facts in files.values())
    return more | {"tokens": tokens, "files": dict(sorted(files.items()))}


def _tokenizer_name(place: DataDir) -> str:
    return f"sp_bpe_{place.vocab_size}"


def _dataset_entry(place: DataDir, description: Description) -> dict[str, Any]:
    stats: dict[str, Any] = {}
    for split in SPLITS:
        facts = description["splits"][split]
        stats |= {f"files_{split}": len(facts["files"]), f"tokens_{split}": facts["tokens"]}
    return {
        "name": place.name,
        "path": place.dataset.relative_to(place.root).as_posix(),
        "tokenizer_name": _tokenizer_name(place),
        "vocab_size": place.vocab_size,
        "source": description["source"],
        "stats": stats,
    }


def _tokenizer_entry(place: DataDir, description: Description) -> dict[str, Any]:
    facts = description["tokenizer"]
    return {
        "name": _tokenizer_name(place),
        "model_path": facts["path"],
        "vocab_size": place.vocab_size,
        "sha256": facts["sha256"],
    }


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file by rename, on disk when the call returns."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
