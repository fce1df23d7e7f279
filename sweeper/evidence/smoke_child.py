"""The child of a smoke run: locked down, it imports a script and asks its model for one loss.

    python -I -B -c "…; smoke_child.main()" REQUEST.json

It says how far it is, a JSON object a line, on the file descriptor that its request names: before
each stage its name, and what the stage found. The script runs in this process, so that it could
write there as well: what a hostile script says of itself proves nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import sys
import time
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sweeper.evidence import smoke_lockdown as lockdown

MODULE = "train_gpt"  # not __main__: its main is not to run
SETTINGS_CLASSES = (
    *("Hyperparameters", "HyperParameters", "HParams", "Config", "GPTConfig", "ModelConfig"),
    *("Args", "Settings"),
)
MODEL_CLASSES = ("GPT", "GPTModel", "LanguageModel", "Transformer", "Model", "TinyGPT")
# What one setting is called, by whom.
NAMES = {
    "vocab_size": ("vocab_size", "vocab", "n_vocab", "num_tokens"),
    "layers": ("num_layers", "n_layer", "n_layers", "depth"),
    "dim": ("model_dim", "d_model", "n_embd", "dim", "hidden_size", "embed_dim", "width"),
    "heads": ("num_heads", "n_head", "n_heads", "heads"),
    "kv_heads": ("num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads"),
}
WHOLE = frozenset({"args", "config", "cfg", "h", "hp", "hps", "hparams", "hyperparameters", "c"})
POSITIONS = 64  # of the one sequence that is tried
TRACEBACK_CHARS = 4_000


class Teller:
    """Says what happened, a line at a time."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def say(self, **fields: Any) -> None:
        os.write(self.descriptor, (json.dumps(fields) + "\n").encode())


def main(argv: list[str] | None = None) -> None:
    """Runs a request; the exit code says nothing that was not told before."""
    request = json.loads((sys.argv if argv is None else argv)[-1])
    teller = Teller(int(request["tell"]))
    lockdown.die_with_parent()
    if os.getppid() != request["parent"]:
        os._exit(1)
    held = []
    if lockdown.enter_namespaces():
        held.append("namespaces: no network, no other processes")
        first = os.fork()
        if first == 0:
            lockdown.run_first(lambda: _work(request, teller, held))
        os._exit(lockdown.exit_code(os.waitpid(first, 0)[1]))
    _work(request, teller, held)


def _work(request: Mapping[str, Any], teller: Teller, held: list[str]) -> None:
    refused: list[str] = []
    try:
        teller.say(stage="lockdown")
        folder = Path(request["folder"])
        # Before the limits: what torch itself takes is not the script's.
        notes = _prepare(request["torch"])
        lockdown.limit(
            memory_bytes=int(request["memory_bytes"]), cpu_seconds=int(request["cpu_seconds"])
        )
        if not held:
            notes.append("namespaces are not to be had here")
        if lockdown.confine_writes(folder):
            held.append("Landlock: writes in its own folder alone")
        else:
            notes.append("Landlock is not to be had here: native code may write elsewhere")
        if lockdown.drop_capabilities():
            held.append("no privileges")
        if lockdown.confine_calls():
            held.append("seccomp: no processes, sockets or signals")
        else:
            notes.append("seccomp is not to be had here: native code may start processes")
        held += ["limits of memory, CPU time and file sizes", "audit hooks"]
        lockdown.watch(folder, refused)
        teller.say(held=held, notes=notes)
        _try(Path(request["script"]), teller, notes)
        teller.say(done=True, refused=refused)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            teller.say(error=describe(error), traceback=_trace(), refused=refused)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(0)


def _prepare(with_torch: bool) -> list[str]:
    if not with_torch:
        return []
    try:
        from sweeper.evidence import smoke_stubs

        return smoke_stubs.install(MODULE)
    except ImportError as error:
        return [f"torch cannot be imported: {error}"]


