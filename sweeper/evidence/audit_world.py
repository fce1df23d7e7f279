"""Rules about the world around a script: network, processes, files, code that is not counted.

Each is a function from a layer's reading to findings.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from sweeper.evidence.audit_reading import Confidence, Finding, Kind, Reading, calls_in
from sweeper.evidence.flows import Function, names_in
from sweeper.evidence.flows_spelling import spelled

NETWORK = (
    *("socket", "urllib.request", "urllib3", "requests", "http.client", "huggingface_hub"),
    *("wget", "ftplib", "aiohttp", "httpx", "boto3", "gdown", "smtplib", "telnetlib", "paramiko"),
    *("websockets", "websocket", "gcsfs", "s3fs", "xmlrpc", "asyncio.open_connection"),
    *("datasets.load_dataset", "torch.hub", "kagglehub"),
)
HARMLESS = frozenset({"socket.gethostname", "socket.getfqdn"})
THROUGH = re.compile(r"\w\.(socket|urllib|requests|http\.client|ftplib|smtplib)\.\w")
# Fetching is these programs' purpose.
FETCHING = re.compile(
    r"\b(git\s+(clone|pull|fetch)|curl|wget|hf download|huggingface-cli|rsync|scp)\b"
)
INSTALLING = re.compile(r"\b(pip3?|apt(-get)?|conda|uv|make|gcc|nvcc|g\+\+|ninja)\b")
ASKING = re.compile(r"^(nvidia-smi|nproc|lscpu|uname|hostname|free|git (rev-parse|log|status))\b")
# Through another module, or one that is imported by a text; and what PROCESSES does not name.
STARTING = re.compile(
    r"(?:\.os|__import__\(['\"](?:os|subprocess|posix)['\"]\)"
    r"|import_module\(['\"](?:os|subprocess|posix)['\"]\))"
    r"\.(?:system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork|run|call|check_\w+|Popen)$"
    r"|\bcreate_subprocess_(?:exec|shell)$"
)
PROCESSES = (
    *("subprocess.", "os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn"),
    *("os.fork", "commands.getoutput"),
)
# Processes that run the script's own functions.
OWN_PROCESSES = re.compile(
    r"^(torch\.)?multiprocessing\.(Process|Pool|spawn|get_context)|ProcessPoolExecutor$"
)
KNOWN = frozenset(
    {"torch", "numpy", "sentencepiece", "flash_attn", "flash_attn_interface", "flash_attn_3"}
    | {"triton", "zstandard", "brotli", "tiktoken", "tokenizers", "einops", "transformers"}
    | {"safetensors", "tqdm", "psutil", "scipy", "sklearn", "pandas", "wandb", "numba", "cupy"}
    | {"apex", "transformer_engine", "torchao", "bitsandbytes", "matplotlib", "constriction"}
    | {
        "setuptools",
        "packaging",
        "typing_extensions",
        "rich",
        "kernels",
        "fla",
        "cut_cross_entropy",
    }
    | {"datasets", "huggingface_hub", "requests", "zstd", "lz4", "blosc2", "xformers", "mamba_ssm"}
    | {
        "causal_conv1d",
        "pynvml",
        "mlx",
        "jax",
        "flax",
        "cutlass",
        "liger_kernel",
        "yaml",
        "pyarrow",
    }
)
READERS = frozenset(
    {"open", "io.open", "numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt"}
    | {"torch.load", "safetensors.torch.load_file", "pickle.load", "numpy.genfromtxt"}
    | {"torch.from_file", "pandas.read_parquet", "pandas.read_csv", "mmap.mmap"}
)
PATH_READERS = frozenset({"read_text", "read_bytes"})
# By these names a path comes from settings, arguments or the run's own files.
SETTINGS = re.compile(
    r"data|token|train|val|shard|path|file|dir|ckpt|checkpoint|artifact|model|run_id|out|log|"
    r"pattern|args|config|environ|argv|name|resume|buf|blob|^fn?$|^p$|^h$|^cfg$|^self$",
    re.I,
)
OUTSIDE = re.compile(r"^(/|~|\.\./|[A-Za-z]:\\)|^(https?|s3|gs|hf)://")


def network(reading: Reading) -> Iterator[Finding]:
    """What fetches or sends: calls, and imports of what is there for it."""
    program = reading.program
    for node in program.nodes:
        if isinstance(node, ast.Attribute | ast.Call):
            named = program.dotted(node) or program.called(node)
            if _reaches(named) or _reaches_through(reading, named):
                why = f"{named} reaches the network"
                yield reading.find(Kind.NETWORK, node, Confidence.HIGH, why)
    for call in calls_in(program.nodes):
        called = program.called(call)
        if called.startswith(PROCESSES):
            command = _command(call)
            if FETCHING.search(command):
                why = f"a process that fetches: {command[:60]}"
                yield reading.find(Kind.NETWORK, call, Confidence.HIGH, why)
        elif called.endswith("TCPStore") and not _is_here(call):
            why = f"{called} meets another host"
            yield reading.find(Kind.NETWORK, call, Confidence.MEDIUM, why)
    for node, module in [*_imports(reading), *_imported_by_name(reading)]:
        if _reaches(module):
            why = f"{module} is imported"
            yield reading.find(Kind.NETWORK, node, Confidence.MEDIUM, why)


def _reaches(named: str) -> bool:
    return named not in HARMLESS and any(
        named == each or named.startswith(f"{each}.") for each in NETWORK
    )


def _reaches_through(reading: Reading, named: str) -> bool:
    """By way of another module that has imported it: torch.distributed.socket."""
    found = THROUGH.search(named)
    modules = {each.partition(".")[0] for each in reading.program.aliases.values()}
    return found is not None and named.partition(".")[0] in modules


def _imports(reading: Reading) -> Iterator[tuple[ast.AST, str]]:
    """Every imported name, dotted; with leading dots where it is relative."""
    for node in reading.program.nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def _imported_by_name(reading: Reading) -> Iterator[tuple[ast.AST, str]]:
    """Modules that are imported by a text: __import__("socket")."""
    for call in calls_in(reading.program.nodes):
        if reading.program.called(call) in ("importlib.import_module", "__import__") and call.args:
            yield from ((call, name) for name in _texts(call.args[0])[:1])


def _is_here(call: ast.Call) -> bool:
    """Whether a store is met on this host, or where the environment says: not at a fixed one."""
    host = next(iter(call.args), None)
    fixed = isinstance(host, ast.Constant) and isinstance(host.value, str)
    return not fixed or host.value in ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # type: ignore[union-attr]


def _command(call: ast.Call) -> str:
    """The words of a command, as far as they are constants."""
    words = [
        each.value
        for arg in call.args[:1]
        for each in ast.walk(arg)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    return " ".join(words)


def processes(reading: Reading) -> Iterator[Finding]:
    """Other programs that are started."""
    for call in calls_in(reading.program.nodes):
        called = reading.program.called(call)
        if OWN_PROCESSES.search(called):
            why = f"{called} runs functions in processes of their own"
            yield reading.find(Kind.SUBPROCESS, call, Confidence.LOW, why)
        if not called.startswith(PROCESSES) or called in ("subprocess.list2cmdline",):
            continue
        command = _command(call)
        confidence, why = Confidence.HIGH, f"{called} starts another program"
        if INSTALLING.search(command):
            why = f"{called} installs or builds: {command[:60]}"
        elif ASKING.search(command):
            confidence, why = Confidence.LOW, f"{called} only asks the machine: {command[:60]}"
        yield reading.find(Kind.SUBPROCESS, call, confidence, why)
    yield from _processes_by_other_names(reading)


def _processes_by_other_names(reading: Reading) -> Iterator[Finding]:
    """What starts programs and is not called by its own name: kept, passed on, or looked up."""
    called = {id(call.func) for call in calls_in(reading.program.nodes)}
    for node in reading.program.nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            name, text = reading.program.dotted(node), spelled(node)
            plain = name.startswith(PROCESSES)
            if (plain and id(node) not in called) or (not plain and STARTING.search(text)):
                why = f"{text} starts other programs"
                yield reading.find(Kind.SUBPROCESS, node, Confidence.HIGH, why)
        elif isinstance(node, ast.Call) and node.args:
            what = reading.program.called(node)
            looked_up = reading.program.dotted(node.args[0])
            made = len(node.args) > 1 and not isinstance(node.args[1], ast.Constant)
            if what == "getattr" and looked_up in ("os", "subprocess", "posix") and made:
                why = f"a function of {looked_up} is looked up by a name that is made when it runs"
                yield reading.find(Kind.SUBPROCESS, node, Confidence.MEDIUM, why)


# ---- files


def reads_outside(reading: Reading) -> Iterator[Finding]:
    """Files that are read and are neither the data that settings name nor the script's own."""
    written = set(_written(reading))
    for function in reading.program.functions:
        for call in calls_in(function.nodes):
            path = _path_read(reading, call)
            if path is None:
                continue
            outside = _outside(reading, path)
            if outside is not None:
                yield reading.find(Kind.READS_OUTSIDE, call, *outside)
                continue
            constants = _texts(path)
            plain = isinstance(path, ast.Constant) or not names_in(path) - {"Path", "os", "join"}
            if plain and constants and not any(each in written for each in constants):
                why = f"{constants[0][:60]!r} is read, and nothing here writes it"
                yield reading.find(Kind.READS_OUTSIDE, call, Confidence.MEDIUM, why)
            elif not plain and not _from_settings(path, function):
                why = "nothing shows where this path comes from"
                yield reading.find(Kind.READS_OUTSIDE, call, Confidence.LOW, why)


