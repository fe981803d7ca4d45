"""The class R of the app's resources, in Kotlin: `python resources.py RES FOLDER`.

Without Android's tools names alone count: a resource that is not there fails to compile. With what aapt2
wrote (`--output-text-symbols`), as `apk.py` has it, numbers are those of an APK.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree


def names(res: Path) -> dict[str, dict[str, int]]:
    """Resources by type and name, numbered: values by their elements, files by their folder, ids that layouts make."""
    found: dict[str, set[str]] = {}
    for path in sorted(res.glob("*/*.xml")):
        kind = path.parent.name.partition("-")[0]
        tree = ElementTree.parse(path)
        if kind == "values":
            for element in tree.getroot():
                found.setdefault(element.tag, set()).add(element.attrib["name"])
            continue
        found.setdefault(kind, set()).add(path.stem)
        for element in tree.iter():
            for value in element.attrib.values():
                if made := re.fullmatch(r"@\+id/(\w+)", value):
                    found.setdefault("id", set()).add(made.group(1))
    pairs = [(kind, name) for kind in sorted(found) for name in sorted(found[kind])]
    return _by_type([(kind, name, number) for number, (kind, name) in enumerate(pairs, 1)])


def numbered(symbols: str) -> dict[str, dict[str, int]]:
    """The same, as aapt2 numbered them."""
    lines = [line.split() for line in symbols.splitlines() if line.startswith("int ")]
    return _by_type([(kind, name, int(number, 16)) for _, kind, name, number in lines if kind != "styleable"])


def _by_type(entries: list[tuple[str, str, int]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for kind, name, number in entries:
        found.setdefault(kind, {})[name] = number
    return found


def kotlin(found: dict[str, dict[str, int]]) -> str:
    """The class."""
    lines = ['@file:Suppress("ClassName")', "", "package pocketrank.demo", "", "object R {"]
    for kind, members in found.items():
        lines.append(f"    object {kind} {{")
        lines += [f"        const val {name} = {number}" for name, number in members.items()]
        lines.append("    }")
    return "\n".join([*lines, "}", ""])


def write(found: dict[str, dict[str, int]], folder: Path) -> None:
    """Write `R.kt`, where it is another than the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "R.kt", kotlin(found)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(names(Path(sys.argv[1])), Path(sys.argv[2]))
