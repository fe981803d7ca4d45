"""One mutation, tried: it is refused in a line by the error its kind has, or it ranks with finite scores.

Bundles lie in one folder, of which each trial changes what it spoils and puts it back. Graphs are loaded once for
each content: an engine's own robustness is not in question here.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import traceback
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx

from pocketrank import engines
from pocketrank.attributes import FILE_NAME as ATTRIBUTES
from pocketrank.errors import BadBundle, BadPack, BundleMismatch
from pocketrank.pack import Pack
from pocketrank.ranker import Ranker
from pocketrank.signing import SIGNATURE
from pocketrank_cli import inspect_command

from .mutations import NAMES, spoil_bytes, spoil_json, spoil_numbers, spoil_tensors
from .seeds import START_S, Seed, refreshed

LONGEST_S = 5.0
NOW_S = START_S + 10**7
M = "manifest.json"
SESSION = "session.onnx"
OTHERS = ("items.safetensors", "item_ids.json", "golden.safetensors")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `refused` or `ranked`, or what was wrong."""

    kind: str
    said: str
    wrong: str = ""


class Hung(BaseException):
    """The trial took longer than it may."""


class Bench:
    """Seeds, and a place to spoil them."""

    def __init__(self, seeds: list[Seed], work: Path) -> None:
        self._seeds, self._folder, self._pack = seeds, work / "bundle", work / "pack"
        self._rankers = [self._ranker(seed) for seed in seeds]

    def _ranker(self, seed: Seed) -> Ranker:
        self._lay(seed.files)
        return Ranker.open(self._folder, engine="onnx", verify_key=seed.key)

    def run(self, seed: int, number: int) -> tuple[str, Outcome]:
        """Trial `number` of a run, the same every time; what was spoiled, and how it ended."""
        rng = Random(f"{seed}/{number}")
        chosen = rng.randrange(len(self._seeds))
        trial = self._try_pack if rng.random() < 0.5 else self._try_bundle
        name = "?"
        try:
            with _within(LONGEST_S):
                name, outcome = trial(rng, chosen)
        except Hung:
            outcome = Outcome("hung", f"longer than {LONGEST_S} s", f"hung for {LONGEST_S} s")
        except Exception:  # whatever it is, it is not one of ours
            outcome = Outcome("raised", "", traceback.format_exc())
        return name, outcome

    def _try_pack(self, rng: Random, chosen: int) -> tuple[str, Outcome]:
        packs = self._seeds[chosen].packs
        content, other = rng.choice(packs), rng.choice(packs)
        name, spoiled = rng.choice(
            [("pack bytes", spoil_bytes(rng, content, other)), ("pack tensors", spoil_tensors(rng, content))]
        )
        self._pack.write_bytes(spoiled)
        ranker = self._rankers[chosen]
        ranker.forget()
        try:
            ranker.load(self._pack)
        except (BadPack, BundleMismatch) as error:
            return name, _refused(error)
        report = inspect_command.INSPECT.run(_namespace(self._pack))
        json.loads(report.json()), str(report).encode()
        if not _is_plain(spoiled[8 : 8 + int.from_bytes(spoiled[:8], "little")]):
            return name, Outcome("ranked", "", "loaded, although JSON readers do not agree on its header")
        if Pack.open(self._pack).to_bytes() != Pack.from_bytes(ranker._holding.cache.pack or b"", "cached").to_bytes():
            return name, Outcome("ranked", "", "another pack is cached than was loaded")
        return name, _ranked(ranker)

    def _try_bundle(self, rng: Random, chosen: int) -> tuple[str, Outcome]:
        seed = self._seeds[chosen]
        other = self._seeds[1 - chosen] if len(self._seeds) > 1 else seed
        spoiled = rng.choice(WAYS)(rng, seed, other)
        key, kind, lies = None, spoiled.kind, spoiled.lies
        if rng.random() < 0.2:
            key, kind, lies = seed.key, f"{kind}, key demanded", spoiled.files != seed.files
        self._lay(spoiled.files)
        try:
            report = inspect_command.INSPECT.run(_namespace(self._folder))
            json.loads(report.json()), str(report).encode()
            ranker = Ranker.open(self._folder, engine="onnx", verify_key=key)
        except BadBundle as error:
            return kind, _refused(error)
        if not _is_plain((self._folder / M).read_bytes()):
            return kind, Outcome("ranked", "", "opened, although JSON readers do not agree on its manifest")
        "".join(map(str, ranker.bundle.items.ids)).encode()  # whatever ranks first must be printable
        with contextlib.closing(ranker):
            try:
                with contextlib.suppress(BadPack, BundleMismatch):
                    self._pack.write_bytes(rng.choice(seed.packs))
                    ranker.load(self._pack)
                outcome = _ranked(ranker)
            except BadBundle as error:  # a graph made for other sizes
                outcome = _refused(error)
        if lies and outcome.kind == "ranked":
            return kind, Outcome(
                "ranked", "", "opened, although its files are not what the manifest says, or not signed"
            )
        return kind, outcome

    def _lay(self, files: dict[str, Any]) -> None:
        """Make the folder hold just these: bytes, or a function that makes what is no file."""
        self._folder.mkdir(exist_ok=True)
        for entry in os.scandir(self._folder):
            there = files.get(entry.name)
            is_file = entry.is_file(follow_symlinks=False)
            if is_file and isinstance(there, bytes) and Path(entry.path).read_bytes() == there:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()
        for name, content in files.items():
            path = self._folder / name
            if isinstance(content, bytes):
                if not path.exists():
                    path.write_bytes(content)
            else:
                content(path)