def _path_read(reading: Reading, call: ast.Call) -> ast.expr | None:
    """The path that a call reads; None where it reads no file, or writes one."""
    called = reading.program.called(call)
    if called in READERS and call.args:
        mode = [each.value for each in call.keywords if each.arg == "mode"] + call.args[1:2]
        text = "".join(_texts(mode[0])) if mode and called.endswith("open") else "r"
        return None if set(text) & set("wax+") else call.args[0]
    if isinstance(call.func, ast.Attribute) and call.func.attr in PATH_READERS:
        return call.func.value
    return None


def _outside(reading: Reading, path: ast.expr) -> tuple[Confidence, str] | None:
    root = _root(reading, path)
    text = root.value if isinstance(root, ast.Constant) else None
    if isinstance(text, str) and OUTSIDE.search(text):
        return Confidence.HIGH, f"a path of its own is read: {text[:60]!r}"
    if names_in(path) & {"expanduser", "home", "gettempdir"}:
        return Confidence.HIGH, "a path outside the run's data is read"
    return None


def _root(reading: Reading, path: ast.expr) -> ast.expr:
    """What a path begins with, as far as it is put together here."""
    for _ in range(20):
        if isinstance(path, ast.BinOp):
            path = path.left
        elif isinstance(path, ast.JoinedStr) and path.values:
            path = path.values[0]
        elif isinstance(path, ast.Call) and path.args and _joins(reading.program.called(path)):
            path = path.args[0]
        elif isinstance(path, ast.Call) and isinstance(path.func, ast.Attribute):
            path = path.func.value
        else:
            break
    return path


