"""Several devices share each step: here two processes on the CPU, as several GPUs, or two machines, would be."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pocketrank import tensors
from pocketrank_cli.cli import main
from pocketrank_export import rounds
from pocketrank_export.together import Launched
from pocketrank_export.trained import Trained

from .conftest import SETTINGS, write_log
from .test_bad_logs import scores_at_the_edge_of_float32, write

LONG = SETTINGS.replace("[model]", "[model]\nmemory = false").replace(
    "steps = 60\nrounds = 2", "steps = 400\nrounds = 20"
)


# Ends with the command's code, and one more for each process that it left behind.
ENDING = """
import multiprocessing, sys
from pocketrank_cli.cli import main

code = main(["train", "--project", sys.argv[1]])
for child in multiprocessing.active_children():
    child.join(5)
sys.exit(code + len(multiprocessing.active_children()))
"""


def test_two_processes_share_the_work_and_are_interrupted_and_gone_on_with_as_one_is(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, devices in ((one, 1), (two, 2)):
        write_log(root / "data" / "events")
        (root / "pocketrank.toml").write_text(f"{LONG}patience = 20\ndevices = {devices}\n")
    assert main(["train", "--project", str(one)]) == 0

    command = [sys.executable, "-c", ENDING, str(two)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as begun:
        while begun.poll() is None and not list(two.glob("model.checkpoints/*/model/last.ckpt")):
            time.sleep(0.1)
        begun.send_signal(signal.SIGINT)
        said = begun.communicate(timeout=60)[1]
    assert (begun.returncode, said) == (
        130,
        "pocketrank: interrupted; run the same `pocketrank train` again to go on\n",
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (two / "model.checkpoints").exists()
    found, wanted = Trained.open(two / "model").validation, Trained.open(one / "model").validation
    assert found["pocketrank"] == pytest.approx(wanted["pocketrank"], abs=0.05)
    assert found["pocketrank"] > found["memory_alone"] + 0.2
    alone, shared = (tensors.read(root / "model" / "weights.safetensors")[0] for root in (one, two))
    assert not np.array_equal(alone["model.items.weight"], shared["model.items.weight"])


def test_what_one_of_two_processes_says_is_said_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, scores_at_the_edge_of_float32(), "rating", more="devices = 2")
    assert main(["train", "--project", str(tmp_path)]) == 1
    line = capfd.readouterr().err
    assert line.startswith("pocketrank: Diverged: training, round 1 of 3: the loss is not finite; lower [training] ")
    assert line.endswith("or scale the log's scores, the largest of which is 1e+38\n")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("torchrun", "asked", "advice"),
    [
        (None, "[training] devices = 2", "ask for fewer, or 0 for all there are"),
        (Launched(4, 2), "torchrun --nproc-per-node 4", "start fewer"),
    ],
)
def test_more_devices_than_there_are_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    torchrun: Launched | None,
    asked: str,
    advice: str,
) -> None:
    def refused(**_: object) -> None:
        raise rounds.MisconfigurationException("You requested gpu: [0, 1]\n But your machine only has: [0]")

    monkeypatch.setattr(rounds.lightning, "Trainer", refused)
    monkeypatch.setattr(rounds, "launched", lambda: torchrun)
    write_log(tmp_path / "data" / "events", users=8)
    (tmp_path / "pocketrank.toml").write_text(f"{SETTINGS}devices = 2\n")
    assert main(["train", "--project", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"pocketrank: BadConfig: {asked}: You requested gpu: [0, 1] But your machine only has: [0]; {advice}\n"
    )


def done_on_two_machines(roots: tuple[Path, Path], *command: str) -> list[subprocess.CompletedProcess[str]]:
    """`torchrun` as two machines would start it, each with one process, in these folders; when both have ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = f"{sys.executable} -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-port {port}"
    begun = [
        subprocess.Popen(
            [*torchrun.split(), "--node-rank", str(number), *command],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, root in enumerate(roots)
    ]
    try:
        said = [each.communicate(timeout=300) for each in begun]
    finally:
        for each in begun:
            each.kill()
    return [subprocess.CompletedProcess(one.args, one.returncode, *both) for one, both in zip(begun, said, strict=True)]


TRAIN = "-m", "pocketrank_cli.cli", "train", "--json"


# Each process writes down the weights that it judges after a round.
WATCHED = """
import os, sys
from pathlib import Path
from pocketrank_cli.cli import main
from pocketrank_export import rounds

judge = rounds.Fit.judge

def judged(self):
    weights = sum(float(value.detach().double().abs().sum()) for value in self.model.parameters())
    with Path("judged-" + os.environ["RANK"]).open("a") as file:
        file.write(f"{weights!r}\\n")
    judge(self)

rounds.Fit.judge = judged
sys.exit(main(["train", "--json"]))
"""


def test_two_machines_share_the_work_and_one_of_them_says_what_came_of_it(tmp_path: Path) -> None:
    write_log(tmp_path / "data" / "events")
    (tmp_path / "pocketrank.toml").write_text(SETTINGS)
    (tmp_path / "train.py").write_text(WATCHED)
    first, second = done_on_two_machines((tmp_path, tmp_path), "train.py")
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    facts = json.loads(first.stdout)
    assert facts["validation_ndcg_10"] > 0.4
    assert Trained.open(tmp_path / "model").validation["pocketrank"] == pytest.approx(
        facts["validation_ndcg_10"], abs=1e-4
    )
    assert not (tmp_path / "model.checkpoints").exists()
    one, other = ((tmp_path / f"judged-{rank}").read_text().splitlines() for rank in (0, 1))
    assert one == other  # what each learned from its share of a step is in both
    assert len(set(one)) == len(one) >= 4  # two rounds of two stages


def test_machines_that_share_no_disk_say_so_at_once(tmp_path: Path) -> None:
    roots = tmp_path / "one", tmp_path / "two"
    for root in roots:
        write_log(root / "data" / "events", users=8)
        (root / "pocketrank.toml").write_text(SETTINGS)
    for found, root in zip(done_on_two_machines(roots, *TRAIN), roots, strict=True):
        assert found.returncode == 1
        assert "not every machine sees what the first one writes there; put the project on a disk " in found.stderr
        assert not (root / "model").exists()


def test_all_machines_stop_where_the_loss_of_one_is_not_finite(tmp_path: Path) -> None:
    write(tmp_path, scores_at_the_edge_of_float32(), "rating")
    for found in done_on_two_machines((tmp_path, tmp_path), *TRAIN):
        assert found.returncode == 1
        assert "pocketrank: Diverged: training, round 1 of 3: the loss is not finite; " in found.stderr
    assert not (tmp_path / "model").exists()


def test_what_all_stages_left_is_written_once_by_two_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_log(tmp_path / "data" / "events", users=8)
    (tmp_path / "pocketrank.toml").write_text(SETTINGS)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Trained, "save", full)
        assert main(["train", "--project", str(tmp_path)]) == 1
    first, second = done_on_two_machines((tmp_path, tmp_path), *TRAIN)
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    assert json.loads(first.stdout)["folder"] == "model"
    assert (tmp_path / "model" / "model.json").is_file()
    assert not (tmp_path / "model.checkpoints").exists()


