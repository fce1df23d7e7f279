"""What of a README is a command that runs the script, and how it is written for one."""

from __future__ import annotations

import pytest

from sweeper.evidence.commands import not_understood, read_commands, run_lines
from tests.sweeper.evidence.public_readme import PUBLIC


def test_the_commands_of_a_readme_are_read_as_a_shell_would() -> None:
    base, loop, gpu, alone, last = read_commands(PUBLIC)
    common = {"DATA_PATH": "./data/x", "TOKENIZER_PATH": "./tok en.model"}
    assert base.env == common | {"RUN_ID": "base", "MATRIX_LR": "0.02"}
    assert (base.processes, base.launch, base.arguments, base.line) == (8, "torchrun", (), 9)
    # What only the loop knows is left out, not guessed.
    assert loop.env == common | {
        "MATRIX_LR": "0.04",
        "ITERATIONS": "9",
        "QUITE_OTHER": "1",
        "NCCL_DEBUG": "WARN",
    }
    assert (loop.processes, loop.arguments, loop.line) == (4, ("--flag",), 11)
    assert (gpu.processes, gpu.launch) == (None, "torchrun")
    assert (alone.processes, alone.launch, alone.env) == (1, "exec", common)
    assert last.env == common | {"MATRIX_LR": "0.9"}


@pytest.mark.parametrize(
    ("block", "env", "processes", "launch"),
    [
        (
            "cd x && SEED=1 torchrun --nproc_per_node=$(nvidia-smi -L | wc -l) train_gpt.py",
            {"SEED": "1"},
            *(None, "torchrun"),
        ),
        ("A=1 uv run torchrun --nproc_per_node=2 train_gpt.py", {"A": "1"}, 2, "torchrun"),
        ("A=1 numactl -N 0 python3 -u train_gpt.py", {"A": "1"}, 1, "exec"),
        ("RUN=$(date) B=2 nice -n 5 torchrun train_gpt.py", {"B": "2"}, 1, "torchrun"),
        ("A=1 timeout 900 stdbuf -oL torchrun train_gpt.py", {"A": "1"}, 1, "torchrun"),
        ("A=1 /usr/bin/time -v python train_gpt.py", {"A": "1"}, 1, "exec"),
        # What a wrapper sets is set: without it another configuration would be run.
        (
            "docker run -v a:b -e A=1 -eB=2 --env C=3 --env=D=4 img torchrun train_gpt.py",
            *({"A": "1", "B": "2", "C": "3", "D": "4"}, 1, "torchrun"),
        ),
        ("A=0 uv run env -u X A=1 torchrun train_gpt.py", {"A": "1"}, 1, "torchrun"),
        ("srun --export=ALL,A=1,B=2 torchrun train_gpt.py", {"A": "1", "B": "2"}, 1, "torchrun"),
        ("export B=2\nbash -lc 'A=1 torchrun train_gpt.py'", {"A": "1", "B": "2"}, 1, "torchrun"),
        ('docker run img bash -c "cd x && A=1 python train_gpt.py"', {"A": "1"}, 1, "exec"),
    ],
)
def test_a_command_is_read_behind_what_wraps_it(
    block: str, env: dict[str, str], processes: int | None, launch: str
) -> None:
    (command,) = read_commands(f"```\n{block}\n```")
    assert (command.env, command.processes, command.launch) == (env, processes, launch)


def test_a_document_within_a_command_holds_no_commands() -> None:
    lines = [
        "cat > run.sh <<'EOF'",
        "A=1 torchrun train_gpt.py",
        "EOF",
        "B=2 torchrun train_gpt.py",
    ]
    (command,) = read_commands("\n".join(["```", *lines, "```"]))
    assert command.env == {"B": "2"}


@pytest.mark.parametrize("line", ["mask = 1 << bits", "cat <<EOF", 'python - <<< "1"'])
def test_what_only_looks_like_a_document_hides_no_later_block(line: str) -> None:
    text = f"```\n{line}\n```\n```bash\nA=1 torchrun train_gpt.py\n```\n"
    (command,) = read_commands(text)
    assert (command.env, command.line) == ({"A": "1"}, 5)


def test_a_text_that_is_handed_to_a_command_is_no_document() -> None:
    (command,) = read_commands('```\ncat <<< "x"\nA=1 torchrun train_gpt.py\n```\n')
    assert command.env == {"A": "1"}


def test_without_a_code_block_indented_and_inline_code_is_read() -> None:
    (indented,) = read_commands("Run:\n\n    A=1 torchrun --nproc_per_node=8 train_gpt.py\n")
    assert (indented.env, indented.processes, indented.line) == ({"A": "1"}, 8, 3)
    lines = ["export A=1", "B=2 \\", "  torchrun \\", "  train_gpt.py"]
    (continued,) = read_commands("\n".join(f"    {line}" for line in lines))
    assert (continued.env, continued.line) == ({"A": "1", "B": "2"}, 2)
    (inline,) = read_commands("Run `A=2 python train_gpt.py`, and `train_gpt.py` is the script.")
    assert inline.env == {"A": "2"}
    fenced = "```\nA=3 torchrun train_gpt.py\n```\nand never `A=4 torchrun train_gpt.py`"
    assert [command.env for command in read_commands(fenced)] == [{"A": "3"}]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("modal run torchrun_on_modal.py::main with torchrun and train_gpt.py", True),
        ("uv run train_gpt.py", True),
        ("accelerate launch train_gpt.py", True),
        ("torchrun --nproc_per_node=8 \\", True),
        ("`train_gpt.py` is 900 lines long.", False),
    ],
)
def test_what_is_not_understood_is_named_by_its_line(line: str, named: bool) -> None:
    text = f"# X\n\n{line}\n"
    assert read_commands(text) == []
    assert not_understood(text) == ([3] if named else [])


def test_what_is_written_is_read_back() -> None:
    env = {"SEED": "7", "NAME": "it's a $HOME", "EMPTY": ""}
    text = run_lines(env, launch="torchrun", processes=8, nodes=2, arguments=["a b", "--x=1"])
    (command,) = read_commands(f"```bash\n{text}\n```")
    assert (command.processes, command.arguments) == (4, ("a b", "--x=1"))
    assert command.env == env