def _joins(called: str) -> bool:
    return called.endswith(("Path", "path.join", "expanduser", "abspath", "str", "fspath"))


def _texts(node: ast.AST) -> list[str]:
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def _written(reading: Reading) -> Iterator[str]:
    """Names of files that the script writes itself."""
    for call in calls_in(reading.program.nodes):
        called = reading.program.called(call)
        if called.endswith("open") and len(call.args) > 1:
            if set("".join(_texts(call.args[1]))) & set("wax"):
                yield from _texts(call.args[0])
        elif called in ("torch.save", "numpy.save", "pickle.dump") and len(call.args) > 1:
            yield from _texts(call.args[1]) + _texts(call.args[0])
        elif isinstance(call.func, ast.Attribute) and call.func.attr.startswith("write_"):
            yield from _texts(call.func.value)


def _from_settings(path: ast.expr, function: Function) -> bool:
    names = names_in(path)
    return bool(names & set(function.params)) or any(
        SETTINGS.search(each) or each == "__file__" for each in names
    )


# ---- code that is not counted


def uncounted_code(reading: Reading) -> Iterator[Finding]:
    """Code from elsewhere than the counted file."""
    yield from _local_imports(reading)
    for call in calls_in(reading.program.nodes):
        why = _loads_code(reading, call)
        if why is not None:
            yield reading.find(Kind.UNCOUNTED_CODE, call, *why)


