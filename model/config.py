"""Config: every setting of a run, frozen and validated, from the environment or from keywords.

Names are the field's: the environment variable is the field's name in upper case. `PRESET`
chooses the defaults: `record` (the recipe on 8 GPUs) or `tiny` (the same recipe, small enough
for a laptop's CPU).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.fields import ConfigError, convert, echo_value
from model.presets import PRESETS
from model.recurrence import MAX_LOOPS, NO_LOOP, Loop, Stage, neighbours, parse_stages

WarmdownShape = Literal["linear", "cosine", "1-sqrt", "power", "exponential"]
FloorMode = Literal["auto", "clip", "reach"]
Onset = Literal["off", "always", "step", "fraction", "staged"]
AttentionBackend = Literal["auto", "fa3", "cudnn", "flash", "efficient", "math", "sdpa"]
Device = Literal["auto", "cpu", "cuda"]
ComputeDtype = Literal["auto", "float32", "bfloat16"]
RECUR_STARTS = ("recur_start_step", "recur_start_frac", "recur_stages")
DEFAULT_RECUR_START_STEP = 3_000

# Names that public scripts use for what is called otherwise here: alias -> field.
ALIASES = {"min_lr": "lr_floor"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. Defaults are the record's; lengths in tokens, times in seconds."""

    preset: str = "record"
    seed: int = 1337
    device: Device = "auto"
    run_dir: str = "."

    # Data
    data_dir: str = "./data"
    tokenizer_path: str | None = None
    vocab_size: int = 4096
    train_seq_len: int = 2048
    train_batch_tokens: int = 786_432
    grad_accum_steps: int | None = None

    # Length of training
    iterations: int = 20_000
    max_wallclock_seconds: float = 600.0
    gptq_reserve_seconds: float = 10.0
    warmup_steps: int = 20
    train_log_every: int = 500
    val_loss_every: int = 4_000
    checkpoint_seconds: float = 0.0  # 0: none
    resume_from: str | None = None  # a checkpoint, or the directory of the run that wrote it

    # Network
    num_layers: int = 11
    model_dim: int = 512
    embedding_dim: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    mlp_mult: float = 4.0
    tie_embeddings: bool = True
    tied_embed_init_std: float = 0.005
    logit_softcap: float = 30.0
    rope_base: float = 10_000.0
    rope_dims: int = 16
    qk_gain_init: float = 5.0
    ln_scale: bool = True
    xsa_last_n: int = 11
    skip_gates_enabled: bool = True
    ve_enabled: bool = True
    ve_dim: int = 128
    ve_layers: tuple[int, ...] = (9, 10)
    parallel_start_layer: int | None = 7
    recur_layers: tuple[int, ...] = (4, 5)
    recur_loops: int = 1
    recur_start_step: int | None = None  # one of the three; none of them: step 3,000
    recur_start_frac: float | None = None
    recur_stages: str | None = None
    attention: AttentionBackend = "auto"
    compute_dtype: ComputeDtype = "auto"
    compile: bool | None = None

    # Optimisation
    matrix_lr: float = 0.02
    muon_momentum: float = 0.99
    muon_momentum_warmup_start: float = 0.92
    muon_momentum_warmup_steps: int = 1_500
    muon_backend_steps: int = 5
    muon_wd: float = 0.09
    tied_embed_lr: float = 0.03
    embed_lr: float = 0.6
    head_lr: float = 0.008
    embed_wd: float = 0.09
    scalar_lr: float = 0.02
    adam_wd: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip_norm: float = 0.3
    ema_decay: float = 0.997
    warmdown_frac: float = 0.667
    warmdown_shape: WarmdownShape = "linear"
    warmdown_power: float = 2.0  # of the shape "power"
    warmdown_rate: float = 5.0  # of the shape "exponential"
    lr_floor: float = 0.0
    lr_floor_mode: FloorMode = "auto"

    # Evaluation
    eval_seq_len: int = 2048
    eval_stride: int = 64
    val_batch_tokens: int = 524_288
    sliding_window_enabled: bool = True
    # An early score of search trials, on about so many tokens spread over the set; 0: on all.
    eval_subset_tokens: int = 0

    # Quantisation and artifact
    gptq_enabled: bool = True
    gptq_calibration_batches: int = 64
    gptq_min_weights: int = 65_536
    # How to meet the budget: by the steps of all codes, or as the record does, by zeroing codes.
    budget_fit: Literal["steps", "prune"] = "steps"
    sensitivity_sequences: int = 128  # from which the steps are chosen
    compressor: Literal["rans", "brotli"] = "rans"
    budget_bytes: int = 16_000_000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = convert(field.name, getattr(self, field.name), _TYPES[field.name])
            object.__setattr__(self, field.name, value)
        if all(getattr(self, name) is None for name in RECUR_STARTS):
            object.__setattr__(self, "recur_start_step", DEFAULT_RECUR_START_STEP)
        _validate(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Config:
        """The config that an environment asks for; other variables are nobody's business here."""
        return cls(**_overrides(environ))

    @classmethod
    def from_echo(cls, echo: Mapping[str, Any]) -> Config:
        """The config that `echo` came from."""
        # Echoes of before there was a choice are of the record's way.
        known = {"budget_fit": "prune"} | dict(echo)
        return cls(**{name: value for name, value in known.items() if name in _TYPES})

    def echo(self) -> dict[str, Any]:
        """Every field as a JSON value, so that overrides can be checked; aliases included, and
        `recurrence_onset`, which of its settings is in force.
        """
        values = {name: echo_value(value) for name, value in dataclasses.asdict(self).items()}
        aliases = {alias: values[field] for alias, field in ALIASES.items()}
        return values | aliases | {"recurrence_onset": self.recurrence_onset}

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def tokenizer_file(self) -> Path:
        if self.tokenizer_path is not None:
            return Path(self.tokenizer_path)
        return self.data_path / "tokenizers" / f"fineweb_{self.vocab_size}_bpe.model"

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def recurrence_onset(self) -> Onset:
        """What decides when layers begin to run again."""
        if self.recur_stages is not None:
            return "staged"
        if not self.recur_layers:
            return "off"
        if self.recur_start_frac is not None:
            return "fraction" if self.recur_start_frac > 0 else "always"
        return "step" if self.recur_start_step else "always"

    @property
    def loop(self) -> Loop:
        """The loop of `recur_layers`, when it is in force."""
        return Loop(self.recur_layers, self.recur_loops) if self.recur_layers else NO_LOOP

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of `recur_stages`; none where that is not set."""
        return parse_stages(self.recur_stages) if self.recur_stages is not None else ()

    @property
    def train_budget_seconds(self) -> float:
        """Wall-clock for training proper: the cap less what calibration needs; 0: no cap."""
        if self.max_wallclock_seconds == 0:
            return 0.0
        reserve = self.gptq_reserve_seconds if self.gptq_enabled else 0.0
        return self.max_wallclock_seconds - reserve

    @property
    def fits_steps(self) -> bool:
        """Whether the budget is met by steps; without Hessians there is nothing to go by."""
        return self.budget_fit == "steps" and self.gptq_enabled

    def micro_batches(self, world_size: int) -> int:
        """Gradient accumulation steps; by default as many as eight ranks would not need."""
        if self.grad_accum_steps is not None:
            return self.grad_accum_steps
        return max(1, 8 // world_size)

    def check_run(self, world_size: int) -> None:
        """ConfigError unless `world_size` ranks can train and evaluate with these lengths."""
        _require(
            self.train_batch_tokens % self.train_seq_len == 0,
            "train_batch_tokens",
            self,
            f"a multiple of TRAIN_SEQ_LEN {self.train_seq_len}",
        )
        _require(
            self.eval_stride <= self.eval_seq_len,
            "eval_stride",
            self,
            f"at most EVAL_SEQ_LEN {self.eval_seq_len}",
        )
        _require(
            self.max_wallclock_seconds == 0 or self.train_budget_seconds > 0,
            "max_wallclock_seconds",
            self,
            f"0 (no cap) or more than GPTQ_RESERVE_SECONDS {self.gptq_reserve_seconds:g}",
        )
        sequences = self.train_batch_tokens // self.train_seq_len
        micro_batches = self.micro_batches(world_size)
        if sequences % (world_size * micro_batches):
            raise ConfigError(
                f"TRAIN_BATCH_TOKENS {self.train_batch_tokens} is {sequences} sequences of "
                f"TRAIN_SEQ_LEN {self.train_seq_len}, which {world_size} ranks x {micro_batches} "
                "accumulation steps do not divide evenly. Change TRAIN_BATCH_TOKENS, "
                "GRAD_ACCUM_STEPS or the number of processes"
            )


def _overrides(environ: Mapping[str, str]) -> dict[str, Any]:
    preset = environ.get("PRESET", "record")
    if preset not in PRESETS:
        raise ConfigError(f"PRESET: {preset!r} is not one of {', '.join(PRESETS)}")
    values = dict(PRESETS[preset])
    for alias, field in ALIASES.items():
        if alias.upper() not in environ:
            continue
        if field.upper() in environ:
            raise ConfigError(f"{alias.upper()} and {field.upper()} are one setting; give one")
        values[field] = environ[alias.upper()]
    given = {name: environ[name.upper()] for name in _TYPES if name.upper() in environ}
    if any(name in given for name in RECUR_STARTS):
        # Whoever says when recurrence starts does not mean the preset's start as well.
        values = {name: value for name, value in values.items() if name not in RECUR_STARTS}
    return values | given


def _validate(config: Config) -> None:
    """ConfigError for the first setting that cannot work."""
    positive = (
        "vocab_size train_seq_len train_batch_tokens iterations num_layers model_dim embedding_dim "
        "num_heads num_kv_heads mlp_mult logit_softcap rope_base muon_backend_steps matrix_lr "
        "eval_seq_len eval_stride val_batch_tokens budget_bytes recur_loops warmdown_power "
        "warmdown_rate sensitivity_sequences"
    )
    for name in positive.split():
        _require(getattr(config, name) > 0, name, config, "more than 0")
    not_negative = (
        "max_wallclock_seconds gptq_reserve_seconds warmup_steps train_log_every val_loss_every "
        "rope_dims xsa_last_n lr_floor grad_clip_norm muon_momentum_warmup_steps "
        "gptq_calibration_batches gptq_min_weights seed muon_wd embed_wd adam_wd checkpoint_seconds"
    )
    for name in not_negative.split():
        value = getattr(config, name)
        _require(0 <= value < float("inf"), name, config, "0 or more, and finite")
    subset, seq_len = config.eval_subset_tokens, config.eval_seq_len
    _require(
        subset == 0 or subset >= seq_len,
        "eval_subset_tokens",
        config,
        f"0 (score all) or at least EVAL_SEQ_LEN {seq_len}",
    )
    _require(
        config.gptq_calibration_batches > 0 or not config.gptq_enabled,
        "gptq_calibration_batches",
        config,
        "more than 0, unless GPTQ_ENABLED=0",
    )
    if config.fits_steps and config.compressor != "rans":
        raise ConfigError(
            f"COMPRESSOR: {config.compressor!r} does not follow the steps; set BUDGET_FIT=prune as "
            "well, or COMPRESSOR=rans"
        )
    _require(config.vocab_size <= 65_536, "vocab_size", config, "at most 65536 (uint16 shards)")
    _require(0 <= config.warmdown_frac <= 1, "warmdown_frac", config, "from 0 to 1")
    _require(config.lr_floor <= 1, "lr_floor", config, "from 0 to 1")
    _require(0 <= config.ema_decay < 1, "ema_decay", config, "from 0 up to but not 1")
    _require(
        config.grad_accum_steps is None or config.grad_accum_steps > 0,
        "grad_accum_steps",
        config,
        "more than 0, or none to derive it",
    )
    _validate_network(config)
    _validate_recurrence(config)


def _validate_network(config: Config) -> None:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    _require(config.model_dim % heads == 0, "num_heads", config, f"a divisor of {config.model_dim}")
    _require(heads % kv_heads == 0, "num_kv_heads", config, f"a divisor of NUM_HEADS {heads}")
    _require(
        config.rope_dims % 2 == 0 and config.rope_dims <= config.head_dim,
        "rope_dims",
        config,
        f"even and at most the head dimension {config.head_dim}",
    )
    layers = range(config.num_layers)
    for name in ("ve_layers", "recur_layers"):
        chosen = getattr(config, name)
        inside = list(chosen) == sorted(set(chosen)) and all(i in layers for i in chosen)
        _require(inside, name, config, f"increasing layers from 0 to {config.num_layers - 1}")
    start = config.parallel_start_layer
    _require(
        start is None or config.num_layers // 2 <= start < config.num_layers,
        "parallel_start_layer",
        config,
        f"in the decoder half ({config.num_layers // 2} to {config.num_layers - 1}), or none",
    )


def _validate_recurrence(config: Config) -> None:
    given = [name.upper() for name in RECUR_STARTS if getattr(config, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: both say when recurrence starts; give one")
    _require(
        neighbours(config.recur_layers), "recur_layers", config, "neighbouring layers, like 4,5"
    )
    _require(config.recur_loops <= MAX_LOOPS, "recur_loops", config, f"1 to {MAX_LOOPS}")
    step, share = config.recur_start_step, config.recur_start_frac
    _require(step is None or step >= 0, "recur_start_step", config, "0 or more")
    _require(share is None or 0 <= share <= 1, "recur_start_frac", config, "from 0 to 1")
    try:
        stages = config.stages
    except ValueError as error:
        raise ConfigError(f"RECUR_STAGES: must be {error}, found {config.recur_stages!r}") from None
    inside = all(layer < config.num_layers for stage in stages for layer in stage.loop.layers)
    _require(inside, "recur_stages", config, f"of layers below {config.num_layers}")


def _require(condition: bool, name: str, config: Config, allowed: str) -> None:
    if not condition:
        raise ConfigError(
            f"{name.upper()}: must be {allowed}, found {echo_value(getattr(config, name))!r}"
        )


_TYPES: dict[str, Any] = typing.get_type_hints(Config)