def describe(error: BaseException) -> str:
    """An error in a line, with what it means where that is not plain."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    if isinstance(error, MemoryError) or ("alloc" in text and "memory" in text):
        return f"out of memory: {text}"
    if isinstance(error, SystemExit):
        return f"the script ended by itself: {text}"
    return text


def _trace() -> str:
    return traceback.format_exc(limit=-6)[-TRACEBACK_CHARS:]


# ---- the script


def _try(script: Path, teller: Teller, notes: Sequence[str]) -> None:
    teller.say(stage="import")
    started = time.perf_counter()
    module = types.ModuleType(MODULE)
    module.__file__ = str(script)
    sys.modules[MODULE] = module
    sys.argv = [str(script)]
    data = script.read_bytes()
    exec(compile(data, str(script), "exec"), module.__dict__)
    teller.say(import_seconds=time.perf_counter() - started, code_bytes=len(data))
    teller.say(stage="build")
    _seed()
    settings = _settings(module)
    values = _values(settings)
    model = _build(module, settings, values)
    shape, doubts = _shape({name: _first(values, NAMES[name]) for name in NAMES}, model)
    vocabulary = shape["vocab_size"] or _embedded(model)
    parameters = sum(each.numel() for each in model.parameters())
    teller.say(
        **{**shape, "vocab_size": vocabulary},
        settings=None if settings is None else type(settings).__name__,
        model=type(model).__name__,
        parameters=parameters,
        notes=[*notes, *doubts],
    )
    teller.say(stage="forward")
    loss = _forward(model, vocabulary)
    teller.say(loss=loss if math.isfinite(loss) else str(loss))
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of random tokens is {loss}, not finite")


def _seed() -> None:
    """The same weights each time, so that the loss is the same."""
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)


def _own_classes(module: types.ModuleType) -> list[type]:
    found = [each for each in vars(module).values() if isinstance(each, type)]
    return [each for each in found if each.__module__ == MODULE]


def _settings(module: types.ModuleType) -> Any:
    """The hyperparameters, as the script makes them of its environment; None without any."""
    classes = {each.__name__: each for each in _own_classes(module)}
    named = [classes[name] for name in SETTINGS_CLASSES if name in classes]
    other = [each for each in classes.values() if _has_shape(each) and each not in named]
    for each in [*named, *other]:
        with contextlib.suppress(TypeError):
            return _make_settings(each)
    return None


def _make_settings(kind: Any) -> Any:
    """TypeError where more than the environment is needed."""
    return kind.from_env(os.environ) if hasattr(kind, "from_env") else kind()


def _has_shape(kind: type) -> bool:
    """Whether a class has fields by which a model is described."""
    fields = {*vars(kind), *getattr(kind, "__annotations__", {})}
    return sum(any(name in fields for name in names) for names in NAMES.values()) >= 3


def _values(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    found = {}
    for name in dir(settings):
        if not name.startswith("_"):
            with contextlib.suppress(Exception):
                value = getattr(settings, name)
                if not callable(value):
                    found[name] = value
    return found


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        if isinstance(values.get(name), int) and not isinstance(values[name], bool):
            return int(values[name])
    return None


def _shape(said: Mapping[str, int | None], model: Any) -> tuple[dict[str, int | None], list[str]]:
    """The model's dimensions as the settings say them, where the model bears them out.

    Where it does not, what the model has stands instead, and a note says so.
    """
    shape, doubts = dict(said), []
    for name, (found, all_found) in _dimensions(model).items():
        asked = said.get(name)
        if asked in all_found:
            continue
        shape[name] = found
        if asked:  # 0 is what says that it follows from another
            doubts.append(f"{name} is {asked:,} in the settings, and {found or 'not'} in the model")
    return shape, doubts


def _dimensions(model: Any) -> dict[str, tuple[int | None, set[int]]]:
    """What a model has, and all that it may also be taken to have; heads where its layers say."""
    from torch import nn

    modules = list(model.modules())
    sizes = {size for each in model.parameters() for size in each.shape}
    tables = [each for each in modules if isinstance(each, nn.Embedding)]
    largest = max(tables, key=lambda each: each.num_embeddings, default=None)
    lists = [len(each) for each in modules if isinstance(each, nn.ModuleList)]
    # A network may have its layers in two lists or none, its tables in parameters of their own.
    others = {len(each) for each in modules if isinstance(each, nn.Sequential | nn.ModuleDict)}
    rows = {each.num_embeddings for each in tables}
    found: dict[str, tuple[int | None, set[int]]] = {
        "vocab_size": (None if largest is None else largest.num_embeddings, rows or sizes),
        "dim": (None if largest is None else largest.embedding_dim, sizes),
        "layers": (max(lists or others, default=None), {*lists, sum(lists), *others}),
    }
    for name in ("heads", "kv_heads"):
        own = [_first(vars(each), NAMES[name]) for each in modules if each is not model]
        counts = {each for each in own if each is not None}
        if counts:
            found[name] = (max(counts), counts)
    return found


# ---- the model


def _build(module: types.ModuleType, settings: Any, values: Mapping[str, Any]) -> Any:
    """The script's model, on the CPU: the one that is named as such, else the largest."""
    if "torch" not in sys.modules:
        raise LookupError("it does not use torch, so that it has no model")
    from torch import nn

    classes = [each for each in _own_classes(module) if issubclass(each, nn.Module)]
    if not classes:
        raise LookupError("it defines no torch.nn.Module")
    named = [each for name in MODEL_CLASSES for each in classes if each.__name__ == name]
    failures = []
    built = []
    for each in named or classes:
        try:
            built.append(_make(each, settings, values))
        except LookupError as error:
            failures.append(f"{each.__name__}: {error}")
        if built and named:
            break
    if not built:
        raise LookupError(f"no model can be built of its settings: {'; '.join(failures)[:400]}")
    return max(built, key=lambda model: sum(each.numel() for each in model.parameters())).eval()


