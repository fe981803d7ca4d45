"""Inference engines behind one small interface. The only module that imports onnxruntime or a LiteRT.

Set for phones: one thread by default, models by their path, so that an engine may map them, memory held in reserve for
the catalogue alone, and onnxruntime's telemetry off: it is on in its builds since 1.29 and would write below the user's
cache folder.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from pocketrank.errors import BadBundle, MissingExtra, UsageError, one_line
from pocketrank.external_data import locations

Arrays = dict[str, npt.NDArray[Any]]


class Graph(Protocol):
    """One loaded graph.

    Attributes:
        batch: rows the graph takes at once; 0 where any number does.
    """

    batch: int

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name.

        Raises:
            BadBundle: the graph does not take these inputs: it was made for other sizes, or is another graph.
        """
        ...


_BESIDE = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class OnnxGraph:
    """A graph run by onnxruntime; every axis it declares dynamic may have any size.

    Small graphs take 4 MB less without memory of their own between runs, in the same time. One with constants, a whole
    catalogue's, takes megabytes at every run, which the system might give anew each time; so would any large graph.
    """

    engine, suffix = "onnx", ".onnx"
    batch = 0

    def __init__(
        self, path: Path, threads: int, constants: Mapping[str, npt.NDArray[Any]], *, keeps_memory: bool = False
    ) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime  # noqa: PLC0415

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = keeps_memory or bool(constants)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
        if values:
            options.add_external_initializers(list(constants), values)  # copied: nothing is read of them afterwards
        if not all(map(_BESIDE.fullmatch, locations(path.read_bytes()))):
            raise ValueError("it names data that is not beside it")
        self._path = path
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        # The class around it asks for the name of every input at every run, a tenth of a small graph's time.
        self._run = getattr(self._session, "_sess", self._session).run
        self._inputs = {given.name for given in self._session.get_inputs()}
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name."""
        if inputs.keys() != self._inputs:
            wants = ValueError(f"it takes {', '.join(sorted(self._inputs))}, not {', '.join(sorted(inputs)) or 'any'}")
            raise _unfit(self._path, self.engine, "run", wants)
        try:
            return dict(zip(self._outputs, self._run(self._outputs, dict(inputs), None), strict=True))
        except Exception as error:  # as for `load`
            raise _unfit(self._path, self.engine, "run", error) from None


class LiteRtGraph:
    """A graph run by LiteRT; every shape is fixed, and the batch is 1."""

    engine, suffix = "litert", ".tflite"
    batch = 1
    _module = "ai_edge_litert.interpreter"

    def __init__(self, path: Path, threads: int, constants: Mapping[str, npt.NDArray[Any]]) -> None:
        if constants:
            raise ValueError(f"{path}: a TFLite graph takes no constants from outside")
        interpreter = importlib.import_module(self._module).Interpreter(str(path), num_threads=threads)
        self._path = path
        self._interpreter = interpreter  # the runner does not keep it alive
        self._runner = interpreter.get_signature_runner()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name."""
        try:
            found: Arrays = self._runner(**inputs)
        except Exception as error:  # as for `load`
            raise _unfit(self._path, self.engine, "run", error) from None
        return found


class TfliteGraph(LiteRtGraph):
    """The same by tflite-runtime, for Python 3.11 with numpy < 2."""

    engine = "tflite"
    _module = "tflite_runtime.interpreter"


def _unfit(path: Path, engine: str, what: str, error: Exception) -> BadBundle:
    return BadBundle(f"{path}: engine {engine} cannot {what} it ({one_line(error)}); export the bundle again")


ENGINES: dict[str, tuple[type[OnnxGraph] | type[LiteRtGraph], str]] = {
    "onnx": (OnnxGraph, "onnxruntime"),
    "litert": (LiteRtGraph, "ai_edge_litert"),
    "tflite": (TfliteGraph, "tflite_runtime"),
}


def installed() -> list[str]:
    """Names of the engines whose package is installed, preferred first."""
    return [name for name, (_, package) in ENGINES.items() if importlib.util.find_spec(package)]


def load(
    folder: Path,
    name: str,
    engine: str | None = None,
    threads: int = 1,
    constants: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Graph:
    """Load one graph of a bundle.

    Args:
        folder: the bundle.
        name: "encoder", "state", "segments", "session", "memory", "score" or "catalogue".
        engine: "onnx", "litert" or "tflite"; None takes the first one installed.
        threads: threads the engine may use.
        constants: tensors that the graph names and leaves to whoever loads it ("onnx").

    Raises:
        UsageError: no engine of that name.
        MissingExtra: the engine is not installed, or none is.
        BadBundle: the bundle has no such graph for this engine, or the engine cannot read it.
    """
    chosen = choose(engine)
    graph, _ = ENGINES[chosen]
    path = folder / f"{name}{graph.suffix}"
    if not path.is_file():
        raise BadBundle(f"{path}: missing, engine {chosen} needs it; take another engine or export the bundle again")
    try:
        return graph(path, threads, constants or {})
    except ImportError:
        raise
    except Exception as error:  # what an engine raises on a broken graph is its own affair
        raise _unfit(path, chosen, "load", error) from None


def choose(engine: str | None) -> str:
    """The engine asked for, or the first one installed; raises as `load`."""
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"no engine {engine!r}; known are {', '.join(ENGINES)}")
    there = installed()
    if engine is None and not there:
        raise MissingExtra("no inference engine is installed; install one with: pip install 'pocketrank[onnx]'")
    if engine is not None and engine not in there:
        package = ENGINES[engine][1]
        raise MissingExtra(f"engine {engine} needs {package}; install it with: pip install 'pocketrank[{engine}]'")
    return engine or there[0]
