"""What converters say: heard from every channel, and told unless it is known not to matter."""

import logging
import os
import warnings

import pytest

from pocketrank_export.chatter import heard, remarks


def test_what_is_printed_logged_or_warned_of_is_told_once_each_and_none_of_it_on_our_streams(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handlers = list(logging.root.handlers)
    with heard() as found:
        os.write(1, b"by native code\n")
        os.write(2, b"W0000 00:00:1795660948.768845   31646 pass.cc:44] an op is left out\n")
        logging.warning("by a logger")
        logging.getLogger("quantizer").info("how far it is")
        warnings.warn("an axis is out of range", UserWarning, stacklevel=1)
        warnings.warn("an axis is out of range", UserWarning, stacklevel=1)
    assert sorted(found) == [
        "an axis is out of range",
        "by a logger",
        "by native code",
        "pass.cc:44] an op is left out",
    ]
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers


def test_information_progress_and_what_packages_say_of_each_others_versions_are_not_told() -> None:
    with heard() as found:
        os.write(2, b"\n  \nI0000 00:00:1795660948.768845   31646 flatbuffer_export.cc:4410] Estimated count of ops\n")
        os.write(2, b"Running Calibration::  10%|#   | 1/10\rRunning Calibration:: 100%|####| 10/10\n")
        logging.warning("Please consider to run pre-processing before quantization. Refer to example: ...")
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
            warnings.warn("use another name", category, stacklevel=1)
    assert found == []


def test_a_remark_is_one_line_of_bounded_length_without_its_loggers_stamp() -> None:
    said = ["WARNING:root:it  is\tso", "W1126 02:42:20.007000 31646 torch/onnx.py:107] it is so", "x" * 5000]
    assert remarks(said) == ["it is so", "torch/onnx.py:107] it is so", "x" * 300]


def test_what_was_said_is_shown_where_a_converter_fails_and_not_at_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        with heard():
            os.write(2, b"why it fails\n")
            raise error

    for error, shown in ((RuntimeError("no"), "why it fails\n"), (KeyboardInterrupt(), "")):
        with pytest.raises(type(error)):
            fail(error)
        assert capfd.readouterr().err == shown
