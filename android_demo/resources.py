"""The class R of the app's resources, for a compiler without Android's tools: `python resources.py RES FOLDER`.

Names alone count here, and a resource that is not there fails to compile. aapt2 gives them their numbers.
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

ANDROID = "{http://schemas.android.com/apk/res/android}"


def names(res: Path) -> dict[str, set[str]]:
    """Resource names by type: values by their elements, files by their folder, and the ids that layouts make."""
    found: dict[str, set[str]] = {}
    for path in sorted(res.glob("*/*.xml")):
        kind = path.parent.name.partition("-")[0]
        tree = ElementTree.parse(path)  # noqa: S314
        if kind == "values":
            for element in tree.getroot():
                found.setdefault(element.tag, set()).add(element.attrib["name"])
            continue
        found.setdefault(kind, set()).add(path.stem)
        for element in tree.iter():
            for value in element.attrib.values():
                made = re.fullmatch(r"@\+id/(\w+)", value)
                if made:
                    found.setdefault("id", set()).add(made.group(1))
    return found


def kotlin(found: dict[str, set[str]]) -> str:
    """The class, as Kotlin."""
    lines = ['@file:Suppress("ClassName")', "", "package pocketrank.demo", "", "object R {"]
    number = 0
    for kind, members in sorted(found.items()):
        lines.append(f"    object {kind} {{")
        for name in sorted(members):
            number += 1
            lines.append(f"        const val {name} = {number}")
        lines.append("    }")
    return "\n".join([*lines, "}", ""])


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    (target / "R.kt").write_text(kotlin(names(Path(sys.argv[1]))), encoding="utf-8")
