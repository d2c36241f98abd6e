"""The folders are the flow: what may import what, and what must not load before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import epochlens

PACKAGE = Path(epochlens.__file__).parent
BASE = {"lazy", "errors"}
MAY_IMPORT = {
    "learn": {"learn"},
    "attribute": {"attribute"},
    "measure": {"measure"},
    "record": {"record", "attribute"},
    "show": {"show", "record", "measure"},
    "explorer": {"show", "record", "measure", "attribute", "learn"},  # explains any image with kept weights
    "sweep": {"sweep", "show", "measure", "record", "attribute", "learn", "config"},
    "config": {"learn", "attribute"},
    "commands": {"config", "sweep", "record", "show"},
}
ONLY = {
    "ray": {"sweep"},
    "dash": {"explorer"},
    "torch": {"learn", "attribute", "record", "sweep", "explorer"},
}
MEASURE_NEEDS = {"numpy", "scipy", "pandas"}


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, those it names to LazyModule among them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names if module == "epochlens"}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "LazyModule":
            found.add(ast.literal_eval(node.args[0]))
    return found


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return "explorer" if parts[:2] == ("show", "explorer") else parts[0].removesuffix(".py")


FILES = [p for p in PACKAGE.rglob("*.py") if room(p) not in {"__init__", *BASE}]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_what_stands_above(path):
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("epochlens.")}
    assert inside - BASE <= MAY_IMPORT[room(path)] | {"__version__"}
    outside = {name.split(".")[0] for name in imports(path)} - {"epochlens"}
    for package, rooms in ONLY.items():
        assert package not in outside or room(path) in rooms
    if room(path) == "measure":
        assert outside - set(sys.stdlib_module_names) <= MEASURE_NEEDS


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def imported_for_types(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Names that a module imports for type checkers only, and those that it binds instead at run time."""
    typed, bound = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and is_for_types(node):
            typed |= {
                alias.asname or alias.name.split(".")[0]
                for part in node.body
                if isinstance(part, ast.Import | ast.ImportFrom)
                for alias in part.names
            }
            names = (name for part in node.orelse for name in ast.walk(part))
            bound |= {n.id for n in names if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return typed, bound


def read_at_run_time(node: ast.AST) -> set[str]:
    """Names that are looked up when the code runs: annotations are not."""
    found = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()
    skipped = {"annotation", "returns"} | ({"body"} if is_for_types(node) else set())
    for field, value in ast.iter_fields(node):
        if field not in skipped:
            parts = value if isinstance(value, list) else [value]
            found |= {name for part in parts if isinstance(part, ast.AST) for name in read_at_run_time(part)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_imported_for_types_is_there_at_run_time(path):
    tree = ast.parse(path.read_text())
    typed, bound = imported_for_types(tree)
    local = {n.asname or n.name for n in ast.walk(tree) if isinstance(n, ast.alias)} - typed
    assert (typed & read_at_run_time(tree)) - bound - local == set()


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [["--lrs", "0"], ["--models", "smal"], ["--datasets", "digits", "--classes", "3", "99"], ["--help"]],
)
def test_usage_errors_and_help_answer_before_heavy_modules_load(arguments):
    code = (
        "from epochlens.commands import grid\n"
        f"try: code = grid({arguments!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        f"assert code == {0 if arguments == ['--help'] else 2}, code"
    )
    heavy = {"torch", "ray", "torchvision", "dash", "pandas", "matplotlib", "sklearn", "scipy"}
    assert not loaded_after(code) & heavy


def test_importing_the_package_costs_nothing():
    assert not loaded_after("import epochlens") & {"torch", "ray", "numpy", "pandas"}


def test_public_names_are_there():
    assert all(getattr(epochlens, name) is not None for name in epochlens.__all__)
    code = (
        "import epochlens, epochlens.attribute.methods, torch\n"
        "model, x = torch.nn.Linear(3, 2), torch.ones(4, 3)\n"
        "maps = epochlens.attribute(model, x, torch.zeros(4, dtype=torch.long), 'saliency')\n"
        "assert torch.equal(maps, model.weight[:1].detach().expand(4, 3))"
    )
    assert "torch" in loaded_after(code)
    with pytest.raises(AttributeError, match="attribute"):
        epochlens.nothing  # noqa: B018
