"""`pocketrank export --sign`: what is shipped is signed, and the same every time."""

import json
from pathlib import Path

import pytest

from pocketrank import Bundle
from pocketrank.config import Project
from pocketrank.errors import BadBundle
from pocketrank.signing import new_keys
from pocketrank_cli import graph_files
from pocketrank_cli.cli import main


def test_a_signed_bundle_is_the_unsigned_one_and_a_signature_and_the_same_again(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_keys(tmp_path / "signing.pem")
    for name in ("once", "again"):
        line = ["export", "--project", str(project.root), "--out", str(tmp_path / name), "--sign"]
        assert main([*line, str(tmp_path / "signing.pem"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["signed"] is True
    once, again, unsigned = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "once", tmp_path / "again", project.bundle_dir)
    )
    assert once == again
    assert {name: content for name, content in once.items() if name != "manifest.sig"} == unsigned
    assert Bundle.open(tmp_path / "once", tmp_path / "signing.pub.pem").signed_by
    with pytest.raises(BadBundle, match="not signed, and a key is demanded"):
        Bundle.open(project.bundle_dir, tmp_path / "signing.pub.pem")


def test_a_wrong_key_is_told_before_anything_is_exported(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_keys(tmp_path / "signing.pem")
    key = tmp_path / "signing.pub.pem"
    line = ["export", "--project", str(tmp_path / "no project"), "--out", str(tmp_path / "out"), "--sign", str(key)]
    assert main(line) == 1
    wanted = f"{key}: a public key; give the private key, or make a pair with: pocketrank keys new"
    assert capsys.readouterr().err == f"pocketrank: BadKey: {wanted}\n"
    assert not (tmp_path / "out").exists()


def test_tflite_files_say_what_their_converter_wrote(project: Project, tmp_path: Path) -> None:
    for path in project.bundle_dir.glob("*.tflite"):
        found = graph_files.facts(path)
        assert found["schema"] == 3
        assert int(found["least_runtime"].partition(".")[0]) == 2, found
    content = (project.bundle_dir / "score.tflite").read_bytes()
    spoiled = tmp_path / "x.tflite"
    for at in range(0, len(content), 7):
        for torn in (content[:at], content[:at] + b"\xff\xff\xff\x7f" + content[at + 4 :]):
            spoiled.write_bytes(torn)
            assert json.dumps(graph_files.facts(spoiled))
