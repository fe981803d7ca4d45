"""The Android demo as text: what its two builds, its two languages and the two runtimes have to have in common.

What it does is tested in Kotlin, by `make android-test`.
"""

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

import pocketrank
from pocketrank.bundle import FORMAT, PRODUCTS
from pocketrank.pack import FORMAT as PACK_FORMAT

DEMO = Path(__file__).parents[2] / "android_demo"
MAVEN = "{http://maven.apache.org/POM/4.0.0}"
ANDROID = "{http://schemas.android.com/apk/res/android}"
CORE = DEMO / "core" / "src" / "main" / "kotlin" / "pocketrank"


def properties() -> dict[str, str]:
    found = ElementTree.parse(DEMO / "pom.xml").getroot().find(f"{MAVEN}properties")
    assert found is not None
    return {element.tag.removeprefix(MAVEN): element.text or "" for element in found}


def catalogue() -> dict[str, str]:
    versions: dict[str, str] = tomllib.loads((DEMO / "gradle" / "libs.versions.toml").read_text("utf-8"))["versions"]
    return versions


def test_both_builds_have_the_same_versions() -> None:
    maven = {name.removesuffix(".version"): value for name, value in properties().items()}
    gradle = catalogue()
    both = maven.keys() & gradle.keys()
    assert both == {"kotlin", "onnxruntime", "tensorflow-lite", "junit"}
    assert {name: maven[name] for name in both} == {name: gradle[name] for name in both}


def test_versions_and_formats_are_those_of_the_python_runtime() -> None:
    poms = [path for path in DEMO.rglob("pom.xml") if "target" not in path.parts]
    found = [re.search(r"android-demo</artifactId>\s*<version>(.*?)<", path.read_text("utf-8")) for path in poms]
    assert {one.group(1) if one else "" for one in found} == {pocketrank.__version__}
    assert catalogue()["pocketrank"] == pocketrank.__version__
    manifest, pack = ((CORE / f"{name}.kt").read_text("utf-8") for name in ("Manifest", "Pack"))
    assert f'VERSION = "{pocketrank.__version__}"' in manifest
    assert f'BUNDLE_FORMAT = "{FORMAT}"' in manifest
    assert f'FORMAT = "{PACK_FORMAT}"' in pack
    told = re.findall(r'listOf\(((?:"\w+",? ?)+)\) to \(1L shl (\d+)\)', manifest)
    assert {tuple(re.findall(r"\w+", names)): 2 ** int(power) for names, power in told} == PRODUCTS


def texts(language: str) -> dict[str, str]:
    root = ElementTree.parse(DEMO / "app" / "src" / "main" / "res" / f"values{language}" / "strings.xml").getroot()
    return {element.attrib["name"]: element.text or "" for element in root}


def test_every_text_is_there_in_both_languages_with_the_same_places_to_fill_in() -> None:
    english, chinese = texts(""), texts("-zh")
    assert english.keys() == chinese.keys()
    for name, text in english.items():
        found = [sorted(re.findall(r"%\d\$[-+.\d]*[a-z]", one)) for one in (text, chinese[name])]
        assert found[0] == found[1], name
    assert sum(any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in chinese.values()) > 25


def test_texts_are_in_resources_alone() -> None:
    for path in (DEMO / "app" / "src").rglob("res/layout/*.xml"):
        for element in ElementTree.parse(path).iter():
            for name in ("text", "hint", "contentDescription"):
                value = element.attrib.get(f"{ANDROID}{name}", "@string/")
                assert value.startswith("@string/"), f"{path.name}: {value}"


def test_the_class_r_has_every_resource_that_the_code_names(tmp_path: Path) -> None:
    res = DEMO / "app" / "src" / "main" / "res"
    subprocess.run([sys.executable, DEMO / "resources.py", res, tmp_path], check=True)
    made = (tmp_path / "R.kt").read_text("utf-8")
    used = {
        tuple(found)
        for path in (DEMO / "app" / "src").rglob("*.kt")
        for found in re.findall(r"(?<!android\.)\bR\.(\w+)\.(\w+)", path.read_text("utf-8"))
    }
    assert len(used) > 30
    for kind, name in used:
        assert re.search(rf"object {kind} \{{[^}}]*\bconst val {name} = \d+", made), f"R.{kind}.{name}"


