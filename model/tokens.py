"""Tokenizer facts that a score needs: how many bytes of text each token stands for.

The challenge counts bytes by pieces, not by decoding: a piece is worth the UTF-8 length of its
text without the leading U+2581 (SentencePiece's mark for a space), plus one byte for that space
unless the token before it is a boundary (control, unknown or unused), where no space was in the
text. A byte piece is worth 1, a boundary token 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece as spm

SPACE = "\u2581"


class TokenizerError(ValueError):
    """The tokenizer cannot be used for scoring; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class TokenBytes:
    """Byte counts per token id; each array has one entry per id of the vocabulary."""

    piece_bytes: np.ndarray  # int16: UTF-8 length without the leading space
    leading_space: np.ndarray  # bool: the piece begins with U+2581
    boundary: np.ndarray  # bool: control, unknown or unused

    def count(self, tokens: np.ndarray) -> int:
        """Bytes of tokens[1:], each seen after its predecessor; tokens: [n] of any integer type."""
        previous, scored = tokens[:-1], tokens[1:]
        spaces = self.leading_space[scored] & ~self.boundary[previous]
        return int(self.piece_bytes[scored].sum(dtype=np.int64) + spaces.sum(dtype=np.int64))


def load_token_bytes(tokenizer_path: Path, vocab_size: int) -> TokenBytes:
    """Read a SentencePiece model and tabulate its bytes.

    Raises TokenizerError when the file is missing or no SentencePiece model, when its vocabulary
    is not `vocab_size`, or when it has no stand-alone U+2581 piece: without that piece a space
    before an unknown character has no token and the byte count would be wrong.
    """
    if not tokenizer_path.is_file():
        raise TokenizerError(f"{tokenizer_path}: no such tokenizer; check DATA_DIR and VOCAB_SIZE")
    processor = spm.SentencePieceProcessor()
    try:
        processor.Load(str(tokenizer_path))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{tokenizer_path}: not a SentencePiece model ({error})") from error
    found = processor.GetPieceSize()
    if found != vocab_size:
        raise TokenizerError(
            f"{tokenizer_path}: VOCAB_SIZE is {vocab_size}, but this tokenizer has {found} pieces"
        )
    if processor.PieceToId(SPACE) == processor.unk_id():
        raise TokenizerError(
            f"{tokenizer_path}: no stand-alone U+2581 piece; train the tokenizer with it "
            "(`sweeper data` does), or byte counts would be wrong"
        )
    piece_bytes = np.zeros(vocab_size, np.int16)
    leading_space = np.zeros(vocab_size, np.bool_)
    boundary = np.zeros(vocab_size, np.bool_)
    for token in range(vocab_size):
        if processor.IsControl(token) or processor.IsUnknown(token) or processor.IsUnused(token):
            boundary[token] = True
        elif processor.IsByte(token):
            piece_bytes[token] = 1
        else:
            piece = processor.IdToPiece(token)
            leading_space[token] = piece.startswith(SPACE)
            piece_bytes[token] = len(piece.removeprefix(SPACE).encode())
    return TokenBytes(piece_bytes=piece_bytes, leading_space=leading_space, boundary=boundary)
