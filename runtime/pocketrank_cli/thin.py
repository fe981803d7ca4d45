"""`python -m pocketrank_cli.thin rank ...`: the device's commands where only the device's packages can be imported.

Everything but the standard library, numpy, safetensors, one engine, httpx2 and cryptography with what they need is
refused by name, so what works here works on a device where nothing else is installed.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ALLOWED = sys.stdlib_module_names | {
    "pocketrank",
    "pocketrank_cli",
    "numpy",
    "safetensors",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "flatbuffers",
    "google",
    *("httpx2", "httpcore2", "h11", "anyio", "idna", "truststore", "typing_extensions"),  # for `sync`
    *("cryptography", "_cffi_backend"),  # where a bundle is signed, or a cache encrypted
    *("keyring", "jaraco", "more_itertools", "backports", "jeepney", "secretstorage"),  # where its key is the OS's
}


class DeviceOnly(MetaPathFinder):
    """Refuses every package that a device does not have."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for a package that is not allowed; leave the others to the usual finders."""
        top = fullname.partition(".")[0]
        if top not in ALLOWED:
            raise ModuleNotFoundError(f"{top} is not on the device", name=top)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the device's commands under the guard; exit codes as `pocketrank`."""
    sys.meta_path.insert(0, DeviceOnly())
    from pocketrank_cli.cli import main as run  # noqa: PLC0415
    from pocketrank_cli.commands import COMMANDS  # noqa: PLC0415

    return run(argv, {command.name: command for command in COMMANDS})


if __name__ == "__main__":
    sys.exit(main())
