"""What stands in for GPUs when somebody's script is tried on CPUs: devices, kernels, compilers.

Runs in the child of a smoke run alone. torch is imported here, and before the script is.
"""

from __future__ import annotations

import builtins
import importlib.util
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ATTENTION = frozenset({"flash_attn_interface", "flash_attn", "flash_attn_3"})
# Compilers of kernels, of which a script may define some that a CPU never runs.
KERNELS = frozenset({"triton", "cutlass", "tilelang"})


class Anything:
    """Takes every use: attribute, call, item; as a decorator it returns what it is given."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorated = len(args) == 1 and not kwargs and callable(args[0])
        return args[0] if decorated and not isinstance(args[0], Anything) else Anything()

    def __getitem__(self, key: Any) -> Any:
        return Anything()

    def __iter__(self) -> Any:
        return iter(())


class _StubModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


def install(importer: str) -> list[str]:
    """Put all stubs in place; returns what was replaced, for the result to say.

    Stubs of modules are seen by the module of the name `importer` alone: torch asks for triton too,
    and must not be told that it is there.
    """
    import torch

    _patch_cuda(torch)
    _patch_compile(torch)
    _Devices().__enter__()
    missing = sorted(name for name in KERNELS if not _is_there(name))
    _patch_import(importer, {*ATTENTION, *missing})
    return [
        "no GPU: devices named cuda are the CPU, torch.compile does nothing",
        "FlashAttention is scaled_dot_product_attention",
        *([f"stubs, if they are asked for: {', '.join(missing)}"] if missing else []),
    ]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _patch_import(importer: str, stubs: set[str]) -> None:
    real = builtins.__import__

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names that Python gives them
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        top = name.partition(".")[0]
        if level == 0 and top in stubs and (globals or {}).get("__name__") == importer:
            return _stub(name if fromlist else top)
        return real(name, globals, locals, fromlist or (), level)

    builtins.__import__ = import_


def _stub(name: str) -> types.ModuleType:
    module = _StubModule(name)
    if name.partition(".")[0] in ATTENTION:
        for function in ("flash_attn_func", "flash_attn_3_func"):
            setattr(module, function, flash_attn_func)
    return module


def flash_attn_func(
    q: Any, k: Any, v: Any, *args: Any, causal: bool = False, softmax_scale: Any = None, **_: Any
) -> Any:
    """FlashAttention's function, [B, T, H, D] in and out; windows are not kept to."""
    import torch.nn.functional as F

    grouped = q.size(2) != k.size(2)
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=softmax_scale, enable_gqa=grouped
    )
    return y.transpose(1, 2)


def _patch_compile(torch: Any) -> None:
    def compile_nothing(model: Any = None, **_: Any) -> Any:
        return model if model is not None else lambda function: function

    torch.compile = compile_nothing
    torch.jit.script = lambda function, **_: function


def _patch_cuda(torch: Any) -> None:
    answers: dict[str, Any] = {
        **dict.fromkeys(("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats")),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "set_per_process_memory_fraction")),
        **dict.fromkeys(("current_device", "max_memory_allocated", "max_memory_reserved"), 0),
        "get_device_capability": (9, 0),
        **{
            name: Anything()
            for name in ("get_device_properties", "current_stream", "Stream", "Event")
        },
    }
    for name, answer in answers.items():
        # One function each: torch._dynamo holds a rule for every function of torch.
        setattr(torch.cuda, name, _answering(answer))


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def _cpu(value: Any) -> Any:
    """A device of CUDA as the CPU; all else as it is."""
    import torch

    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


def _Devices() -> Any:  # noqa: N802 - a class, once torch is there
    import torch
    from torch.overrides import TorchFunctionMode

    class Devices(TorchFunctionMode):
        """Every device of CUDA that a function is asked for is the CPU."""

        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
                return args[0]
            named = {name: _cpu(value) for name, value in (kwargs or {}).items()}
            if named.get("pin_memory"):
                named["pin_memory"] = False
            return func(*[_cpu(each) for each in args], **named)

    return Devices()