@dataclass(frozen=True)
class Spoiled:
    """A bundle after something was done to it.

    Attributes:
        kind: what was. files: name -> content, or what makes something else of that name.
        lies: the manifest does not say so of its files, for certain; whoever opens it must see that.
    """

    kind: str
    files: dict[str, Any]
    lies: bool = False


def _manifest_entries(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    return Spoiled("manifest entries", {**seed.files, M: spoil_json(rng, seed.files[M])})


def _manifest_numbers(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    return Spoiled("manifest numbers", {**seed.files, M: spoil_numbers(rng, seed.files[M])})


def _manifest_bytes(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    return Spoiled("manifest bytes", {**seed.files, M: spoil_bytes(rng, seed.files[M], other.files[M])})


def _file_bytes(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    name = rng.choice([*OTHERS, *seed.graphs])
    content = spoil_bytes(rng, seed.files[name], other.files.get(name, b""))
    return Spoiled("file bytes", {**seed.files, name: content}, content != seed.files[name])


def _hashed_bytes(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    name = rng.choice(OTHERS)
    content = spoil_bytes(rng, seed.files[name], other.files[name])
    return Spoiled("file bytes, hashed anew", refreshed({**seed.files, name: content}))


def _hashed_tensors(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    name = rng.choice(["items.safetensors", "items.safetensors", "golden.safetensors"])
    files = {**seed.files, name: spoil_tensors(rng, seed.files[name])}
    return Spoiled(f"{name.partition('.')[0]} tensors, hashed anew", refreshed(files))


def _hashed_ids(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    files = {**seed.files, "item_ids.json": spoil_json(rng, seed.files["item_ids.json"])}
    return Spoiled("item ids, hashed anew", refreshed(files))


def _hashed_attributes(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    content = next((one.files[ATTRIBUTES] for one in (seed, other) if ATTRIBUTES in one.files), b"{}")
    return Spoiled("attributes, hashed anew", refreshed({**seed.files, ATTRIBUTES: spoil_json(rng, content)}))


def _swapped(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    source = rng.choice([seed, other])
    name, its = rng.choice([*OTHERS, *seed.graphs]), rng.choice([*OTHERS, *source.graphs])
    files = {**seed.files, name: source.files[its]}
    if rng.random() < 0.3:
        return Spoiled("another file", files, files[name] != seed.files[name])
    return Spoiled("another file, hashed anew", refreshed(files))


def _elsewhere(rng: Random, seed: Seed, other: Seed) -> Spoiled:
    """A graph that would have the engine read its weights outside the bundle."""
    parted = seed if SESSION in seed.files else other
    session = onnx.load_model_from_string(parted.files.get(SESSION, b""))
    for weight in session.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = rng.choice(["/dev/zero", "..", "../pack", "../bundle/state.onnx", "/etc/hostname", "a/b"])
    files = {**parted.files, SESSION: session.SerializeToString()}
    return Spoiled("data elsewhere, hashed anew", refreshed(files), lies=bool(session.graph.node))


def _missing(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    gone = rng.choice(sorted(seed.files))
    files = {name: content for name, content in seed.files.items() if name != gone}
    return Spoiled("file missing", files, gone != SIGNATURE)


def _not_a_file(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    name = rng.choice([*OTHERS, *seed.graphs, M, SIGNATURE, "extra", "extra.onnx", "..x"])
    make = rng.choice([_folder, _pipe, _link, _link_to_itself, _device, b""])
    return Spoiled("not a file, or one too many", {**seed.files, name: make}, name != SIGNATURE)


def _named(rng: Random, seed: Seed, _: Seed) -> Spoiled:
    manifest = json.loads(seed.files[M])
    files, name = manifest["files"], rng.choice(sorted(manifest["files"]))
    new = rng.choice([*NAMES, "..", "score.onnx/", "./score.onnx", SIGNATURE, "/dev/zero", "CON"])
    files[new] = files.pop(name) if rng.random() < 0.5 else dict(files[name])
    content = json.dumps(manifest).encode("utf-8", "surrogatepass")
    return Spoiled("names in the manifest", {**seed.files, M: content}, new not in seed.files)


WAYS = [
    *(_manifest_entries, _manifest_entries, _manifest_entries, _manifest_numbers, _manifest_numbers, _manifest_bytes),
    *(_file_bytes, _hashed_bytes),
    *(
        _hashed_tensors,
        _hashed_tensors,
        _hashed_tensors,
        _hashed_ids,
        _hashed_attributes,
        _swapped,
        _elsewhere,
        _missing,
        _not_a_file,
        _named,
    ),
]


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "pack")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _ranked(ranker: Ranker) -> Outcome:
    """Rank with some events; scores, their reasons and the items must be sound."""
    ids = ranker.bundle.items.ids
    ranker.observe(ids[0], "buy", at=NOW_S - 300_000)  # a segment that closes, so that the encoder runs
    ranker.observe("nothing we know", "view", at=NOW_S - 20)
    ranker.observe(ids[-1], ranker.bundle.manifest.behaviors[-1], at=NOW_S - 10)
    ranking = ranker.rank(k=5, now=NOW_S)
    reasons = ranking[0].reasons
    if not np.isfinite(ranking.scores).all():
        return Outcome("ranked", "", f"scores {ranking.scores}")
    if not all(np.isfinite(reason.added) for reason in reasons):
        return Outcome("ranked", "", f"reasons {reasons}")
    if len(ranking) != min(5, len(ids)) or not all(hit.item in ids for hit in ranking):
        return Outcome("ranked", "", f"hits {list(ranking)}")
    str(reasons).encode()
    for name in ranker.bundle.attributes.names:
        if len(ranker.rank(k=5, now=NOW_S, where={name: ["dairy", "fresh", "a"]})) > len(ids):
            return Outcome("ranked", "", f"hits of {name!r}")
    return Outcome("ranked", "")


def _refused(error: Exception) -> Outcome:
    said = str(error)
    is_one = said.isprintable() and 10 < len(said) < 1000
    return Outcome("refused", said, "" if is_one else f"not one readable line: {said!r}")


def _is_plain(content: bytes) -> bool:
    """Whether a JSON text means the same to every reader: no name twice, no NaN, no integer beyond 64 bits."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError(pairs)
        return dict(pairs)

    def number(text: str) -> float:
        if not abs(float(text)) < 2.0**1023:
            raise ValueError(text)
        return float(text)

    def integer(text: str) -> int:
        return int(text).to_bytes(8, "little", signed=True)[0]

    try:
        json.loads(content, object_pairs_hook=once, parse_constant=number, parse_float=number, parse_int=integer)
    except (ValueError, OverflowError):
        return False
    return True


def _namespace(path: Path) -> Namespace:
    return Namespace(path=path, verify_key=None)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def graphs_kept() -> Iterator[None]:
    """Load no graph twice, as long as this is open."""
    kept: dict[tuple[str, ...], engines.Graph] = {}
    real = engines.load

    def load(folder: Path, name: str, engine: str | None = None, threads: int = 1, constants: Any = None) -> Any:
        parts = [folder / f"{name}.onnx", *([folder / "state.onnx"] if name == "session" else [])]
        if not all(path.is_file() for path in parts):
            return real(folder, name, engine, threads, constants)
        contents = [*(path.read_bytes() for path in parts), *(array.tobytes() for array in (constants or {}).values())]
        key = tuple(hashlib.sha256(content).hexdigest() for content in contents)
        if key not in kept:
            if len(kept) > 200:
                kept.clear()
            kept[key] = real(folder, name, engine, threads, constants)
        return kept[key]

    engines.load = load  # type: ignore[assignment]
    try:
        yield
    finally:
        engines.load = real