def test_the_app_asks_for_no_permission_but_internet_in_the_flavour_that_syncs() -> None:
    asked = {
        path.parent.name: [one.attrib[f"{ANDROID}name"] for one in ElementTree.parse(path).iter("uses-permission")]
        for path in (DEMO / "app" / "src").glob("*/AndroidManifest.xml")
    }
    assert asked == {"main": [], "debug": [], "online": ["android.permission.INTERNET"]}
    clear = [
        path.relative_to(DEMO).parts[2] for path in (DEMO / "app").rglob("*.xml") if "cleartext" in path.read_text()
    ]
    assert clear == ["debug"]


@pytest.mark.parametrize("module", ["core", "engine-ort", "engine-tflite", "sync"])
def test_modules_name_no_class_of_android_and_core_nothing_but_kotlin(module: str) -> None:
    sources = list((DEMO / module / "src" / "main").rglob("*.kt"))
    assert sources
    imports = {line for path in sources for line in re.findall(r"^import (\S+)", path.read_text("utf-8"), re.MULTILINE)}
    allowed = {
        "core": ("java.", "kotlin."),
        "engine-ort": ("java.", "kotlin.", "pocketrank.", "ai.onnxruntime."),
        "engine-tflite": ("java.", "kotlin.", "pocketrank.", "org.tensorflow.lite."),
        "sync": ("java.", "kotlin.", "pocketrank."),
    }
    assert [name for name in imports if not name.startswith(allowed[module])] == []


README = (DEMO / "README.md").read_text(encoding="utf-8")


def test_the_code_in_the_readme_is_what_a_test_in_kotlin_runs() -> None:
    (code,) = re.findall(r"```kotlin\n(.*?)```", README, re.DOTALL)
    run = (DEMO / "engine-ort/src/test/kotlin/pocketrank/ort/ReadmeTest.kt").read_text("utf-8")
    assert "".join(f"        {line}\n" for line in code.splitlines()) in run


def test_targets_files_and_commands_that_the_readme_names_are_there() -> None:
    makefile = (DEMO.parent / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert targets >= {"demo", "android-test", "android-apk"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (DEMO / link).is_file(), link
    for command, options in re.findall(r"`pocketrank ([a-z]+)([^`]*)`", README):
        asked = [sys.executable, "-m", "pocketrank", command, "--help"]
        shown = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert all(option in shown for option in re.findall(r"--[a-z-]+", options)), command


def test_libraries_are_taken_of_an_aar_that_has_them_for_every_phone_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(DEMO)
    apk = importlib.import_module("apk")
    aar = tmp_path / "some.aar"

    def natives(*names: str) -> dict[str, bytes]:
        with zipfile.ZipFile(aar, "w") as file:
            for name in ("classes.jar", *names):
                file.writestr(name, name)
        found: dict[str, bytes] = apk._natives(aar)
        return found

    with pytest.raises(apk.NoApkError, match=r"some.aar: no libraries of arm64-v8a, x86_64 in it; give"):
        natives()
    with pytest.raises(apk.NoApkError, match="no libraries of x86_64 in it"):
        natives("jni/arm64-v8a/one.so", "jni/x86_64/", "jni/x86_64/notes.txt")
    found = natives("jni/arm64-v8a/one.so", "jni/x86_64/one.so", "jni/x86/one.so")
    assert found == {f"lib/{abi}/one.so": f"jni/{abi}/one.so".encode() for abi in apk.ABIS}
    aar.write_bytes(b"<html>404</html>")
    with pytest.raises(apk.NoApkError, match=r"some.aar: no AAR"):
        apk._natives(aar)


def test_an_apk_that_cannot_be_made_is_a_line(tmp_path: Path) -> None:
    def said(path: str, bundle: Path) -> str:
        command = [sys.executable, DEMO / "apk.py", "--bundle", bundle, "--packs", tmp_path]
        run = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)
        assert (run.returncode, run.stdout) == (1, "")
        return run.stderr

    tools = ("aapt2", "zipalign", "apksigner", "mvn", "javac")
    wanted = "aapt zipalign apksigner maven default-jdk-headless"
    line = f"android-apk: some tools are not here; install them (Debian, Ubuntu: apt install {wanted})\n"
    assert said(str(tmp_path), tmp_path) == line
    for tool in tools:
        (tmp_path / tool).touch(0o755)
    line = f"android-apk: {tmp_path}/bundle/manifest.json: not there; make a project first with: make demo\n"
    assert said(str(tmp_path), tmp_path / "bundle") == line
