"""`make android-apk`: the demo as an APK by free tools, without Android's SDK: aapt2, zipalign, apksigner, R8.

A debug build, signed with a debug key of its own; put together and checked, and never run: there is no phone here.
"""

import argparse
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import resources

DEMO = Path(__file__).parent
WORK = DEMO / "build" / "apk"
ANDROID = "http://schemas.android.com/apk/res/android"
PAGE = 16384  # what Android 15 and later may have
ABIS = ("arm64-v8a", "x86_64")
TOOLS = {
    "aapt2": "aapt",
    "zipalign": "zipalign",
    "apksigner": "apksigner",
    "mvn": "maven",
    "javac": "default-jdk-headless",
}
MIN_SDK, TARGET_SDK = 26, 36
ElementTree.register_namespace("android", ANDROID)


class NoApkError(Exception):
    """Something is missing, or a check failed; one line."""


def main() -> int:
    """Make one; exit code."""
    parser = argparse.ArgumentParser(prog="make android-apk", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="what `pocketrank export` wrote")
    parser.add_argument("--packs", type=Path, required=True, help="a folder of packs, one a demo user")
    parser.add_argument("--key", type=Path, help="public key to pin, of `pocketrank keys new`")
    parser.add_argument("--aar", type=Path, help="onnxruntime-android; fetched where it is not given")
    parser.add_argument("--flavour", choices=("offline", "online"), default="offline")
    options = parser.parse_args()
    try:
        apk = made(options)
        print(f"apk         {apk}\nbytes       {apk.stat().st_size:,}\nsigned      yes, with a debug key")
        print(f"aligned     to {PAGE:,} bytes, libraries too: {', '.join(libraries(apk))}\nnever run   no phone here")
    except NoApkError as error:
        print(f"android-apk: {error}", file=sys.stderr)
        return 1
    return 0


def made(options: argparse.Namespace) -> Path:
    """The APK, signed and checked."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise NoApkError(f"some tools are not here; install them (Debian, Ubuntu: apt install {' '.join(missing)})")
    for path in (options.bundle / "manifest.json", options.packs):
        if not path.exists():
            raise NoApkError(f"{path}: not there; make a project first with: make demo")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    r8, android = _fetched("r8"), _fetched("android")
    aar = options.aar or _fetched("onnxruntime")
    natives = _natives(aar)
    linked = _linked(options, android)
    dex = _dexed(options.flavour, aar, r8, android)
    with zipfile.ZipFile(linked, "a") as apk:
        apk.write(dex, "classes.dex", zipfile.ZIP_DEFLATED)
        for name, content in natives.items():
            apk.writestr(name, content, zipfile.ZIP_STORED)
    aligned, signed = WORK / "aligned.apk", WORK.parent / f"demo-{options.flavour}.apk"
    _run("zipalign", "-f", PAGE, linked, aligned)
    key = WORK.parent / "debug.keystore"
    if not key.exists():
        names = ["-alias", "debug", "-dname", "CN=Debug", "-keyalg", "EC", "-validity", 10000]
        _run("keytool", "-genkeypair", "-keystore", key, "-storepass", "android", "-keypass", "android", *names)
    _run("apksigner", "sign", "--ks", key, "--ks-pass", "pass:android", "--out", signed, aligned)
    _run("apksigner", "verify", "--min-sdk-version", MIN_SDK, signed)
    _run("zipalign", "-c", PAGE, signed)
    for name in libraries(signed):
        if (found := _page(signed, name)) % PAGE:
            raise NoApkError(f"{name} is made for pages of {found} bytes, Android 15 wants {PAGE}; take a newer AAR")
    return signed


def libraries(apk: Path) -> list[str]:
    """Native libraries in an APK."""
    with zipfile.ZipFile(apk) as file:
        return [name for name in file.namelist() if name.startswith("lib/")]


def _linked(options: argparse.Namespace, android: Path) -> Path:
    """Resources and assets; `build/r` gets the class R with their numbers."""
    assets = WORK / "assets"
    shutil.copytree(options.bundle, assets / "bundle")
    shutil.copytree(options.packs, assets / "packs", ignore=lambda _, names: {n for n in names if "." not in n})
    if options.key:
        shutil.copy(options.key, assets / "signing.pub.pem")
    sources = [
        path for path in (DEMO / "app" / "src" / part for part in ("main", options.flavour, "debug")) if path.is_dir()
    ]
    compiled = []
    for source in sources:
        if (source / "res").is_dir():
            compiled.append(WORK / f"{source.name}.zip")
            _run("aapt2", "compile", "--dir", source / "res", "-o", compiled[-1])
    manifest, symbols, linked = WORK / "AndroidManifest.xml", WORK / "R.txt", WORK / "linked.apk"
    _merged(sources).write(manifest, "utf-8", xml_declaration=True)
    versions = [
        "--min-sdk-version",
        MIN_SDK,
        "--target-sdk-version",
        TARGET_SDK,
        "--version-code",
        1,
        "--version-name",
        "0.1.0",
    ]
    stored = ["-0", "onnx", "-0", "safetensors", "-A", assets, "--debug-mode"]
    _run(
        "aapt2",
        "link",
        "-I",
        android,
        "--manifest",
        manifest,
        *versions,
        *stored,
        "--output-text-symbols",
        symbols,
        "-o",
        linked,
        *compiled,
    )
    resources.write(resources.numbered(symbols.read_text(encoding="utf-8")), DEMO / "build" / "r")
    return linked


def _merged(sources: Sequence[Path]) -> ElementTree.ElementTree:
    """The manifests of all source sets in one, as Gradle's plugin merges them: entries are added, attributes too."""
    tree = ElementTree.parse(sources[0] / "AndroidManifest.xml")
    root = tree.getroot()
    root.set("package", "pocketrank.demo")
    application = root.find("application")
    for source in sources[1:]:
        if (source / "AndroidManifest.xml").is_file():
            more = ElementTree.parse(source / "AndroidManifest.xml").getroot()
            root[:0] = list(more.iter("uses-permission"))
            for element in more.iter("application"):
                application.attrib.update(element.attrib)  # type: ignore[union-attr]
    return tree


