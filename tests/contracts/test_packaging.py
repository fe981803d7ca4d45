"""What pyproject.toml, constraints.txt and the command's table of extras promise each other. No network."""

import re
import tomllib
from functools import cache
from importlib.metadata import entry_points, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pocketrank.engines import ENGINES
from pocketrank_cli.cli import EXTRAS, GROUP
from pocketrank_cli.command import Command

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]
UNRESOLVED = {"tflite"}  # never in one environment with the others
PYTHONS = ("3.11", "3.12", "3.13")


def direct(extra: str) -> list[Requirement]:
    """Requirements of an extra of ours, with those of the extras that it names."""
    found = []
    for requirement in map(Requirement, OPTIONAL[extra]):
        if requirement.name == PROJECT["name"]:
            found += [inner for name in sorted(requirement.extras) for inner in direct(name)]
        else:
            found.append(requirement)
    return found


@cache
def brought(requirement: str) -> frozenset[str]:
    """Names of all the packages that one requirement brings into an environment, itself included."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        at = waiting.pop()
        for extra in {"", *at.extras}:
            if (key := (canonicalize_name(at.name), extra)) in seen:
                continue
            seen.add(key)
            inner = map(Requirement, requires(at.name) or [])
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return frozenset(name for name, _ in seen)


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(name: str, python: str) -> list[Version]:
    """Versions that constraints.txt allows a package on Linux with this Python: one, where all is well."""
    where = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    return [
        Version(next(iter(pin.specifier)).version)
        for pin in pins()
        if canonicalize_name(pin.name) == canonicalize_name(name) and (pin.marker is None or pin.marker.evaluate(where))
    ]


def test_the_device_needs_numpy_and_safetensors_and_no_more() -> None:
    assert sorted(Requirement(text).name for text in PROJECT["dependencies"]) == ["numpy", "safetensors"]


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_the_extra_named_for_a_missing_module_brings_it(module: str, extra: str) -> None:
    assert extra in OPTIONAL
    packages = {canonicalize_name(name) for name in packages_distributions()[module]}
    assert packages & frozenset[str]().union(*(brought(str(requirement)) for requirement in direct(extra)))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_is_an_extra_of_the_same_name_that_brings_its_package(engine: str) -> None:
    _, module = ENGINES[engine]
    assert module.replace("_", "-") in {requirement.name for requirement in direct(engine)}


def test_all_is_every_extra_but_the_developers_and_the_one_that_fits_no_other() -> None:
    (everything,) = map(Requirement, OPTIONAL["all"])
    assert everything.extras == OPTIONAL.keys() - {"all", "dev"} - UNRESOLVED
    assert {requirement.name for requirement in direct("all")} <= {requirement.name for requirement in direct("dev")}


def test_every_room_has_its_subcommands_registered_and_they_load() -> None:
    declared = PROJECT["entry-points"][GROUP]
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    assert found.keys() >= declared.keys()
    for name, value in declared.items():
        assert found[name].value == value
        commands = found[name].load()
        assert commands
        assert all(isinstance(command, Command) for command in commands)


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_once_to_a_version_that_pyproject_allows(python: str) -> None:
    extras = [requirement for extra in OPTIONAL.keys() - UNRESOLVED for requirement in direct(extra)]
    for requirement in [*map(Requirement, PROJECT["dependencies"]), *extras]:
        versions = pinned(requirement.name, python)
        assert len(versions) == 1, f"{requirement.name}: {versions}; run: make constraints"
        assert versions[0] in requirement.specifier, f"{requirement} but pinned to {versions[0]}; run: make constraints"


def test_constraints_pin_what_the_dependencies_bring_too() -> None:
    extras = [requirement for extra in OPTIONAL.keys() - UNRESOLVED for requirement in direct(extra)]
    wanted = frozenset[str]().union(*(brought(str(requirement)) for requirement in extras))
    assert wanted <= {canonicalize_name(pin.name) for pin in pins()}


def test_constraints_name_versions_and_no_place_to_fetch_them_from() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "make constraints" in text.splitlines()[1]
    assert not re.search(r"://|--|@|\bfile:|/", text)
    assert all(str(pin.specifier).startswith("==") for pin in pins())


def test_every_supported_python_is_named_by_the_classifiers_and_by_nothing_else() -> None:
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert tuple(named) == PYTHONS
    allowed = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(9, 17) if f"3.{minor}" in allowed] == list(PYTHONS)
