"""The presets: which settings differ from the record's, by name."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "record": {},
    # The same recipe with every part in use, sized for one CPU core and a minute.
    "tiny": {
        "compute_dtype": "float32",  # the same numbers on every laptop
        "vocab_size": 1024,
        "train_seq_len": 256,
        "train_batch_tokens": 2_048,
        "grad_accum_steps": 1,
        "iterations": 160,
        "max_wallclock_seconds": 0.0,
        "warmup_steps": 2,
        "train_log_every": 10,
        "val_loss_every": 0,
        "num_layers": 4,
        "model_dim": 128,
        "embedding_dim": 128,
        "num_heads": 4,
        "num_kv_heads": 2,
        "mlp_mult": 2.0,
        "rope_dims": 8,
        "xsa_last_n": 4,
        "ve_dim": 32,
        "ve_layers": (2, 3),
        "parallel_start_layer": 3,
        "recur_layers": (1, 2),
        "recur_start_step": 80,
        "muon_momentum": 0.95,
        "muon_momentum_warmup_start": 0.85,
        "muon_momentum_warmup_steps": 60,
        "ema_decay": 0.95,
        "eval_seq_len": 256,
        "eval_stride": 128,
        "val_batch_tokens": 8_192,
        "gptq_calibration_batches": 16,
        "gptq_min_weights": 4_096,
        "sensitivity_sequences": 64,
        "budget_bytes": 300_000,
    },
}
