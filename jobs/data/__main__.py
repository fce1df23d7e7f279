"""`sweeper data sample | prepare | fetch`: thin commands; heavy imports wait until needed.

The processes that tokenize import this module too, so it stays light.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.data.errors import DataError

if TYPE_CHECKING:
    from jobs.data.build import Corpus
    from jobs.data.datadir import DataDir
    from jobs.data.meter import Meter

OK, WRONG_USE, INTERRUPTED = 0, 2, 130
DEFAULT_OUT = Path("data")
DEFAULT_REPO = "willdepueoai/parameter-golf"
DEFAULT_PREFIX = "datasets"
# A dozen of the sample's documents: enough to tell models apart, quick to score on a laptop.
SAMPLE_VAL_DOCUMENTS = 12


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweeper data",
        description="Make or fetch a data set in the challenge's format.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "sample", help="a small one from real text that every Python has: its own documentation"
    )
    command.add_argument("--vocab-size", type=_positive, default=1024, metavar="V")
    _add_building(command, val_documents=SAMPLE_VAL_DOCUMENTS)
    command.set_defaults(run=sample)

    command = commands.add_parser("prepare", help="one from documents of your own")
    command.add_argument(
        "documents",
        nargs="+",
        type=Path,
        metavar="DOCS",
        help=".jsonl (a document a line) or text (one document); may be .gz, .xz or .zst",
    )
    command.add_argument("--vocab-size", type=_positive, required=True, metavar="V")
    command.add_argument(
        "--tokenizer", type=Path, metavar="MODEL", help="a SentencePiece model (default: train one)"
    )
    command.add_argument("--text-key", default="text", metavar="KEY", help="of .jsonl lines")
    command.add_argument(
        "--separator", metavar="TEXT", help="cuts a text file into documents, like <|endoftext|>"
    )
    _add_building(command, val_documents=None)
    command.set_defaults(run=prepare)

    command = commands.add_parser("fetch", help="the published export, from a hub")
    command.add_argument("--variant", type=_variant, required=True, metavar="spV", help="as sp4096")
    command.add_argument("--train-shards", type=_positive, default=80, metavar="N")
    command.add_argument(
        "--repo", default=os.environ.get("MATCHED_FINEWEB_REPO_ID", DEFAULT_REPO), metavar="NAME"
    )
    command.add_argument(
        "--prefix",
        default=os.environ.get("MATCHED_FINEWEB_REMOTE_ROOT_PREFIX", DEFAULT_PREFIX),
        metavar="PATH",
        help="of the export in the repository",
    )
    command.add_argument("--revision", default="main", metavar="REV")
    _add_out(command)
    command.set_defaults(run=fetch)
    return parser


def _add_building(command: argparse.ArgumentParser, *, val_documents: int | None) -> None:
    command.add_argument(
        "--val-documents",
        type=_positive,
        default=val_documents,
        metavar="N",
        help="the first N are validation (default: %(default)s)"
        if val_documents
        else "the first N are validation (default: a twentieth, at most 50,000)",
    )
    command.add_argument("--shard-tokens", type=_positive, default=100_000_000, metavar="N")
    command.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes"
    )
    command.add_argument("--replace", action="store_true", help="what is there, if it differs")
    _add_out(command)


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="DIR")


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError
    return number


_positive.__name__ = "number above 0"  # what argparse calls it when it complains


def _variant(text: str) -> int:
    return _positive(text.removeprefix("sp"))


_variant.__name__ = "variant"


def sample(arguments: argparse.Namespace) -> int:
    from jobs.data.build import Corpus
    from jobs.data.stdlib import stdlib_documents

    documents = stdlib_documents()
    return _build(arguments, Corpus(kind="python standard library", read=lambda: documents))


def prepare(arguments: argparse.Namespace) -> int:
    from jobs.data.build import Corpus
    from jobs.data.documents import read_documents

    read = partial(
        read_documents,
        arguments.documents,
        text_key=arguments.text_key,
        separator=arguments.separator,
    )
    return _build(arguments, Corpus(kind="documents", read=read))


def _build(arguments: argparse.Namespace, corpus: Corpus) -> int:
    from jobs.data.build import Request, build
    from jobs.data.datadir import DataDir
    from jobs.data.meter import Meter

    request = Request(
        vocab_size=arguments.vocab_size,
        tokenizer=getattr(arguments, "tokenizer", None),
        val_documents=arguments.val_documents,
        shard_tokens=arguments.shard_tokens,
        workers=arguments.workers,
        replace=arguments.replace,
    )
    data, meter = DataDir(arguments.out, request.vocab_size), Meter()
    made = build(corpus, request, data, meter)
    _summarise(data, meter, "made" if made else "is there already")
    return OK


def fetch(arguments: argparse.Namespace) -> int:
    from jobs.data.datadir import DataDir
    from jobs.data.fetch import Export
    from jobs.data.fetch import fetch as fetch_export
    from jobs.data.meter import Meter

    data, meter = DataDir(arguments.out, arguments.variant), Meter()
    export = Export(repo=arguments.repo, prefix=arguments.prefix, revision=arguments.revision)
    count = fetch_export(export, data, arguments.train_shards, meter)
    _summarise(data, meter, f"{count} files fetched" if count else "is there already")
    return OK


def _summarise(data: DataDir, meter: Meter, what: str) -> None:
    """One line: what became of the data set, and what it holds."""
    description = data.described()
    assert description is not None
    splits = [
        f"{facts['tokens']:,} tokens of {split} in {len(facts['files'])} shards"
        for split, facts in description["splits"].items()
    ]
    meter.say(f"{data.dataset} {what}: {', '.join(splits)}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. What the user did wrong is said in one line."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except (DataError, OSError) as error:
        # OSError: a full disk, a directory that may not be written; the system says it best.
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("stopped; start it again to go on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
