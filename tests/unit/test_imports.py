"""The import table, held against the code: who may know whom, and who alone speaks to a foreign library."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cachefs"

SHARED = {
    *("model", "errors", "ranges", "descriptors", "units", "paths", "verification", "restoration", "ownership"),
    *("leases", "jobs"),
}
"""The words everybody speaks. They import nothing of ours but each other."""

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(SHARED, SHARED),
    "plex": {"plex"},
    "cache": {"cache"},
    "fs": {"fs", "status", "mounts"},
    "control": {"control"},
    "planner": {"sidecars"},
    "wanting": set(),
    "explaining": set(),
    "sidecars": set(),
    "status": set(),
    "mounts": set(),
    "config": {"config_text"},
    "config_text": set(),
}
"""Which parts of ours a part may import besides SHARED; a part that is not named here may import any."""

EXCEPTIONS = {
    ("fs.routing", "cache.store"),
    ("fs.inuse", "cache.store"),
}

PURE = {"planner", "wanting", "explaining", "sidecars", "model", "ranges", "units", "paths", "verification"}
IMPURE = {"trio", "os", "io", "socket", "subprocess", "threading", "asyncio", "sqlite3", "plexapi", "logging", "time"}

ONLY_IN: dict[str, set[str]] = {
    "sqlite3": {"cache.index", "cache.metadata"},
    "pyfuse3": {"fs"},
    "yaml": {"config_text"},
    "pydantic": {"config", "config_text"},
    "trio_websocket": {"plex.watcher"},
    "httpx": {"control.client"},
    "starlette": {"control"},
    "hypercorn": {"control"},
    "click": {"cli", "commands"},
    "plexapi": {"plex"},
}
"""Foreign libraries, and the modules or parts that alone import them."""

KNOWN_TO_FEW = {
    "cli": {"__main__"},
    "commands.machine": {"cli"},
    "daemon": {"cli", "commands.machine", "__main__"},
    "keeper": {"commands.machine", "fstab", "__main__"},
    "engine": {"daemon"},
}
"""Modules at the top of the program, and who may import them."""


def module_name(path: Path) -> str:
    """``fs/routing.py`` → ``fs.routing``; a package's own file is the package; the top is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str) -> Iterator[str]:
    """Every module a source imports, at any depth; of ours with the package's name, submodules resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("cachefs.") in MODULES else node.module


def belongs(module: str, parts: set[str]) -> bool:
    """Whether a module is one of ``parts`` or lies in one of them."""
    return any(module == part or module.startswith(part + ".") for part in parts)


def objection(importer: str, imported: str) -> str:
    """Why a module may not import another; empty when it may."""
    top = imported.partition(".")[0]
    if top != "cachefs":
        if top in ONLY_IN and not belongs(importer, ONLY_IN[top]):
            return f"{importer} imports {top}, which is for {', '.join(sorted(ONLY_IN[top]))} only"
        if importer in PURE and top in IMPURE:
            return f"{importer} is pure and imports {top}"
        return ""
    ours = imported.removeprefix("cachefs").removeprefix(".")
    allowed = MAY_IMPORT.get(importer.partition(".")[0])
    if allowed is not None and ours and not belongs(ours, allowed | SHARED) and (importer, ours) not in EXCEPTIONS:
        return f"{importer} must not know {ours}"
    if ours in KNOWN_TO_FEW and importer not in KNOWN_TO_FEW[ours]:
        return f"{importer} must not know {ours}, which is at the top"
    return ""


IMPORTS = {name: sorted(set(imports(path.read_text()))) for name, path in MODULES.items()}


def ours_of(name: str) -> set[str]:
    """The modules of ours that a module imports; the top package, which holds the version only, is not one."""
    found = (imported.removeprefix("cachefs.") for imported in IMPORTS[name] if imported.startswith("cachefs."))
    return set(found)


@pytest.mark.parametrize("name", MODULES)
def test_module_knows_only_whom_the_table_allows(name: str) -> None:
    assert [told for imported in IMPORTS[name] if (told := objection(name, imported))] == []


@pytest.mark.parametrize("name", sorted(PURE & MODULES.keys()))
def test_what_is_pure_stays_pure_through_what_it_imports(name: str) -> None:
    reached, waiting = set[str](), [name]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += ours_of(module)
    assert {module: used for module in reached if (used := IMPURE & set(IMPORTS[module]))} == {}


def test_nobody_imports_in_a_circle() -> None:
    order = graphlib.TopologicalSorter({name: ours_of(name) - {name} for name in MODULES}).static_order()
    assert set(order) >= MODULES.keys()


def test_one_module_imports_plexapi() -> None:
    importers = [name for name, found in IMPORTS.items() if any(top.partition(".")[0] == "plexapi" for top in found)]
    assert len(importers) <= 1


def test_only_what_makes_up_the_daemon_knows_plex_cache_and_fs_together() -> None:
    sides = {"plex", "cache", "fs"}
    everybody = [name for name in MODULES if sides <= {ours.partition(".")[0] for ours in ours_of(name)}]
    assert set(everybody) <= {"daemon", "building", "engine"}


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^a-z0-9-]", line.lower())[0] for line in project["dependencies"]}
    foreign = {imported.partition(".")[0] for found in IMPORTS.values() for imported in found}
    foreign -= {"cachefs", *sys.stdlib_module_names}
    assert {{"yaml": "pyyaml"}.get(name, name.lower().replace("_", "-")) for name in foreign} == declared


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plex.client", "cachefs.cache.store"),
        ("cache.populate", "cachefs.fs.source"),
        ("fs.union", "cachefs.cache.store"),
        ("fs.routing", "cachefs.plex.client"),
        ("control.api", "cachefs.daemon"),
        ("planner", "trio"),
        ("planner", "os.path"),
        ("planner", "cachefs.cache.store"),
        ("cache.store", "sqlite3"),
        ("cli", "plexapi.server"),
        ("planning", "cachefs.daemon"),
        ("model", "cachefs.status"),
    ],
)
def test_table_objects_to_what_it_should(importer: str, imported: str) -> None:
    assert objection(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("fs.routing", "cachefs.cache.store"), ("daemon", "cachefs.fs.routing"), ("planner", "cachefs.units")],
)
def test_table_allows_what_it_should(importer: str, imported: str) -> None:
    assert objection(importer, imported) == ""