# The second process is lost as soon as there is a round to go on from.
LOST = """
import os, signal, sys, threading, time
from pathlib import Path
from pocketrank_cli.cli import main

def lost():
    while not list(Path().glob("model.checkpoints/*/model/last.ckpt")):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1":
    threading.Thread(target=lost, daemon=True).start()
sys.exit(main(["train"]))
"""


def test_where_one_machine_ends_the_other_says_so_in_a_line(tmp_path: Path) -> None:
    write_log(tmp_path / "data" / "events")
    (tmp_path / "pocketrank.toml").write_text(f"{LONG}patience = 20\n")
    (tmp_path / "train.py").write_text(LOST)
    first, second = done_on_two_machines((tmp_path, tmp_path), "train.py")
    assert (first.returncode, second.returncode) == (1, 1)
    assert "pocketrank: NotReady: training: another process that trains along has ended; " in first.stderr
    assert "pocketrank_export" not in first.stderr  # no traceback of ours


MEETING = """
from pathlib import Path
from pocketrank_export.together import launched, led, meet, rank_and_size

meet(Path())
print(launched(), rank_and_size(), led(lambda: rank_and_size()[0]))
try:
    led(Path("gone").read_text)
except OSError as error:
    print(type(error).__name__)
"""


def test_work_of_the_first_process_gives_or_fails_the_same_in_all(tmp_path: Path) -> None:
    (tmp_path / "meeting.py").write_text(MEETING)
    for number, found in enumerate(done_on_two_machines((tmp_path, tmp_path), "meeting.py")):
        assert found.stdout == f"Launched(processes=1, machines=2) ({number}, 2) 0\nFileNotFoundError\n", found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["meeting.py"]
