"""A run's configuration in words, by the field's names of its settings.

Each sentence is made of settings that the run has echoed, and is left out where it has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sweeper.contract import NONE_WORDS, TRUE_WORDS
from sweeper.evidence.settings import OF_A_RUN

Config = Mapping[str, Any]

# Which settings are told under which heading, the first that matches; the others are training's.
ARCHITECTURE = re.compile(
    r"vocab_size|num_(?:layers|heads|kv_heads|loops)|\w*_dim|mlp_\w+|tie_embeddings|tied_embed_init"
    r"\w*|logit_softcap|rope_\w+|qk_\w+|ln_\w+|xsa_\w+|skip_\w+|ve_\w+|parallel_\w+|recur\w*|loop_\w+"
    r"|attention|bigram\w*|smear\w*"
)
QUANTISATION = re.compile(
    r"gptq\w*|quant\w*|budget\w*|compressor|sensitivity\w*|int\d\w*|prun\w*|\w+_bits|\w+_clip_sigmas"
)
EVALUATION = re.compile(r"eval_\w+|val_\w+|sliding\w*|ttt\w*")


def settings_of(config: Config, heading: str) -> dict[str, Any]:
    """The settings that are told under a heading of a README."""
    return {
        name: value
        for name, value in sorted(config.items())
        if not OF_A_RUN.match(name) and _heading(name) == heading
    }


def _heading(name: str) -> str:
    patterns = (
        ("Architecture", ARCHITECTURE),
        ("Quantisation", QUANTISATION),
        ("Evaluation", EVALUATION),
    )
    return next((head for head, pattern in patterns if pattern.fullmatch(name)), "Training")


def sentences(config: Config, heading: str) -> list[str]:
    """What a heading's settings say, in words."""
    return list(DESCRIBED[heading](_Known(config)))


def technique(config: Config) -> str | None:
    """The configuration in a line, for submission.json; None where nothing of it is known."""
    known = _Known(config)
    parts = [
        (known.say("SP{vocab_size}") or "").replace(",", ""),
        known.say("{num_layers}L x {model_dim}"),
        known.say("MLP {mlp_mult}x"),
        known.say("depth recurrence {recur_layers}") if known.on("recur_layers") else None,
        known.say("Muon WD {muon_wd}"),
        known.say("warmdown {warmdown_frac}"),
        known.say("EMA {ema_decay}"),
        "full GPTQ" if known.on("gptq_enabled") else None,
        known.say("{compressor}"),
    ]
    return " + ".join(filter(None, parts)) or None


class _Known:
    """The settings that are known, to be put into sentences."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def on(self, name: str) -> bool:
        """Whether a setting is switched on: true, or a value that is not nothing."""
        text = str(self._config.get(name, "")).strip().lower()
        return text in TRUE_WORDS or text not in {*NONE_WORDS, "0", "0.0", "false", "no", "off"}

    def say(self, text: str) -> str | None:
        """A text with settings in it; None where one of them is not known or nothing."""
        names = re.findall(r"\{(\w+)\}", text)
        if any(str(self._config.get(name)).strip().lower() in ("", "none") for name in names):
            return None
        return text.format(**{name: _number(self._config[name]) for name in names})

    def list(self, *texts: str | None) -> str:
        return ", ".join(text for text in texts if text)


def _number(value: object) -> str:
    """A setting as people write it: 786,432 and 4, not 4.0."""
    text = str(value)
    if re.fullmatch(r"\d+\.0", text):
        text = text[:-2]
    return f"{int(text):,}" if text.isdecimal() and len(text) > 3 else text


def _architecture(known: _Known) -> Iterator[str]:
    network = known.list(
        known.say("{num_layers} layers of width {model_dim}"),
        known.say("{num_heads} heads of attention, {num_kv_heads} of keys and values"),
        known.say("an MLP {mlp_mult} times as wide"),
        known.say("a vocabulary of {vocab_size} tokens"),
        "input and output embeddings tied" if known.on("tie_embeddings") else None,
    )
    yield from _sentence(network)
    if known.on("recur_layers"):
        start = (
            known.say(" from step {recur_start_step} on")
            or known.say(" from {recur_start_frac} of training on")
            or known.say(", by stages ({recur_stages})")
            or ""
        )
        yield from _sentence(known.say("layers {recur_layers} run again{}".replace("{}", start)))
    if known.on("parallel_start_layer"):
        yield from _sentence(
            known.say("attention and MLP side by side from layer {parallel_start_layer} on")
        )


def _training(known: _Known) -> Iterator[str]:
    length = known.list(
        known.say("{train_batch_tokens} tokens a step in sequences of {train_seq_len}"),
        known.say("at most {iterations} steps"),
        known.say("at most {max_wallclock_seconds} s")
        if known.on("max_wallclock_seconds")
        else None,
    )
    yield from _sentence(length)
    optimiser = known.list(
        known.say("Muon for matrices (rate {matrix_lr}, momentum {muon_momentum})"),
        known.say("its weight decay {muon_wd}"),
        known.say("Adam for the rest (β {beta1} and {beta2}, decay {adam_wd})"),
        known.say("gradients clipped at {grad_clip_norm}") if known.on("grad_clip_norm") else None,
        known.say("an average of the weights with decay {ema_decay}"),
    )
    yield from _sentence(optimiser)
    floor = known.say(" to a floor of {lr_floor}") or known.say(" to a floor of {min_lr}") or ""
    shape = known.say("{warmdown_shape} ") or ""
    yield from _sentence(
        known.say(f"{shape}warmdown over the last {{warmdown_frac}} of training{floor}")
        or known.say(f"{shape}warmdown over {{warmdown_iters}} steps{floor}")
    )


def _quantisation(known: _Known) -> Iterator[str]:
    gptq = known.say("GPTQ with Hessians of {gptq_calibration_batches} training batches")
    fit = known.say("the budget of {budget_bytes} bytes met by {budget_fit}")
    packed = known.say("packed by {compressor}")
    yield from _sentence(known.list(gptq if known.on("gptq_enabled") else None, packed, fit))


def _evaluation(known: _Known) -> Iterator[str]:
    if known.on("sliding_window_enabled") or known.on("eval_stride"):
        yield from _sentence(
            known.say("sliding windows of {eval_seq_len} tokens, {eval_stride} of them scored each")
        )
    if known.on("ttt_enabled"):
        yield "Test-time training is on (`ttt_enabled`)."


def _sentence(text: str | None) -> Iterable[str]:
    return [f"{text[0].upper()}{text[1:]}."] if text else []


DESCRIBED: dict[str, Callable[[_Known], Iterator[str]]] = {
    "Architecture": _architecture,
    "Training": _training,
    "Quantisation": _quantisation,
    "Evaluation": _evaluation,
}
