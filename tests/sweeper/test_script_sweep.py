"""Sweeps of a public kind of script, through the command, on a real cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeper.ledger import Ledger
from sweeper.rows import RunState
from tests.sweeper.ray_helpers import Head, Place, a_head
from tests.sweeper.sweeps import attempt_dir, attempts, check_finished, run_states

pytestmark = pytest.mark.usefixtures("quiet")

SCRIPT = Path(__file__).with_name("fake_gpt.py")


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    with a_head(place, cpus=2, gpus=16) as head:
        yield head


def write_spec(place: Place, name: str, *seeds: int, env: dict[str, Any] | None = None) -> Path:
    """A spec of a copy of the script, with another file beside it."""
    script = place.path / "skript ü" / "train_gpt.py"
    if not script.exists():
        script.parent.mkdir(exist_ok=True)
        shutil.copy(SCRIPT, script)
        (script.parent / "table.bin").write_bytes(b"table")
    settings = {"ITERATIONS": 4, "MATRIX_LR": 0.03} | (env or {})
    tables: dict[str, dict[str, Any]] = {
        "workload": {
            "script": str(script),
            "include": [str(script.with_name("table.bin"))],
            "launch": "exec",
        },
        "resources": {"gpus_per_run": 8},
        "cost": {"usd_per_gpu_hour": 3600.0},
        "env": settings,
        "process_env": {"LOG_FORMAT": "b"},
    }
    lines = [f"name = {json.dumps(name)}", f"seeds = {json.dumps(seeds)}"]
    for heading, table in tables.items():
        lines += [f"[{heading}]", *(f"{key} = {json.dumps(v)}" for key, v in table.items())]
    path = place.path / f"{name}.toml"
    path.write_text("\n".join([*lines, '[[trial]]\nname = "t"\n']))
    return path


def test_a_sweep_keeps_the_code_that_it_began_with(place: Place, head: Head) -> None:
    sweep = place.sweep("kept")
    spec = write_spec(place, "kept", 1)
    script = place.path / "skript ü" / "train_gpt.py"
    # What the driver writes there cannot be read back: the slot must take it for another disk.
    sweep.path.mkdir(parents=True)
    sweep.nonce.symlink_to("/dev/null")
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 0, driver.said
    check_finished(sweep, 1)
    (row,) = attempts(sweep)["t", 1]
    assert row.result is not None
    directory = attempt_dir(sweep, row).path
    assert row.result["bytes_model"] == (directory / "final_model.int6.ptz").stat().st_size
    assert (directory / "train_gpt.py").read_bytes() == SCRIPT.read_bytes()
    assert (directory / "table.bin").read_bytes() == b"table"
    assert not (directory / ".code").exists()
    request = json.loads((directory / "request.json").read_text())
    assert request["code"].startswith(str(place.scratch))
    assert not list(place.scratch.glob("sweeper-*"))

    sweep.nonce.unlink(missing_ok=True)
    script.write_text(script.read_text().replace("1.09 +", "1.19 +"))
    driver = place.drive(write_spec(place, "kept", 1, 2), "--address", head.address, "--extend")
    assert driver.wait() == 0, driver.said
    assert "keeps what it began with" in driver.said
    check_finished(sweep, 2)
    rows = [row for seed in (1, 2) for row in attempts(sweep)["t", seed]]
    assert rows[0].code == rows[1].code
    scores = [row.result["val_bpb"] for row in rows if row.result is not None]
    assert scores == pytest.approx([1.120001, 1.120002])
    assert "cost: $" in driver.said
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        assert [note.kind for note in ledger.notes()] == ["code"]


def test_a_misspelt_setting_is_said_before_anything_is_written(place: Place) -> None:
    spec = write_spec(place, "misspelt", 1, env={"MATRIX_LT": 0.1})
    done = place.call("run", str(spec), "--root", str(place.root))
    assert done.returncode == 2
    assert done.stderr == (
        "error: MATRIX_LT: train_gpt.py does not know this setting; did you mean MATRIX_LR?\n"
    )
    assert not place.sweep("misspelt").path.exists()


@pytest.mark.slow
def test_a_setting_that_the_log_contradicts_is_stopped_as_an_error(
    place: Place, head: Head
) -> None:
    spec = write_spec(place, "contradicted", 1, env={"ITERATIONS": 100_000, "RECUR_LAYERS": "4,5"})
    script = place.path / "skript ü" / "train_gpt.py"
    script.write_text(SCRIPT.read_text().replace('"RECUR_LAYERS", "4,5")', '"RECUR_LAYERS") and 7'))
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 1, driver.said
    assert run_states(place.sweep("contradicted")) == {("t", 1): RunState.FAILED}
    assert "RECUR_LAYERS: asked for '4,5', the log says '7'" in driver.said
