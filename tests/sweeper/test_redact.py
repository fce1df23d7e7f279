"""Secrets by their names, and what is no secret though it sounds like one."""

from __future__ import annotations

import pytest

from sweeper.redact import is_secret, redact


@pytest.mark.parametrize(
    "name",
    [
        *("WANDB_API_KEY", "WANDB_KEY", "HF_TOKEN", "HF_TOKEN_2", "GITHUB_PAT", "MY_TOKENS"),
        *("NGROK_AUTHTOKEN", "MY_APIKEY", "DB_PASS", "AWS_ACCESS_KEY_ID", "AUTH_HEADER"),
        *("SECRET_VALUE", "password", "apiKey", "Authorization", "AWS_SECRET_ACCESS_KEY"),
        *("PGPASSWORD", "SSH_PRIVATEKEY", "apikeys", "OPENAI_TOKENS", "PRIVATE_KEY"),
    ],
)
def test_what_is_a_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("TRAIN_BATCH_TOKENS", "VAL_TOKENS", "EVAL_SUBSET_TOKENS", "TOKENIZER_PATH", "AUTHOR"),
        *("TOKENS_PER_STEP", "MATRIX_LR", "PATH", "COMPASS", "NUM_KV_HEADS", "PATIENCE", "SEED"),
        *("tokens", "train_tokens", "tok_s", "keyword", "passes", "DATA_PATH"),
        *("nats_per_token", "BYTES_PER_TOKEN", "BOS_TOKEN", "pad_token_id", "tokens_seen"),
        *("KEY_DIM", "HEAD_KEY_DIM", "QKV_KEY", "key_heads", "TOKEN_SHIFT", "NUM_PASS", "attn.key"),
        *("pass_through", "one_pass", "two_pass", "num_key_heads", "kv_key"),
    ],
)
def test_what_is_none(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("export HF_TOKEN=hf_abc123 LR=0.1", "export HF_TOKEN=… LR=0.1"),
        ('{"api_key": "abc", "lr": 0.1}', '{"api_key": "…", "lr": 0.1}'),
        ("  wandb_key: abc", "  wandb_key: …"),
        ("Authorization: Bearer abc.def", "Authorization: …"),
        ("s3://me:pw@host/x and http://u:SE/C7@h/y", "s3://…@host/x and http://…@h/y"),
        ('HF_TOKEN = """a\nb""" # "c"', 'HF_TOKEN = "…" # "c"'),
        ('{"HF_TOKEN": "a\\"b", "LR": "c"}', '{"HF_TOKEN": "…", "LR": "c"}'),
        ("train_batch_tokens: 786432", "train_batch_tokens: 786432"),
        ("val_tokens:62021632 step:1/9", "val_tokens:62021632 step:1/9"),
        ("nats per token: 2.3 bits/token: 3.1", "nats per token: 2.3 bits/token: 3.1"),
        ("pass: 3 of 4, key: 3", "pass: 3 of 4, key: 3"),
        ("DB_PASS=12345 password: 123", "DB_PASS=… password: …"),
        ('os.environ["HF_TOKEN"] = "abc"', 'os.environ["HF_TOKEN"] = "…"'),
        ("wandb login --api-key abc --seed 1", "wandb login --api-key … --seed 1"),
        ("--kv-heads 4 --token-budget 9 -- key a", "--kv-heads 4 --token-budget 9 -- key a"),
        ("me@example.org, https://host/a@b", "me@example.org, https://host/a@b"),
    ],
)
def test_what_is_left_of_a_text(text: str, left: str) -> None:
    assert redact(text) == left


def test_a_known_value_goes_wherever_it_stands() -> None:
    assert redact("logged in with hf_abc123!", ["hf_abc123"]) == "logged in with …!"
    # The name tells only where it begins.
    assert redact("DB_PASS=my pass word, so", ["my pass word"]) == "DB_PASS=…, so"
    assert redact("a word", ["word"]) == "a word"  # too short to be told from others


@pytest.mark.parametrize("piece", ["x", "a=", '"', "://a", "a.b-", "--k "])
def test_a_long_text_of_beginnings_is_read_once(piece: str) -> None:
    """What took the square of its length would not end here."""
    text = piece * 200_000
    assert redact(f"{text} http://me:pw@host") == f"{text} http://…@host"
