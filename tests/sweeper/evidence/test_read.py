"""Records as they are read: real ones against what a person found, and which runs count."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import UserError
from sweeper.evidence.read import read_record, read_records
from sweeper.evidence.record import Record
from sweeper.scores import Kind
from tests.sweeper.evidence.folders import (
    SCORES,
    all_real,
    log_text,
    read_real,
    truth_of,
    write_folder,
)


@pytest.fixture(scope="module")
def records() -> list[tuple[Record, dict[str, Any]]]:
    folders = all_real()
    read = read_records(folders, whole=True)
    return [(record, truth_of(folder)) for record, folder in zip(read, folders, strict=True)]


def counted(record: Record) -> dict[str, float | None]:
    return {run.label: run.val_bpb for run in record.counted}


def excluded(record: Record) -> dict[str, str | None]:
    return {run.label: run.excluded for run in record.excluded}


# ---- real ones


def test_every_real_folder_has_the_mean_and_the_std_that_a_person_found(
    records: list[tuple[Record, dict[str, Any]]],
) -> None:
    assert len(records) == 40
    for record, truth in records:
        true, found = truth["across_seeds"], record.summary
        assert found.n == true["n"], record.name
        assert found.mean == pytest.approx(true["mean_val_bpb"], abs=1e-6), record.name
        if true["std_sample_val_bpb"] is None:
            assert found.std is None, record.name
        else:
            assert found.std == pytest.approx(true["std_sample_val_bpb"], abs=1e-6), record.name
            std = true["std_population_val_bpb"]
            assert record.std_population == pytest.approx(std, abs=1e-6)


def test_of_every_real_folder_the_logs_count_that_a_person_counted(
    records: list[tuple[Record, dict[str, Any]]],
) -> None:
    for record, truth in records:
        files = {run["file"] for run in truth["runs"] if run["counted"]}
        assert {run.path.name for run in record.counted} == files, record.name
        assert all(run.excluded for run in record.excluded)


def test_of_every_real_folder_the_claims_are_found(
    records: list[tuple[Record, dict[str, Any]]],
) -> None:
    for record, truth in records:
        for mine, theirs in (("val_bpb", "val_bpb"), ("val_bpb_std", "std")):
            claim, true = getattr(record.claim, mine), truth["claim"][theirs]
            if true is not None:
                assert claim is not None, (record.name, mine)
                assert claim.value == true, (record.name, mine)
        true_bytes = truth["claim"]["bytes"]
        if true_bytes is not None:
            assert record.claim.bytes_total is not None
            assert record.claim.bytes_total.value == true_bytes, record.name
        by_seed = {k: c["val_bpb"].value for k, c in record.claim.per_seed.items()}
        for value in (truth["claim"]["per_seed_val_bpb"] or {}).values():
            assert value in by_seed.values(), record.name


def test_what_is_missing_in_a_real_log_has_its_reason(
    records: list[tuple[Record, dict[str, Any]]],
) -> None:
    for record, _ in records:
        for run in record.runs:
            for name, why in run.missing.items():
                assert getattr(run.facts, name) is None or name == "val_bpb", (run.label, name)
                assert len(why) > 10


def test_the_largest_artifact_of_a_real_record() -> None:
    assert read_real("pr1395__").bytes_max == 15_989_311
    assert read_real("pr1273__").bytes_max is None  # its log does not say it


# ---- which runs count


def test_all_seeds_of_a_right_folder_count(tmp_path: Path) -> None:
    record = read_record(write_folder(tmp_path / "größe und platz"))
    assert record.summary.n == 3
    assert record.summary.mean == pytest.approx(statistics.fmean(SCORES.values()))
    assert [run.seed for run in record.runs] == [314, 42, 999]  # by path
    assert record.runs[0].val_bpb_text == "1.09269085"
    assert record.name == "größe und platz"


def test_a_log_without_a_final_score_does_not_count_and_says_why(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    text = log_text(7, 1.1)
    (folder / "train_seed7.log").write_text(text[: text.index("Serialized")])
    record = read_record(folder)
    assert record.summary.n == 3
    assert excluded(record) == {"train_seed7.log": "no final score in the log"}


def test_a_score_that_is_no_number_does_not_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    text = log_text(7, 1.1).replace("val_bpb:1.10000000", "val_bpb:nan")
    (folder / "train_seed7.log").write_text(text)
    record = read_record(folder)
    assert record.summary.n == 3
    assert "no finite number" in str(excluded(record)["train_seed7.log"])


def test_a_copy_counts_once_under_the_name_that_has_its_seed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "all.txt").write_text(log_text(42, SCORES[42]))
    record = read_record(folder)
    assert record.summary.n == 3
    assert excluded(record) == {"all.txt": "a copy of train_seed42.log"}


def test_the_last_of_several_runs_of_a_seed_in_one_log_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "train_seed42.log").write_text(log_text(42, 1.2) + log_text(42, 1.1))
    record = read_record(folder)
    assert counted(record)["train_seed42.log#2"] == 1.1
    assert excluded(record) == {"train_seed42.log#1": "begun anew later in the same log"}


def test_one_log_may_hold_all_seeds(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    path = tmp_path / "record" / "train.log"
    path.write_text("".join(log_text(seed, score) for seed, score in SCORES.items()))
    record = read_record(tmp_path / "record")
    assert sorted(record.scores) == sorted(SCORES.values())
    assert {run.seed for run in record.counted} == set(SCORES)


def test_the_runs_that_a_claim_lists_count_and_no_ablations(tmp_path: Path) -> None:
    claim = {"seed_results": {str(s): {"val_bpb": score} for s, score in SCORES.items()}}
    folder = write_folder(tmp_path / "record", claim=claim)
    (folder / "ablation_seed42.log").write_text(log_text(42, 1.0911))
    record = read_record(folder)
    assert sorted(record.scores) == sorted(SCORES.values())
    assert "lists" in str(excluded(record)["ablation_seed42.log"])


def test_a_claim_with_one_wrong_score_still_lists_its_seed(tmp_path: Path) -> None:
    wrong = {s: score - 0.001 * (s == 42) for s, score in SCORES.items()}
    claim = {"seed_results": {str(s): {"val_bpb": score} for s, score in wrong.items()}}
    folder = write_folder(tmp_path / "record", claim=claim)
    (folder / "ablation_seed42.log").write_text(log_text(42, 1.2))
    assert sorted(read_record(folder).scores) == sorted(SCORES.values())


def test_without_a_list_the_logs_named_alike_count_that_the_claim_is_nearest_to(
    tmp_path: Path,
) -> None:
    folder = write_folder(tmp_path / "record", claim={"val_bpb": 1.0850})
    for seed in SCORES:
        (folder / f"more_epochs_seed{seed}.log").write_text(log_text(seed, 1.085 + seed / 1e7))
    record = read_record(folder)
    assert {run.path.name[:4] for run in record.counted} == {"more"}
    assert "the claimed score is of" in record.chosen_by


def test_without_a_claim_the_family_with_most_seeds_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    settings = {"iterations": 500}
    (folder / "short_seed42.log").write_text(log_text(42, 1.2, settings=settings))
    record = read_record(folder)
    assert sorted(record.scores) == sorted(SCORES.values())
    assert excluded(record).keys() == {"short_seed42.log"}


def test_seeds_that_ran_with_other_settings_still_count(tmp_path: Path) -> None:
    """That they did is for a reader to see, not for the reading to hide."""
    folder = write_folder(tmp_path / "record")
    (folder / "train_seed42.log").write_text(log_text(42, 1.09, settings={"num_layers": 9}))
    assert read_record(folder).summary.n == 3


def test_a_seed_that_is_only_in_the_name_is_taken_from_there(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    path = folder / "train_seed42.log"
    path.write_text(path.read_text().replace("  seed: 42\n", ""))
    run = next(run for run in read_record(folder).runs if run.path == path)
    assert (run.seed, run.seed_from) == (42, "file name")


def test_runs_without_a_seed_in_one_log_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    runs = [log_text(0, score).replace("  seed: 0\n", "") for score in SCORES.values()]
    (tmp_path / "record" / "train.log").write_text("".join(runs))
    assert sorted(read_record(tmp_path / "record").scores) == sorted(SCORES.values())


def test_two_claims_of_one_seed_are_of_two_runs(tmp_path: Path) -> None:
    rows = [{"seed": 42, "val_bpb": 1.0927}, {"seed": 42, "val_bpb": 1.0919}]
    folder = write_folder(tmp_path / "record", {42: 1.0927}, claim={"seed_results": rows})
    (folder / "again_seed42.log").write_text(log_text(42, 1.0919))
    assert sorted(read_record(folder).scores) == [1.0919, 1.0927]


def test_a_family_is_found_by_its_mean_before_a_single_run(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record", claim={"val_bpb": 1.0924})
    for seed, score in {42: 1.0924, 314: 1.11, 999: 1.105}.items():
        (folder / f"a_wide_seed{seed}.log").write_text(
            log_text(seed, score, settings={"model_dim": 1})
        )
    assert sorted(read_record(folder).scores) == sorted(SCORES.values())


def test_of_equal_families_the_challenges_own_names_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    for seed in SCORES:
        (folder / f"ablation_seed{seed}.log").write_text(
            log_text(seed, 1.2, settings={"model_dim": 1})
        )
    assert sorted(read_record(folder).scores) == sorted(SCORES.values())


def test_logs_that_echo_no_settings_are_not_said_to_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "ablation_seed7.log").write_text(log_text(7, 1.05))
    for path in folder.glob("*.log"):
        text = path.read_text()
        path.write_text(text[text.index("train_shards") :].replace("val_tokens", "seed: 7\nx", 0))
    record = read_record(folder)
    assert sorted(record.scores) == sorted(SCORES.values())


def test_a_guess_at_a_seed_is_called_one(tmp_path: Path) -> None:
    folder = tmp_path / "record"
    folder.mkdir()
    text = log_text(1, 1.1).replace("  seed: 1\n", "")
    (folder / "train_1337.log").write_text(text)
    (folder / "train_8xh100.log").write_text(text.replace("1.10000000", "1.11000000"))
    runs = {run.label: (run.seed, run.seed_from) for run in read_record(folder).runs}
    assert runs["train_1337.log"] == (1337, "file name, perhaps")
    assert runs["train_8xh100.log"] == (None, None)


# ---- which metric


def test_a_metric_that_is_asked_for_is_the_score(tmp_path: Path) -> None:
    record = read_record(write_folder(tmp_path / "record"), metric=Kind.QUANT)
    assert record.metrics == ("quant",)
    assert record.summary.mean == pytest.approx(statistics.fmean(SCORES.values()) + 0.015)
    none = read_record(write_folder(tmp_path / "other"), metric=Kind.TTT)
    assert none.summary.n == 0
    assert set(excluded(none).values()) == {"no final score in the log"}


def test_a_claim_of_another_final_metric_is_taken_at_its_word(tmp_path: Path) -> None:
    claim = {"val_bpb": round(statistics.fmean(SCORES.values()) + 0.015, 8)}
    record = read_record(write_folder(tmp_path / "record", claim=claim))
    assert record.metrics == ("quant",)
    assert "final_int6_roundtrip" in record.notes[0]


def test_a_claim_of_a_score_before_quantisation_is_not(tmp_path: Path) -> None:
    record = read_record(write_folder(tmp_path / "record", claim={"val_bpb": 1.09700}))
    assert record.metrics == ("sliding",)
    assert record.notes == ()


# ---- what there is


def test_a_tree_is_read_record_by_record(tmp_path: Path) -> None:
    write_folder(tmp_path / "tree" / "b")
    folder = write_folder(tmp_path / "tree" / "a" / "inner", claim={"val_bpb": 1.0924})
    (folder / "logs").mkdir()
    (folder / "train_seed42.log").rename(folder / "logs" / "seed42.txt")
    (tmp_path / "tree" / "c").mkdir()
    (tmp_path / "tree" / "c" / "requirements.txt").write_text("torch\n")
    found = list(read_records([tmp_path / "tree"]))
    assert [(record.name, record.summary.n) for record in found] == [("inner", 3), ("b", 3)]


def test_many_logs_are_read_with_progress(tmp_path: Path) -> None:
    for number in range(12):
        write_folder(tmp_path / "tree" / f"{number:02d}")
    told: list[tuple[int, int]] = []
    found = list(read_records([tmp_path / "tree"], progress=lambda *at: told.append(at)))
    assert [record.name for record in found] == [f"{number:02d}" for number in range(12)]
    assert {record.summary.n for record in found} == {3}
    assert told == [(done, 36) for done in range(1, 37)]


def test_a_single_log_is_a_record_of_its_runs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record", claim={"val_bpb": 9.0})
    record = read_record(folder / "train_seed42.log")
    assert record.scores == (SCORES[42],)
    assert record.claim.val_bpb is None


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_where_there_is_no_record_it_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        read_record(tmp_path / name)
    with pytest.raises(UserError, match=name):
        list(read_records([tmp_path / name]))


def test_rubbish_is_read_and_counts_for_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "binary.log").write_bytes(os.urandom(100_000))
    (folder / "empty.log").touch()
    (folder / "half.log").write_bytes(log_text(5, 1.0).encode()[:401])
    (folder / "wide.txt").write_bytes(log_text(7, 1.0931).encode("utf-16"))
    (folder / "gone.log").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("to do: buy milk")
    (folder / "endless.log").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.log")
    record = read_record(folder)
    assert sorted(record.scores) == sorted([*SCORES.values(), 1.0931])
    assert excluded(record) == {
        "binary.log": "no step and no score in it",
        "empty.log": "empty",
        "gone.log": "cannot be read: No such file or directory",
        "half.log": "no final score in the log",
    }


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00\x01", '{"val_bpb": NaN}', "[" * 100_000])
def test_a_submission_that_cannot_be_read_is_said_and_loses_no_log(
    tmp_path: Path, text: str
) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "submission.json").write_bytes(text.encode(errors="surrogatepass"))
    record = read_record(folder)
    assert record.summary.n == 3
    assert record.claim.error
    assert record.claim.val_bpb is None


def test_a_submission_of_another_encoding_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    for encoding in ("utf-8-sig", "utf-16"):
        (folder / "submission.json").write_bytes('{"val_bpb": 1.0924}'.encode(encoding))
        claim = read_record(folder).claim.val_bpb
        assert claim is not None
        assert claim.value == 1.0924


def test_a_difference_in_a_readme_is_no_headline(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "README.md").write_text("# Delta val_bpb = -0.0223\n\nval_bpb 0.0001, val_bpb +1.2\n")
    assert read_record(folder).claim.readme == ()


def test_code_of_installed_packages_is_not_the_records(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    for name in (".venv/lib/a.py", ".git/h.sh", "helper.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert [path.name for path in read_record(folder).code] == ["helper.py"]


def test_a_readme_says_its_headline_and_its_mean(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "record")
    (folder / "README.md").write_text(
        "# Record: val_bpb 1.0924 (3-seed mean)\n\n**val_bpb = 1.09244**\n\n"
        "## Results\n\n| seed | val_bpb |\n|---|---|\n| 42 | 1.09269834 |\n"
        "| **Mean** | **1.09244346** |\n\nThe baseline has val_bpb 1.2244.\n"
    )
    claims = [(claim.value, claim.where) for claim in read_record(folder).claim.readme]
    assert claims == [
        (1.0924, "README.md:1"),
        (1.09244, "README.md:3"),
        (1.09244346, "README.md:10"),
    ]


def test_claims_are_json_again(tmp_path: Path) -> None:
    """What is read of a submission.json can be written as it was."""
    fields = {"val_bpb": 1.09244346, "seeds": [42, 314], "bytes_total": 15_989_311, "a": [None]}
    record = read_record(write_folder(tmp_path / "record", claim=fields))
    assert json.loads(json.dumps(record.claim.fields)) == fields
