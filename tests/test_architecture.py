"""The rooms: imports run one way, heavy libraries stay where they belong, faces start fast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "embeddings_assets"

# A room may import itself, and rooms of a lower number.
LEVELS = {
    "errors": 0,
    "catalog": 1,
    "settings": 2,
    "io": 2.5,
    "workers": 2.5,
    "store": 3,
    "datasets": 4,
    "encoders": 4,
    "extraction": 5,
    "quality": 5,
    "pipeline": 6.5,
    "graph": 7,
    "api": 8,
    "cli": 10,
    "definitions": 9,
    "extract_embeddings": 11,
    "__init__": 11,
}
HEAVY = {"torch", "torchvision", "transformers", "open_clip", "safetensors"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(module: Path, *, top_level_only: bool) -> set[str]:
    """Dotted names a module imports; what only type checkers see is left out."""
    tree = ast.parse(module.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if top_level_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.update({child.module, *(f"{child.module}.{alias.name}" for alias in child.names)})
            visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(module: Path) -> None:
    mine = room(module)
    for name in imports(module, top_level_only=False):
        parts = name.split(".")
        if parts[0] != "embeddings_assets" or len(parts) < 2 or parts[1] == mine:
            continue
        other = parts[1]
        if other in LEVELS:
            assert LEVELS[other] < LEVELS[mine], f"{mine} imports {other}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dagster_torch_and_the_environment_stay_in_their_rooms(module: Path) -> None:
    mine = room(module)
    everywhere = {name.split(".")[0] for name in imports(module, top_level_only=False)}
    at_import = {name.split(".")[0] for name in imports(module, top_level_only=True)}
    if mine not in ("graph", "definitions"):
        assert "dagster" not in everywhere
    if mine in ("catalog", "settings", "datasets", "store", "io", "errors"):
        assert not HEAVY & everywhere
    if mine != "encoders":
        assert not HEAVY & at_import
    if mine not in ("settings", "workers"):  # worker processes inherit it
        assert "os.environ" not in module.read_text()
        assert "getenv" not in module.read_text()


def test_every_module_belongs_to_a_room() -> None:
    assert {room(module) for module in MODULES} == set(LEVELS)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import embeddings_assets", {"torch", "dagster", "pandas", "pyarrow"}),
        ("import embeddings_assets.cli.main", {"torch", "dagster", "pandas", "pyarrow"}),
        ("import embeddings_assets.cli.console", {"torch", "dagster", "pandas", "pyarrow"}),
        ("import embeddings_assets.pipeline", {"torch", "dagster"}),
        (
            "import embeddings_assets.definitions",
            {"torch", "transformers", "open_clip", "torchvision", "scipy", "pandas"},
        ),
    ],
)
def test_importing_a_face_loads_nothing_heavy(statement: str, absent: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert not absent & set(run.stdout.split())
