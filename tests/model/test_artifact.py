"""The artifact: what goes in comes out, and nothing hostile gets through."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
import zlib

import brotli
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.artifact import (
    CODEC_BROTLI,
    HEADER,
    MAGIC,
    MAX_RAW_BYTES,
    SHUFFLE_STRIDE,
    VERSION,
    ArtifactError,
    Model,
    decode,
    encode,
    fit_by_pruning,
    pack_model,
    prune,
)
from model.config import Config
from model.gpt import GPT
from model.gptq import hessian_layers, quantize
from model.recurrence import NO_LOOP

CONFIG = Config.from_env(
    {
        "PRESET": "tiny",
        "VOCAB_SIZE": "64",
        "MODEL_DIM": "64",
        "EMBEDDING_DIM": "64",
        "NUM_HEADS": "2",
        "NUM_KV_HEADS": "1",
    }
)


def packed_model() -> tuple[GPT, Model]:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    codes = {
        name: quantize(weight, torch.eye(weight.size(1)))
        for name, weight in model.named_parameters()
        if name in hessian_layers(model, 1_024)
    }
    return model, pack_model(model, codes)


@pytest.fixture(scope="module")
def packed() -> Model:
    return packed_model()[1]


@pytest.fixture(scope="module")
def artifact(packed: Model) -> bytes:
    return encode(packed, CONFIG, CONFIG.loop)


def wrap(raw: bytes, **changes: object) -> bytes:
    """An artifact file around raw bytes, with chosen header fields replaced."""
    half = np.frombuffer(raw, np.uint8)
    shuffled = half[::2].tobytes() + half[1::2].tobytes()
    fields = {
        "magic": MAGIC,
        "version": VERSION,
        "codec": CODEC_BROTLI,
        "stride": SHUFFLE_STRIDE,
        "length": len(raw),
        "crc": zlib.crc32(raw),
    }
    return HEADER.pack(*(fields | changes).values()) + brotli.compress(shuffled)


def with_index(index: object, planes: bytes = b"") -> bytes:
    text = json.dumps(index).encode()
    return wrap(struct.pack("<I", len(text)) + text + planes)


def test_comes_back_as_it_was(packed: Model, artifact: bytes) -> None:
    model, read = decode(artifact)
    assert read.keys() == packed.keys()
    for name, tensor in packed.items():
        assert read[name].kind == tensor.kind
        np.testing.assert_array_equal(read[name].values, tensor.values)
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), tensor.tensor().numpy())
    assert model.recurrence_active
    assert encode(read, CONFIG, CONFIG.loop) == artifact


def test_every_kind_of_tensor_is_stored_as_the_recipe_says(packed: Model) -> None:
    kinds = {name: tensor.kind for name, tensor in packed.items()}
    assert kinds["blocks.0.mlp.fc.weight"] == "int6"
    assert kinds["tok_emb.weight"] == kinds["ve_shared.embed.weight"] == "int8"
    assert kinds["ve_shared.proj.weight"] == "float16"
    assert kinds["blocks.0.attn.q_gain"] == kinds["lane_merge"] == kinds["skip_gates"] == "float32"


def test_outputs_stay_close() -> None:
    model, packed = packed_model()
    restored, _ = decode(encode(packed, CONFIG, NO_LOOP))
    inputs = torch.arange(64)[None]
    with torch.no_grad():
        before, after = model.forward_logits(inputs), restored.forward_logits(inputs)
    assert not torch.equal(before, after)
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.95


def test_truncated_anywhere(artifact: bytes) -> None:
    for length in [*range(30), *range(30, len(artifact), len(artifact) // 40), len(artifact) - 1]:
        with pytest.raises(ArtifactError):
            decode(artifact[:length])


@given(st.data())
def test_any_flipped_bit_is_noticed(artifact: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(artifact) - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(artifact)
    damaged[position] ^= 1 << bit
    try:
        _, read = decode(bytes(damaged))
    except ArtifactError:
        return
    # Brotli has bits that mean nothing; then the tensors are as they were.
    _, original = decode(artifact)
    for name, tensor in original.items():
        np.testing.assert_array_equal(read[name].values, tensor.values)


@given(st.binary(max_size=400))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    for data in (rubbish, MAGIC + rubbish, wrap(rubbish)):
        with pytest.raises(ArtifactError):
            decode(data)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (wrap(b"", magic=b"PK\3\4"), "not an artifact"),
        (wrap(b"", version=9), "version 9; this program reads version 1"),
        (wrap(b"", codec=7), "unknown codec 7"),
        (wrap(b"x" * 100, length=50), "expected 50 raw bytes"),
        (wrap(b"x" * 100, length=200), "expected 200 raw bytes"),
        (wrap(b"x" * 100, length=1 << 60), f"more than {MAX_RAW_BYTES}"),
        (wrap(b"x" * 100, crc=0), "checksum mismatch"),
        (wrap(struct.pack("<I", 1 << 31) + b"{}"), "index is damaged"),
        (with_index([]), "index is damaged"),
        (with_index({"config": {}, "tensors": [["a", "pickle", [1]]], "recurrence": 0}),
         "impossible entries"),
        (with_index({"config": {"run_dir": "/"}, "tensors": [], "recurrence": 0}),
         "impossible entries"),
        (with_index({"config": {}, "tensors": [["a", "int8", [1 << 29, 1 << 29]]],
                     "recurrence": 0}), "beyond the end"),
        (with_index({"config": {}, "tensors": [["a", "float32", [-1]]], "recurrence": 0}),
         "impossible entries"),
        (with_index({"config": {}, "tensors": [], "recurrence": 0}, b"more"), "4 bytes are left"),
        (with_index({"config": {"num_layers": 1 << 30, "parallel_start_layer": None},
                     "tensors": [], "recurrence": 0}), "1073741824 layers, but only 0 tensors"),
        (with_index({"config": {"model_dim": 1 << 30}, "tensors": [["a", "float32", [1]]] * 11,
                     "recurrence": 0}, bytes(44)), "do not fit"),
        (with_index({"config": {"num_heads": 0}, "tensors": [], "recurrence": 0}), "do not fit"),
        (with_index({"config": {}, "tensors": [["a", "float32", []]], "recurrence": 0},
                    b"\0\0\0\0"), "do not fit"),
    ],
)  # fmt: skip
def test_hostile_files_are_named(data: bytes, complaint: str) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        decode(data)


def test_a_pickle_is_not_executed(capfd: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    with pytest.raises(ArtifactError):
        decode(pickle.dumps(Bomb()))
    assert "executed" not in capfd.readouterr().out


def test_a_bomb_stays_within_bounded_memory() -> None:
    # 256 MiB of zeros in a few kilobytes, declared as 1,000 bytes.
    bomb = brotli.compress(bytes(1 << 28), quality=1)
    data = HEADER.pack(MAGIC, VERSION, CODEC_BROTLI, SHUFFLE_STRIDE, 1_000, 0) + bomb
    program = (
        "import sys; from model.artifact import ArtifactError, decode\n"
        "import resource; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(sys.stdin.buffer.read())\n"
        "except ArtifactError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=True
    )
    message, grown_kib = done.stdout.decode().splitlines()
    assert "expected 1000 raw bytes" in message
    assert int(grown_kib) < 64 << 10


def test_pruning_meets_a_budget_with_the_cheapest_codes(packed: Model) -> None:
    free = len(encode(packed, CONFIG, NO_LOOP))
    data, pruned = fit_by_pruning(packed, CONFIG, NO_LOOP, budget=free - 300)
    assert len(data) <= free - 300
    assert pruned > 0
    _, read = decode(data)
    zeroed, largest_zeroed, smallest_kept = 0, 0.0, np.inf
    for name, tensor in packed.items():
        if tensor.kind != "int6" or tensor.scales is None:
            continue
        gone = (tensor.values != read[name].values).any(axis=1)
        changed = tensor.values != read[name].values
        assert (np.abs(tensor.values[changed]) == 1).all()
        assert not read[name].values[changed].any()
        zeroed += int(changed.sum())
        kept = (np.abs(read[name].values) == 1).any(axis=1)
        largest_zeroed = max([largest_zeroed, *tensor.scales[gone].tolist()])
        smallest_kept = min([smallest_kept, *tensor.scales[kept].tolist()])
    assert zeroed == pruned
    assert largest_zeroed <= smallest_kept


def test_an_impossible_budget_is_refused(packed: Model) -> None:
    with pytest.raises(ArtifactError, match="nothing is left to prune"):
        fit_by_pruning(packed, CONFIG, NO_LOOP, budget=1_000)


def test_pruning_leaves_its_input_alone(packed: Model) -> None:
    before = packed["blocks.0.mlp.fc.weight"].values.copy()
    prune(packed, 10_000)
    np.testing.assert_array_equal(packed["blocks.0.mlp.fc.weight"].values, before)
