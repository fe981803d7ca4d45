"""Who made a bundle: a key that is demanded is the first thing held against it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from pocketrank import Bundle, Ranker
from pocketrank.errors import BadBundle, BadKey, MissingExtra, UsageError
from pocketrank.signing import new_keys, signer
from pocketrank_cli.cli import main

PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
OPEN = serialization.NoEncryption()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    new_keys(tmp_path / "a.pem")
    new_keys(tmp_path / "b.pem")
    return tmp_path


@pytest.fixture
def signed(own_bundle: Path, keys: Path) -> Path:
    """A bundle signed with key a."""
    manifest = (own_bundle / "manifest.json").read_bytes()
    (own_bundle / "manifest.sig").write_bytes(signer(keys / "a.pem")(manifest))
    return own_bundle


def test_a_signed_bundle_opens_with_its_key_and_says_whose_it_is(signed: Path, keys: Path) -> None:
    public = keys / "a.pub.pem"
    for key in (public, str(public), public.read_bytes()):
        fingerprint = Bundle.open(signed, key).signed_by
        assert fingerprint
        assert len(fingerprint) == 16
    assert Bundle.open(signed).signed_by is None
    with Ranker.open(signed, verify_key=public) as ranker:
        assert ranker.rank(k=1)


def test_the_signature_is_ecdsa_p256_over_the_manifests_bytes_and_the_same_every_time(signed: Path, keys: Path) -> None:
    """Checked with the library alone, as another client would."""
    public = serialization.load_pem_public_key((keys / "a.pub.pem").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    manifest, signature = ((signed / f"manifest.{end}").read_bytes() for end in ("json", "sig"))
    public.verify(signature, manifest, ec.ECDSA(hashes.SHA256()))
    assert signer(keys / "a.pem")(manifest) == signature
    assert signer(keys / "b.pem")(manifest) != signature


UNSIGNED = "{}: not signed, and a key is demanded; fetch the signed one, or sign with: pocketrank export --sign KEY"
UNFIT = (
    "{}: the signature does not fit: another key's, or manifest.json was altered; fetch the bundle again, "
    "or give the public key of whoever signed it"
)


def unsign(bundle: Path) -> None:
    (bundle / "manifest.sig").unlink()


def alter(bundle: Path) -> None:
    content = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(content.replace(b'"ring"', b'"gone"'))


def flip(bundle: Path) -> None:
    content = bytearray((bundle / "manifest.sig").read_bytes())
    content[-1] ^= 1
    (bundle / "manifest.sig").write_bytes(content)


def truncate(bundle: Path) -> None:
    (bundle / "manifest.sig").write_bytes((bundle / "manifest.sig").read_bytes()[:-1])


def blank(bundle: Path) -> None:
    (bundle / "manifest.sig").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "key", "message"),
    [
        (unsign, "a", UNSIGNED),
        (lambda _: None, "b", UNFIT),
        (alter, "a", UNFIT),
        (flip, "a", UNFIT),
        (truncate, "a", UNFIT),
        (blank, "a", UNFIT),
        (
            lambda bundle: (bundle / "manifest.sig").write_bytes(bytes(73)),
            "a",
            "{}/manifest.sig: more than 72 bytes, which it never has; fetch or export the bundle again",
        ),
    ],
)
def test_what_the_key_did_not_sign_is_refused_before_anything_else_is_read(
    signed: Path, keys: Path, damage: Callable[[Path], Any], key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(signed)
    opened: list[str] = []
    real = os.open

    def watched(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(Path(path).name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", watched)
    with pytest.raises(BadBundle) as caught:
        Bundle.open(signed, keys / f"{key}.pub.pem")
    assert str(caught.value) == message.format(signed)
    assert set(opened) <= {"manifest.json", "manifest.sig"}
    assert "manifest.json" in opened


def test_a_signed_bundles_files_are_held_against_their_hashes(signed: Path, keys: Path) -> None:
    content = bytearray((signed / "golden.safetensors").read_bytes())
    content[-1] ^= 1
    (signed / "golden.safetensors").write_bytes(content)
    with pytest.raises(BadBundle, match=r"golden\.safetensors: altered: sha256"):
        Bundle.open(signed, keys / "a.pub.pem")


def pems(folder: Path) -> dict[str, Path]:
    """Files that are no key to verify with."""
    private = ec.generate_private_key(ec.SECP256R1())
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    contents = {
        "noise": b"key",
        "empty": b"",
        "private": private.private_bytes(PEM, PKCS8, OPEN),
        "secret": private.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"x")),
        "public": private.public_key().public_bytes(PEM, spki),
        "p384": ec.generate_private_key(ec.SECP384R1()).private_bytes(PEM, PKCS8, OPEN),
        "p384 public": ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(PEM, spki),
        "rsa public": rsa.generate_private_key(65537, 2048).public_key().public_bytes(PEM, spki),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in [*contents, "nowhere"]}


WROTE = "give the .pub.pem that `pocketrank keys new` wrote"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file; make a pair of keys with: pocketrank keys new"),
        ("noise", f"not a public key in PEM; {WROTE}"),
        ("empty", f"not a public key in PEM; {WROTE}"),
        ("private", f"a private key, which no device may hold; {WROTE}"),
        ("p384 public", f"not a key of the curve P-256; {WROTE}"),
        ("rsa public", f"not a key of the curve P-256; {WROTE}"),
    ],
)
def test_what_cannot_verify_is_named(signed: Path, tmp_path: Path, name: str, message: str) -> None:
    path = pems(tmp_path)[name]
    with pytest.raises(BadKey) as caught:
        Bundle.open(signed, path)
    assert str(caught.value) == f"{path}: {message}"
    if path.exists():
        with pytest.raises(BadKey) as caught:
            Bundle.open(signed, path.read_bytes())
        assert str(caught.value) == f"the public key: {message}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file; make a pair of keys with: pocketrank keys new"),
        ("noise", "not a private key in PEM; give the private key, or make a pair with: pocketrank keys new"),
        ("public", "a public key; give the private key, or make a pair with: pocketrank keys new"),
        ("secret", "has a passphrase; give a private key without one"),
        ("p384", "not a key of the curve P-256; make one with: pocketrank keys new"),
    ],
)
def test_what_cannot_sign_is_named(tmp_path: Path, name: str, message: str) -> None:
    path = pems(tmp_path)[name]
    with pytest.raises(BadKey) as caught:
        signer(path)
    assert str(caught.value) == f"{path}: {message}"


def test_without_the_library_the_extra_is_named(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtra) as caught:
        Bundle.open(signed, keys / "a.pub.pem")
    wanted = "a signature needs cryptography; install it with: pip install 'pocketrank[crypto]'"
    assert str(caught.value) == wanted
    assert Bundle.open(signed).signed_by is None


def test_new_keys_are_private_and_never_take_the_place_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "signing.pem"
    assert main(["keys", "new", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["private"], facts["public"]) == (str(path), str(path.with_name("signing.pub.pem")))
    assert path.stat().st_mode & 0o777 == 0o600
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert set(before) == {"signing.pem", "signing.pub.pem"}
    assert b"PRIVATE" not in before["signing.pub.pem"]
    assert main(["keys", "new", str(path)]) == 2
    wanted = f"pocketrank: UsageError: {path}: is there already, and keys are never overwritten; give another path\n"
    assert capsys.readouterr().err == wanted
    path.unlink()
    with pytest.raises(UsageError, match=r"signing\.pub\.pem: is there already"):
        new_keys(path)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        "signing.pub.pem": before["signing.pub.pem"]
    }


def test_a_key_that_cannot_be_written_whole_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        new_keys(tmp_path / "signing.pem")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["rank --bundle {}", "observe p-1 --cache c.db --bundle {}", "verify {} --engine onnx", "inspect {}"]
)
def test_every_command_that_opens_a_bundle_can_demand_a_key(
    line: str, signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(keys)
    assert main([*line.format(signed).split(), "--verify-key", "a.pub.pem"]) == 0
    assert main([*line.format(signed).split(), "--verify-key", "b.pub.pem"]) == 1
    assert capsys.readouterr().err == f"pocketrank: BadBundle: {UNFIT.format(signed)}\n"


def test_inspect_says_whether_a_signature_is_there_and_was_checked(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*more: str) -> tuple[str, Any]:
        assert main(["inspect", str(signed), "--json", *more]) == 0
        facts = json.loads(capsys.readouterr().out)
        return facts["signature"], facts["signed_by"]

    assert found() == ("present, not checked", None)
    state, fingerprint = found("--verify-key", str(keys / "a.pub.pem"))
    assert (state, fingerprint) == ("valid", Bundle.open(signed, keys / "a.pub.pem").signed_by)
    unsign(signed)
    assert found() == ("none", None)
