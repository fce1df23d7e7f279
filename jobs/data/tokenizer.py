"""Training a tokenizer as the challenge's own were trained."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece as spm

from jobs.data.errors import DataError

# SentencePiece drops longer lines in silence, so they are cut.
MAX_LINE_CHARACTERS = 4_000


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train a BPE tokenizer with byte fallback and write its model file.

    The published tokenizers' settings: NFKC, digits apart, no dummy prefix, ids 0 to 3 for pad,
    BOS, EOS and unknown. Raises DataError when the text has too few pieces for the vocabulary.
    """
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.Train(
            sentence_iterator=_lines(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=4 * MAX_LINE_CHARACTERS + 1,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(
            f"no tokenizer of {vocab_size} pieces can be trained on this text: {error}; "
            "give more text, or another --vocab-size"
        ) from error
    path.write_bytes(model.getvalue())


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        for line in text.splitlines():
            for start in range(0, len(line), MAX_LINE_CHARACTERS):
                yield line[start : start + MAX_LINE_CHARACTERS]
