"""The real trainer goes on from its checkpoint, on the driver's disk and on one of a slot's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.contract import EventReader
from tests.faults.aftermath import check_aftermath
from tests.faults.fleet import Fleet, a_fleet
from tests.model.conftest import SMALL, data_dir
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import attempt_dir, attempts

__all__ = ["data_dir"]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

ITERATIONS = 60


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    with a_fleet(place, head_gpus=8, cpus=4) as fleet:
        yield fleet


def write_spec(place: Place, name: str, data: Path) -> Path:
    settings = SMALL | {"ITERATIONS": str(ITERATIONS), "CHECKPOINT_SECONDS": "1e-9"}
    settings["DATA_DIR"] = str(data)
    lines = [
        *(f'name = "{name}"', "seeds = [1]"),
        *("[workload]", 'module = "model.train"', 'launch = "exec"'),
        *("[resources]", "gpus_per_run = 0"),
        *("[limits]", "backoff_seconds = 0.1"),
        *("[env]", *(f'{key} = "{value}"' for key, value in settings.items())),
        *("[[trial]]", 'name = "t"'),
    ]
    path = place.path / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("disk", ["shared", "own"])
def test_a_run_that_dies_goes_on_from_its_checkpoint(
    place: Place, fleet: Fleet, data_dir: Path, disk: str
) -> None:
    name = f"goes-on-{disk}"
    spec, sweep = write_spec(place, name, data_dir), place.sweep(name)
    if disk == "own":
        sweep.path.mkdir(parents=True)
        sweep.nonce.symlink_to("/dev/null")  # so that the slot takes this for another disk
    driver = place.drive(spec, "--address", fleet.address)
    first = EventReader(sweep.attempt(0, "t", 1, 1).events)
    wait_until(
        lambda: (
            any(event["kind"] == "checkpoint" for event in first.read())
            or driver.process.poll() is not None
        ),
        "word of a checkpoint to come home",
    )
    (trainer,) = [run for run in place.runs() if run.cmdline()[1:] == ["-m", "model.train"]]
    trainer.kill()
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, name, runs=1, attempts={"crashed": 1, "finished": 1})
    died, finished = attempts(sweep)["t", 1]
    assert finished.result is not None
    assert 0 < finished.result["resumed_from_step"] < ITERATIONS
    assert finished.result["steps"] == ITERATIONS
    # None is kept of a run that has finished, wherever it was written.
    for row in (died, finished):
        assert not list(attempt_dir(sweep, row).path.rglob("checkpoint.pt"))
    assert not list(place.scratch.glob("sweeper-*"))