def _make(kind: type, settings: Any, values: Mapping[str, Any]) -> Any:
    arguments = {}
    missing = []
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        known = [names for names in NAMES.values() if parameter.name in names]
        names = [parameter.name, *(name for names in known for name in names)]
        found = next((values[name] for name in names if name in values), None)
        if found is not None:
            arguments[parameter.name] = found
        elif settings is not None and parameter.name in WHOLE:
            arguments[parameter.name] = settings
        elif parameter.default is parameter.empty:
            missing.append(parameter.name)
    if missing:
        raise LookupError(f"no setting is named {', '.join(missing)}")
    return kind(**arguments)


def _embedded(model: Any) -> int:
    """The vocabulary, by the model's largest table of embeddings."""
    sizes = [int(getattr(each, "num_embeddings", 0)) for each in model.modules()]
    if not max(sizes, default=0):
        raise LookupError("nothing says how large its vocabulary is")
    return max(sizes)


def _forward(model: Any, vocabulary: int) -> float:
    """The loss of random tokens, in nats; of ln V where nothing was learned."""
    import torch

    torch.manual_seed(0)
    tokens = torch.randint(0, vocabulary, (1, POSITIONS + 1))
    x, y = tokens[:, :-1], tokens[:, 1:]
    errors = []
    with torch.no_grad():
        for attempt in _attempts(model, x, y):
            try:
                return _loss(attempt(), y)
            except TypeError as error:  # another signature
                errors.append(str(error))
    raise TypeError(f"its forward takes neither tokens nor tokens and targets: {errors[0]}")


def _attempts(model: Any, x: Any, y: Any) -> Iterator[Any]:
    yield lambda: model(x, y)
    yield lambda: model(x)
    if hasattr(model, "forward_logits"):
        yield lambda: model.forward_logits(x)


def _loss(found: Any, y: Any) -> float:
    """A loss from what a model returns: a loss, logits, or a tuple with one of them."""
    import torch
    import torch.nn.functional as F

    if isinstance(found, tuple | list):
        tensors = [each for each in found if isinstance(each, torch.Tensor)]
        scalars = [each for each in tensors if each.ndim == 0]
        found = (scalars or tensors)[0]
    if found.ndim == 0 or found.shape == y.shape:
        return float(found.float().mean())
    return float(F.cross_entropy(found.reshape(-1, found.size(-1)).float(), y.flatten()))
