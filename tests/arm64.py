"""The device's part on arm64 without a phone: aarch64 wheels in Debian's aarch64 Python, emulated by qemu-user.

`python -m tests.arm64 [DUMP]` (`make test-arm64`) replays a dump there and here. What it fetches stays in the folder
`arm64` of this environment: Debian packages, unpacked without being installed, and wheels.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UV = Path(sys.executable).parent / "uv"
CPU = "cortex-a76"
PLATFORM = "aarch64-manylinux_2_28"
PACKAGES = "python3", "libstdc++6", "libgomp1"
SOME_S = 300  # for one step of the set-up
# onnxruntime reads what the processor can from here; the host's would tell of another one.
CPUINFO = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""


class Arm64MissingError(Exception):
    """It cannot be set up here; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Arm64:
    """An emulated aarch64: the command that starts its Python, and where wheels are, by engine."""

    python: list[str]
    site: dict[str, Path]

    def replay(self, dump: Path, engine: str) -> dict[str, Any]:
        """What `replay` says of a dump there."""
        paths = [ROOT / "runtime", self.site[engine]]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*self.python, str(ROOT / "tests" / "replay.py"), str(dump), engine]
        with tempfile.TemporaryDirectory() as home:
            run = subprocess.run(command, env={**env, "HOME": home}, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{engine} on arm64: {run.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return found


def set_up(folder: Path = Path(sys.prefix) / "arm64") -> Arm64:
    """Fetch and unpack what is not in the folder yet.

    Raises:
        Arm64MissingError: no qemu-user, no apt, or something cannot be fetched.
    """
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        raise Arm64MissingError("no qemu-aarch64 here; install it (Debian, Ubuntu: apt install qemu-user-static)")
    wanted = {
        engine: [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][engine]] for engine in ("onnx", "litert")
    }
    told = json.dumps([PACKAGES, PLATFORM, CPUINFO, wanted, (ROOT / "constraints.txt").read_text(encoding="utf-8")])
    ready = folder / hashlib.sha256(told.encode()).hexdigest()[:16]
    if not ready.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "root").mkdir(parents=True)
        _unpack_debian(folder)
        for engine, requirements in wanted.items():
            _wheels(folder / engine, _python(folder).name.removeprefix("python"), requirements)
        ready.touch()
    start = [qemu, "-cpu", CPU, "-L", str(folder / "root"), str(_python(folder))]
    return Arm64(start, {engine: folder / engine for engine in wanted})


def _python(folder: Path) -> Path:
    found = sorted((folder / "root" / "usr" / "bin").glob("python3.[0-9]*"))
    if not found:
        raise Arm64MissingError("Debian's python3 for arm64 has no python3.N in it; the packages have changed")
    return found[0]


def _unpack_debian(folder: Path) -> None:
    """Debian's Python for arm64 with what it needs, from the sources that this machine's apt knows."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Arm64MissingError("no apt-get here, which fetches Debian's Python for arm64; run it on a Debian")
    apt = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "conf").write_text(
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false";\n'
        'APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "2";\n'
        f'Dir::State "{apt}"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}";\n'
    )
    env = {**os.environ, "APT_CONFIG": str(apt / "conf"), "LC_ALL": "C"}
    _run(["apt-get", "-qq", "update"], "the package lists for arm64", env)
    _run(["apt-get", "-qq", "-y", "--download-only", "install", *PACKAGES], "Debian's Python for arm64", env)
    for package in sorted((apt / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(folder / "root")], package.name, env)
    (folder / "root" / "proc").mkdir()
    (folder / "root" / "proc" / "cpuinfo").write_text(CPUINFO)
    shutil.rmtree(apt)


def _wheels(target: Path, version: str, requirements: list[str]) -> None:
    options = ["--python-platform", PLATFORM, "--python-version", version, "--only-binary", ":all:", "--no-config"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    command = [str(UV), "pip", "install", "-q", *options, *constraints, "--target", str(target), *requirements]
    _run(command, f"aarch64 wheels of {', '.join(requirements)}", dict(os.environ))


def _run(command: list[str], what: str, env: dict[str, str]) -> None:
    try:
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=SOME_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Arm64MissingError(f"cannot fetch {what}: {' '.join(str(error).split())}") from None
    if run.returncode:
        said = (run.stderr.strip() or run.stdout.strip() or f"exit {run.returncode}").splitlines()[-1]
        raise Arm64MissingError(f"cannot fetch {what}: {said}")


def main(arguments: list[str]) -> int:
    """Print a table, one line an engine and machine; 1 where something differs or it cannot be set up."""
    from .replay import replay

    try:
        there = set_up()
    except Arm64MissingError as error:
        print(f"test-arm64: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as made:
        dump = Path(arguments[0]) if arguments else Path(made) / "dump"
        if not arguments:
            from pocketrank_export.dump import write

            write(dump)
        found = [run(dump, engine) for engine in there.site for run in (replay, there.replay)]
    for one in found:
        golden, ranked = (f"{one[name]:.1e}" for name in ("golden_max_abs_diff", "rankings_max_abs_diff"))
        told = f"golden cases within {golden} of torch, {one['rankings']} rankings within {ranked}"
        print(f"{one['engine']:<7} {one['machine']:<8} {told}, {len(one['wrong'])} wrong")
        print("".join(f"        {line}\n" for line in one["wrong"]), end="")
    is_right = not any(one["wrong"] for one in found)
    print("OK: the same orders" if is_right else "DIFFERENT")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