def _local_imports(reading: Reading) -> Iterator[Finding]:
    seen = set()
    for node, module in _imports(reading):
        top = module.split(".")[0] if not module.startswith(".") else ""
        beside = reading.path.parent if reading.path is not None else None
        local = beside is not None and ((beside / f"{top}.py").exists() or (beside / top).is_dir())
        known = top in sys.stdlib_module_names or top in KNOWN
        if top in seen or (known and not local):  # what lies beside goes before what is installed
            continue
        seen.add(top)
        if not top or local:
            why = f"{module} lies beside the script, and counts"
            yield reading.find(Kind.UNCOUNTED_CODE, node, Confidence.HIGH, why)
        else:
            why = f"{top} is no package that is known here: it may be code of the record's own"
            yield reading.find(Kind.UNCOUNTED_CODE, node, Confidence.MEDIUM, why)


def _loads_code(reading: Reading, call: ast.Call) -> tuple[Confidence, str] | None:
    called = reading.program.called(call)
    if called.startswith("runpy.run_") or called.endswith("spec_from_file_location"):
        return Confidence.HIGH, f"{called} runs another file"
    if called in ("importlib.import_module", "__import__"):
        names = _texts(call.args[0]) if call.args else []
        if names and (names[0].split(".")[0] in sys.stdlib_module_names | KNOWN):
            return None
        return Confidence.HIGH, f"{called} imports what is not a package that is known here"
    if called == "torch.utils.cpp_extension.load":
        return Confidence.HIGH, "sources of C++ or CUDA are built from files"
    if called == "torch.utils.cpp_extension.load_inline":
        return Confidence.LOW, "C++ or CUDA is built when it runs"
    if called in ("ctypes.CDLL", "ctypes.cdll.LoadLibrary") and not _is_system(call):
        return Confidence.MEDIUM, "a library is loaded"
    if called in ("sys.path.insert", "sys.path.append"):
        return Confidence.MEDIUM, "modules are looked for in another folder"
    if _writes_code(call, called):
        return Confidence.MEDIUM, "a file of Python is written"
    return None


def _is_system(call: ast.Call) -> bool:
    """Whether a library that is loaded is one of the system's own."""
    names = _texts(call.args[0]) if call.args else []
    return bool(names) and re.match(r"lib(c|m|cudart)\b", names[0]) is not None


def _writes_code(call: ast.Call, called: str) -> bool:
    texts = _texts(call.args[0]) if call.args else []
    if (
        called.endswith("open")
        and len(call.args) > 1
        and set("".join(_texts(call.args[1]))) & {"w"}
    ):
        return any(each.endswith(".py") for each in texts)
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("write_text", "write_bytes"):
        return any(each.endswith(".py") for each in _texts(call.func.value))
    return False


# ---- what is executed and not read


def hidden_exec(reading: Reading) -> Iterator[Finding]:
    """Ways to execute what the text does not show; exec itself is found by unpacking."""
    for call in calls_in(reading.program.nodes):
        called = reading.program.called(call)
        if called in ("marshal.loads", "marshal.load", "types.FunctionType", "types.CodeType"):
            why = f"{called} makes code of data"
            yield reading.find(Kind.HIDDEN_EXEC, call, Confidence.HIGH, why)
        elif called in ("pickle.loads", "dill.loads", "cloudpickle.loads"):
            why = f"{called} executes what its data say"
            yield reading.find(Kind.HIDDEN_EXEC, call, Confidence.MEDIUM, why)
        elif isinstance(call.func, ast.Subscript) and _is_namespace(call.func.value):
            why = "what is called is looked up by a name that is made when it runs"
            yield reading.find(Kind.HIDDEN_EXEC, call, Confidence.MEDIUM, why)
        elif called == "getattr" and call.args and _is_builtins(call.args[0]):
            why = "a builtin is looked up by a name that is made when it runs"
            yield reading.find(Kind.HIDDEN_EXEC, call, Confidence.HIGH, why)
    for node in reading.program.nodes:
        if not isinstance(node, ast.Subscript) or not isinstance(node.ctx, ast.Store):
            continue
        if isinstance(node.value, ast.Call) and _is_namespace(node.value):
            why = "a name is bound that the text does not show"
            yield reading.find(Kind.HIDDEN_EXEC, node, Confidence.MEDIUM, why)


def _is_namespace(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("globals", "locals", "vars")
    return _is_builtins(node)


def _is_builtins(node: ast.expr) -> bool:
    return bool(names_in(node) & {"__builtins__", "builtins", "__dict__"})
