"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--root", metavar="DIR", help="where sweeps are kept (default: $SWEEPER_ROOT, or ./runs)"
    )


def add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", help="a running Ray cluster (default: $RAY_ADDRESS, or none)")
    command.add_argument("--num-cpus", type=int, metavar="N", help="of the Ray started here")
    command.add_argument("--num-gpus", type=int, metavar="N", help="of the Ray started here")


def add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--env",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one more setting for all trials, as DATA_DIR=/big/disk/data",
    )


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError
    return name, value


_setting.__name__ = "NAME=VALUE"  # what argparse calls it when it complains