def _dexed(flavour: str, aar: Path, r8: Path, android: Path) -> Path:
    """All code, shrunk by R8."""
    module = "app" if flavour == "online" else "app/offline"
    _run("mvn", "-B", "-q", "-f", DEMO, "package", "-DskipTests", "-pl", module, "-am")
    with zipfile.ZipFile(aar) as file:
        (WORK / "onnxruntime.jar").write_bytes(file.read("classes.jar"))
    parts = ["core", "engine-ort", *(["sync"] if flavour == "online" else []), module]
    classes = [next((DEMO / part / "target").glob("*-0.1.0.jar")) for part in parts]
    rules = WORK / "rules.pro"
    keep = "-keep class pocketrank.demo.MainActivity { *; }\n-dontobfuscate\n-dontwarn org.jetbrains.annotations.**\n"
    rules.write_text((DEMO / "app" / "proguard.pro").read_text(encoding="utf-8") + keep, encoding="utf-8")
    out = WORK / "dex"
    out.mkdir()
    # Robolectric's jar has Android's own classes alone: those of java.* come from the JDK.
    said = subprocess.run(["java", "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=True)
    java_home = next(line.split("=")[1].strip() for line in said.stderr.splitlines() if "java.home" in line)
    command = [
        "java",
        "-cp",
        r8,
        "com.android.tools.r8.R8",
        "--release",
        "--min-api",
        MIN_SDK,
        "--lib",
        android,
        "--lib",
        java_home,
    ]
    _run(*command, "--pg-conf", rules, "--output", out, *classes, WORK / "onnxruntime.jar", _fetched("kotlin"))
    return out / "classes.dex"


def _natives(aar: Path) -> dict[str, bytes]:
    """Its libraries, by their names in an APK: of every one of ABIS, or the app would not start on such a phone."""
    found = {}
    try:
        with zipfile.ZipFile(aar) as file:
            for name in file.namelist():
                parts = name.split("/")
                if parts[0] == "jni" and len(parts) == 3 and parts[1] in ABIS and parts[2].endswith(".so"):
                    found[f"lib/{parts[1]}/{parts[2]}"] = file.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise NoApkError(f"{aar}: no AAR ({error}); give that of onnxruntime-android") from None
    missing = [abi for abi in ABIS if not any(name.startswith(f"lib/{abi}/") for name in found)]
    if missing:
        raise NoApkError(f"{aar}: no libraries of {', '.join(missing)} in it; give that of onnxruntime-android")
    return found


def _page(apk: Path, library: str) -> int:
    """The least alignment of an ELF file's loadable segments, in bytes."""
    with zipfile.ZipFile(apk) as file:
        content = file.read(library)
    begin, size, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
    segments = [begin + size * number for number in range(count)]
    loaded = [at for at in segments if struct.unpack_from("<I", content, at)[0] == 1]
    return min(struct.unpack_from("<Q", content, at + 48)[0] for at in loaded)


ARTIFACTS = {
    "r8": "com.android.tools:r8:{r8.version}:jar",
    "onnxruntime": "com.microsoft.onnxruntime:onnxruntime-android:{onnxruntime.version}:aar",
    "android": "org.robolectric:android-all:{android-all.version}:jar",
    "kotlin": "org.jetbrains.kotlin:kotlin-stdlib:{kotlin.version}:jar",
}


def _fetched(name: str) -> Path:
    """A file that Maven brings, of the version in pom.xml where that has one."""
    found = ElementTree.parse(DEMO / "pom.xml").getroot().find("{*}properties")
    artifact = ARTIFACTS[name]
    for element in found if found is not None else ():
        artifact = artifact.replace("{" + element.tag.partition("}")[2] + "}", element.text or "")
    group, module, version, kind = artifact.split(":")
    target = DEMO / "build" / "fetched" / f"{module}-{version}.{kind}"
    if not target.is_file():
        options = [f"-Dartifact={artifact}", f"-DoutputDirectory={target.parent}", "-Dmdep.useBaseVersion=true"]
        try:
            _run("mvn", "-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy", *options)
        except NoApkError:
            raise NoApkError(
                f"{group}:{module}:{version} is not to be had from here; give it by hand (AAR=...)"
            ) from None
    return target


def _run(*command: object) -> None:
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if run.returncode:
        said = " ".join((run.stderr or run.stdout).split())[:500]
        raise NoApkError(f"{command[0]} failed: {said}")


if __name__ == "__main__":
    sys.exit(main())
