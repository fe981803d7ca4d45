"""Start a project: a folder that is a Feast repo and holds a commented `pocketrank.toml`.

The settings are those of the config dataclasses, and the comments are their docstrings, so neither can fall behind. The
other files are copied from the folder `starter` beside this module. Nothing that is there already is written over.
"""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketrank.atomic import write_bytes
from pocketrank.config import FILE_NAME, EventsConfig, ItemsConfig, MemoryConfig, SegmentsConfig, SyncConfig
from pocketrank.errors import BadConfig, BadInput, UsageError
from pocketrank.parsing import parse
from pocketrank_cli.command import Report

STARTER = Path(__file__).parent / "starter"
SECTIONS: dict[str, type] = {
    "events": EventsConfig,
    "segments": SegmentsConfig,
    "memory": MemoryConfig,
    "items": ItemsConfig,
    "sync": SyncConfig,
}
# Sections of the training room: their keys are checked where they are read, by `pocketrank train`.
UNCHECKED = ("model", "training")
DOT_FILES = {"gitignore": ".gitignore", "feastignore": ".feastignore"}
_INTRO = """\
# The settings of this project; every pocketrank command run in this folder reads them.
# An unknown key is refused by name. [model] and [training] are read by `pocketrank train`.
"""
_ATTRIBUTE = re.compile(r"^    (\w+): (.+?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)


def start_project(folder: Path, assignments: Sequence[str] = ()) -> Report:
    """Write the starter files of a project.

    Args:
        folder: made where it is missing; may hold other files.
        assignments: SECTION.KEY=VALUE, instead of the defaults; a value as TOML spells it, or bare text.

    Raises:
        UsageError: an assignment is not of that form.
        BadConfig: an unknown section or key, or a value of another type.
        BadInput: one of the files is there already, or the folder cannot be made.
    """
    files = project_files(settings_from(assignments))
    there = sorted(name for name in files if (folder / name).exists() or (folder / name).is_symlink())
    if there:
        names = ", ".join(there)
        raise BadInput(
            f"{folder}: {names} is there already, and init never overwrites; move it, or name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror}); name a folder you may write to") from None
    steps = next_steps(folder)
    text = "next:\n" + "\n".join(f"  {step}" for step in steps)
    facts = {"folder": str(folder), "files": sorted(files), "next": steps}
    return Report(facts, shown={"next": ""}, verdict=text)


def project_files(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """What `init` writes: content by file name."""
    copied = {DOT_FILES.get(path.name, path.name): path.read_bytes() for path in STARTER.iterdir() if path.is_file()}
    return {FILE_NAME: toml_of(settings).encode(), **dict(sorted(copied.items()))}


def next_steps(folder: Path) -> list[str]:
    """The commands that lead from an empty project to a ranking, in order."""
    return [
        f"cd {folder}",
        "pocketrank ingest SOURCE        # complete-journey, ml100k, git:PATH, or a .parquet or .csv",
        "pocketrank train",
        "pocketrank export",
        "pocketrank verify",
        "pocketrank segment",
        "feast apply",
        "feast materialize 1970-01-02T00:00:00 END   # as `segment` ends with",
        "pocketrank pack --all",
        "pocketrank rank",
    ]


def settings_from(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Sections of settings that `--set SECTION.KEY=VALUE` asks for; a third name sets one entry of a table.

    Raises:
        UsageError: an assignment is not of that form.
        BadConfig: an unknown section or key, a value of another type, or a policy that cannot be.
    """
    settings: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        section, *keys = dotted.strip().split(".")
        if not equals or not 1 <= len(keys) <= 2 or not all(keys):
            raise UsageError(f"--set {assignment}: wanted SECTION.KEY=VALUE, such as --set segments.gap_s=3600")
        known = (*SECTIONS, *UNCHECKED)
        if section not in known:
            raise BadConfig(f"--set {assignment}: unknown section {section!r}; known are {', '.join(known)}")
        table = settings.setdefault(section, {})
        if len(keys) == 2:
            table = table.setdefault(keys[0], {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {assignment}: {section}.{keys[0]} was set to {table!r} before; set it once")
        table[keys[-1]] = _value(text.strip())
    for section, table in settings.items():
        if section in SECTIONS:
            values: object = parse(SECTIONS[section], table, f"--set {section}")
            if isinstance(values, SegmentsConfig):
                values.cutter()
    return settings


def toml_of(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A whole `pocketrank.toml`: every known setting with its comment, those not given at their defaults."""
    parts = [_INTRO]
    for section, cls in SECTIONS.items():
        values = dataclasses.asdict(parse(cls, settings.get(section, {}), f"[{section}]"))
        title, comments = _documented(cls)
        lines = [f"# {title[:1].upper()}{title[1:]}", f"[{section}]"]
        for key, value in values.items():
            lines += [f"# {comments[key]}"] if key in comments else []
            lines.append(f"{key} = {_toml(value)}")
        parts.append("\n".join(lines) + "\n")
    for section in UNCHECKED:
        if section in settings:
            lines = [f"{_key(key)} = {_toml(value)}" for key, value in settings[section].items()]
            parts.append("\n".join([f"[{section}]", *lines]) + "\n")
    return "\n".join(parts)


def _documented(cls: type) -> tuple[str, dict[str, str]]:
    """First line and attribute lines of a config class's docstring."""
    title, _, rest = (cls.__doc__ or "").partition("\n")
    attributes = rest.partition("Attributes:\n")[2]
    unindented = "\n".join(line.removeprefix("    ") for line in attributes.splitlines())
    found = {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(unindented)}
    return title.partition("]: ")[2] or title, found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float):
        return repr(value)
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
