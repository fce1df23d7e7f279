"""The arrows between the rooms, as docs/ARCHITECTURE.md draws them, at any depth of the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("model", "sweeper", "jobs")

# Room -> the rooms it must not import.
FORBIDDEN_ROOMS = {"model": {"sweeper", "jobs", "tests"}, "sweeper": {"model", "jobs", "tests"}}
# Library -> the modules that import it; the bench's peers are what the sweeper is measured against.
ONLY_IN = {
    "ray": ("sweeper.cluster", "jobs.bench.peers"),
    # The two of the benches are what ours is held against.
    "optuna": ("sweeper.study", "jobs.bench.plain_study", "jobs.bench.plain_search"),
    "optuna_dashboard": ("sweeper.exhibit",),
    "matplotlib": ("sweeper.drawing", "sweeper.figures", "sweeper.page.plots", "jobs.plots"),
}
# Module -> all that it may import of ours. The others are held by their room and by the cycles.
MAY_IMPORT: dict[str, set[str]] = {
    "model.fields": set(),
    "model.recurrence": set(),
    "model.presets": set(),
    "model.config": {"model.fields", "model.presets", "model.recurrence"},
    "model.tokens": set(),
    "model.shards": set(),
    "model.report": {"model.export"},
    "model.pieces": set(),
    "model.onefile": {"model.pieces"},
    "model.export": {"model.onefile", "model.pieces"},
    "model.schedule": {"model.config", "model.recurrence"},
    "model.gpt": {"model.attention", "model.config", "model.loss", "model.recurrence"},
    "model.gptq": {"model.gpt"},
    "model.calibrate": {"model.gpt", "model.muon"},
    "model.rans": set(),
    "model.packed": {"model.gpt", "model.gptq", "model.muon"},
    "model.artifact": {
        *("model.config", "model.fields", "model.gpt", "model.packed", "model.rans"),
        "model.recurrence",
    },
    "model.pruning": {"model.artifact", "model.packed"},
    "model.handoff": {
        "model.calibrate",
        *("model.config", "model.fields", "model.gpt", "model.recurrence", "model.report"),
    },
    "sweeper.errors": set(),
    "sweeper.options": set(),
    "sweeper.outbox": set(),
    "sweeper.guard": set(),
    "sweeper.stages": set(),
    "sweeper.schema": set(),
    "sweeper.stats": set(),
    "sweeper.power": set(),
    "sweeper.drawing": set(),
    "sweeper.sensitivity": {"sweeper.surrogate"},
    "sweeper.curves": {"sweeper.layout", "sweeper.ledger", "sweeper.logreader", "sweeper.rows"},
    "sweeper.layout": {"sweeper.stages"},
    "sweeper.contract": {"sweeper.errors"},
    "sweeper.settings": set(),
    "sweeper.space": {"sweeper.settings"},
    "sweeper.search": {"sweeper.racing", "sweeper.settings", "sweeper.space"},
    "sweeper.spec": {"sweeper.errors", "sweeper.search", "sweeper.settings", "sweeper.space"},
    "sweeper.entries": set(),
    "sweeper.pareto": set(),
    "sweeper.surrogate": set(),
    "sweeper.racing": {"sweeper.stats", "sweeper.surrogate"},
    "sweeper.proposal": {"sweeper.racing", "sweeper.surrogate"},
    "sweeper.journal": set(),
    "sweeper.study": {
        *("sweeper.entries", "sweeper.errors", "sweeper.journal", "sweeper.search"),
        "sweeper.space",
    },
    "sweeper.rows": {"sweeper.stages"},
    "sweeper.identity": {"sweeper.spec"},
    "sweeper.reader": {
        *("sweeper.errors", "sweeper.rows", "sweeper.schema", "sweeper.spec", "sweeper.stages"),
    },
    "sweeper.ledger": {
        *("sweeper.errors", "sweeper.identity", "sweeper.reader", "sweeper.rows"),
        *("sweeper.schema", "sweeper.spec", "sweeper.stages"),
    },
    "sweeper.policy": {"sweeper.rows"},
    "sweeper.words": set(),
    "sweeper.pulse": {"sweeper.layout", "sweeper.stages"},
    "sweeper.eta": {"sweeper.rows"},
    "sweeper.metrics": {"sweeper.rows", "sweeper.pulse", "sweeper.view"},
    "sweeper.shipping": {"sweeper.layout", "sweeper.stages"},
    "sweeper.standby": {"sweeper.guard"},
    "sweeper.reaping": {"sweeper.guard"},
    "sweeper.launch": {
        *("sweeper.guard", "sweeper.layout", "sweeper.reaping", "sweeper.stages", "sweeper.stall"),
        "sweeper.standby",
    },
    "sweeper.scores": set(),
    "sweeper.adapters": {
        *("sweeper.contract", "sweeper.logfacts", "sweeper.loglines", "sweeper.pace"),
        *("sweeper.scores", "sweeper.seen"),
    },
    "sweeper.loglines": set(),
    "sweeper.pace": set(),
    "sweeper.logfacts": {"sweeper.pace", "sweeper.scores"},
    "sweeper.seen": {"sweeper.logfacts", "sweeper.pace", "sweeper.scores"},
    "sweeper.evidence.flows": set(),
    "sweeper.evidence.flows_data": {"sweeper.evidence.flows"},
    "sweeper.evidence.flows_spelling": set(),
    "sweeper.evidence.unpack_source": set(),
    "sweeper.evidence.unpack_codecs": set(),
    "sweeper.evidence.unpack_nodes": {"sweeper.evidence.flows_spelling"},
    "sweeper.evidence.unpack_ways": {"sweeper.evidence.flows_spelling"},
    "sweeper.evidence.audit_child": set(),
    "sweeper.evidence.unpack_values": {"sweeper.evidence.unpack_codecs"},
    "sweeper.evidence.smoke_lockdown": set(),
    "sweeper.evidence.smoke_stubs": set(),
    "sweeper.evidence.smoke_usage": {"sweeper.evidence.smoke_lockdown"},
    "sweeper.evidence.smoke_child": {
        *("sweeper.evidence.smoke_lockdown", "sweeper.evidence.smoke_stubs"),
    },
    "sweeper.evidence.settings": {"sweeper.logfacts"},
    "sweeper.evidence.record": {"sweeper.logfacts", "sweeper.stats"},
    "sweeper.evidence.claims": {"sweeper.evidence.record", "sweeper.scores"},
    "sweeper.logreader": {"sweeper.adapters", "sweeper.contract", "sweeper.layout"},
    "sweeper.stall": {"sweeper.layout", "sweeper.logreader"},
    "sweeper.failure": {"sweeper.layout", "sweeper.logreader"},
    "sweeper.snapshot": {"sweeper.errors", "sweeper.layout", "sweeper.settings", "sweeper.spec"},
    "sweeper.tables": {"sweeper.spec"},
    "sweeper.gang": {
        *("sweeper.failure", "sweeper.launch", "sweeper.layout", "sweeper.shipping"),
        "sweeper.standby",
    },
}
# Module -> all of ours that may import it.
IMPORTED_BY: dict[str, set[str]] = {
    "model.train": set(),
    "model.trainer": {"model.train", "jobs.bench.train"},
    "model.packing": {"model.train"},
    "model.validation": {"model.train"},
    "model.onefile": {"model.export"},
    "model.export": {"model.report"},
    "sweeper.cli": {"jobs.sweep"},
    "sweeper.session": {"sweeper.cli", "sweeper.cli_publish"},
    "sweeper.loop": {"sweeper.session"},
    "sweeper.verdicts": {"sweeper.loop"},
    "sweeper.schema": {"sweeper.ledger", "sweeper.reader"},
    "sweeper.shipping": {"sweeper.cluster", "sweeper.gang", "sweeper.loop", "sweeper.slots"},
    "sweeper.gang": {"sweeper.capacity", "sweeper.cluster", "sweeper.slots"},
    "sweeper.cluster": {
        *("sweeper.cli", "sweeper.cli_jobs", "sweeper.cli_publish", "sweeper.loop"),
        "sweeper.session",
        *("sweeper.telling", "sweeper.verdicts"),
    },
}
# Package -> the modules outside it that may import from it: it stands on the rest.
ON_TOP: dict[str, set[str]] = {
    "sweeper.evidence": {"sweeper.cli_evidence", "sweeper.cli_publish", "jobs.bench.records"},
    "sweeper.page": {"sweeper.cli"},
}

Graph = dict[str, set[str]]


def read_graph(root: Path) -> Graph:
    """Every module of the rooms with the dotted names that it imports, wherever in its code."""
    paths = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    modules = {_module_name(root, path): path for path in paths}
    return {
        name: set(_imports(ast.parse(path.read_bytes()), name, path.name == "__init__.py", modules))
        for name, path in modules.items()
    }


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(
    tree: ast.Module, module: str, is_package: bool, known: dict[str, Path]
) -> Iterator[str]:
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            # `from package import name` imports a module where there is one of that name.
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in known else base
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def _called(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else None


def violations(graph: Graph) -> list[str]:
    """Every arrow that must not be, as a sentence."""
    found = []
    for module, imported in sorted(graph.items()):
        room = module.partition(".")[0]
        for name in sorted(imported):
            top = name.partition(".")[0]
            if top in FORBIDDEN_ROOMS.get(room, set()):
                found.append(f"{module} imports {name}: not from {room}/")
            if module not in ONLY_IN.get(top, (module,)):
                found.append(f"{module} imports {name}: only {' and '.join(ONLY_IN[top])} may")
            if top in ROOMS and name not in MAY_IMPORT.get(module, {name}):
                found.append(f"{module} imports {name}: it may import {MAY_IMPORT[module] or None}")
            for package, allowed in ON_TOP.items():
                inside = module in allowed or _within(module, package)
                if _within(name, package) and not inside:
                    found.append(f"{module} imports {name}: only {sorted(allowed)} may")
            if module not in IMPORTED_BY.get(name, {module}):
                found.append(f"{module} imports {name}: only {sorted(IMPORTED_BY[name])} may")
    return found + [" -> ".join([*cycle, cycle[0]]) for cycle in cycles(graph)]


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def cycles(graph: Graph) -> list[list[str]]:
    """Modules that import each other in a circle, one circle for each way into it."""
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> None:
        if module in way:
            found.append(way[way.index(module) :])
        elif module not in done:
            for name in sorted(graph[module] & graph.keys()):
                follow(name, [*way, module])
            done.add(module)

    for module in sorted(graph):
        follow(module, [])
    return found


# ---- the project


def test_the_arrows_are_as_drawn() -> None:
    assert violations(read_graph(ROOT)) == []


def test_all_modules_are_looked_at_and_all_depths() -> None:
    graph = read_graph(ROOT)
    files = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert len(graph) == len(files) > 30
    assert {"sweeper.cluster", "sweeper.session"} <= graph["sweeper.cli"]  # inside functions
    assert "scipy.stats" in graph["sweeper.stats"]  # inside a function
    assert "sweeper.guard" in graph["sweeper.launch"]  # from sweeper import guard
    assert "ray" in graph["sweeper.cluster"]
    assert "model.gpt" in graph["model.train"]


def test_the_rules_name_modules_that_there_are() -> None:
    graph = read_graph(ROOT)
    named = {*MAY_IMPORT, *IMPORTED_BY, *(name for names in MAY_IMPORT.values() for name in names)}
    assert named <= graph.keys()
    assert "sweeper.cluster" in graph


# ---- the checker


def make_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


ALLOWED = {
    "model/config.py": "import os\n",
    "model/gpt.py": "import torch\nfrom model.config import Config\n",
    "model/train.py": "from model.gpt import GPT\nfrom . import trainer\n",
    "model/trainer.py": "from .gpt import GPT\n",
    "sweeper/guard.py": "import os\n",
    "sweeper/launch.py": "from sweeper import guard\n",
    "sweeper/cluster.py": "import ray\nfrom ray.util import state\nimport sweeper.launch\n",
    "sweeper/study.py": "def f():\n    import optuna\n",
    "sweeper/loop.py": "from sweeper.cluster import Cluster\n",
    "sweeper/session.py": "from sweeper.loop import Loop\n",
    "sweeper/cli.py": "def f():\n    from sweeper.session import run\n",
    "jobs/sweep.py": "from sweeper.cli import main\n",
    "jobs/data/sample.py": "from model.shards import write_shard\nfrom sweeper.errors import E\n",
    # Names that only look alike, and words that are no imports.
    "sweeper/words.py": "import model_zoo, arrays\n'import model'\nray = 1\nrun('import model')\n",
}


def test_a_tree_that_keeps_the_rules_has_no_violations(tmp_path: Path) -> None:
    assert violations(read_graph(make_tree(tmp_path, ALLOWED))) == []


@pytest.mark.parametrize(
    ("file", "text", "violation"),
    [
        ("sweeper/x.py", "import model", "sweeper.x imports model: not from sweeper/"),
        ("sweeper/x.py", "import os, model.gpt as g", "sweeper.x imports model.gpt: not"),
        ("sweeper/x.py", "from model import gpt", "sweeper.x imports model.gpt: not"),
        ("sweeper/x.py", "from model.gpt import GPT", "sweeper.x imports model.gpt: not"),
        ("sweeper/x.py", "def f():\n    from model.gpt import GPT", "sweeper.x imports model.gpt"),
        ("sweeper/x.py", "class A:\n  if 1:\n    import jobs.data", "sweeper.x imports jobs.data"),
        ("sweeper/x.py", "try:\n    import model\nexcept ImportError: ...", "sweeper.x imports"),
        ("sweeper/x.py", "import importlib\nimportlib.import_module('model.gpt')", "sweeper.x imp"),
        ("sweeper/x.py", "__import__('jobs')", "sweeper.x imports jobs: not from sweeper/"),
        ("sweeper/sub/x.py", "import model", "sweeper.sub.x imports model: not from sweeper/"),
        ("sweeper/__init__.py", "import model", "sweeper imports model: not from sweeper/"),
        ("model/x.py", "from sweeper.errors import UserError", "model.x imports sweeper.errors"),
        ("model/x.py", "import jobs", "model.x imports jobs: not from model/"),
        ("model/gpt.py", "from model.muon import Muon", "model.gpt imports model.muon: it may"),
        ("model/gpt.py", "def f():\n    from .train import run", "model.gpt imports model.train"),
        ("model/evaluate.py", "from model.trainer import T", "'model.train'] may"),
        ("model/evaluate.py", "from .trainer import T", "'model.train'] may"),
        ("model/evaluate.py", "from . import trainer", "'model.train'] may"),
        ("model/x.py", "import ray", "model.x imports ray: only sweeper.cluster and"),
        ("jobs/x.py", "def f():\n    import ray", "jobs.x imports ray: only sweeper.cluster and"),
        ("sweeper/x.py", "from ray.util import state", "only sweeper.cluster and jobs.bench"),
        ("sweeper/cluster.py", "import optuna", "sweeper.cluster imports optuna: only sweeper.s"),
        ("sweeper/guard.py", "from sweeper.errors import UserError", "sweeper.guard imports"),
        ("sweeper/view.py", "import sweeper.cluster", "sweeper.view imports sweeper.cluster: only"),
        ("sweeper/cluster.py", "import sweeper.loop", "sweeper.loop -> sweeper.cluster -> sweep"),
        ("sweeper/x.py", "from sweeper.page import html", "only ['sweeper.cli'] may"),
        ("sweeper/evidence/x.py", "import sweeper.page.html", "only ['sweeper.cli'] may"),
        ("sweeper/x.py", "from sweeper.evidence.read import read_record", "'sweeper.cli_e"),
        ("sweeper/x.py", "def f():\n    import sweeper.x", "sweeper.x -> sweeper.x"),
    ],
)
def test_a_broken_rule_is_seen(tmp_path: Path, file: str, text: str, violation: str) -> None:
    tree = make_tree(tmp_path, ALLOWED | {file: text})
    assert any(violation in line for line in violations(read_graph(tree)))


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, [["b", "c"]]),
        ({"a": {"a"}}, [["a"]]),
        ({"a": {"elsewhere"}}, []),
    ],
)
def test_circles_are_found_and_nothing_else(graph: Graph, expected: list[list[str]]) -> None:
    assert cycles(graph) == expected


# ---- what a command costs

HEAVY = {"ray", "torch", "pandas", "optuna", "numpy", "scipy", "rich", "pydantic", "model", "jobs"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["report", "--help"], ["watch", "--help"]]
)
def test_help_is_given_without_heavy_imports(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "sweeper.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "sweeper" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"argparse", "sweeper"} <= loaded
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
