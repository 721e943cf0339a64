"""Writes tests/golden/tensorrt_api.json: for each name in the doubles, the versions of the bindings that have it.

    python -m tests.tensorrt_api tensorrt=10.16.1.11=DIR ... cuda=13.5.0=DIR

DIR holds `tensorrt` or `cuda.bindings` of that version and is put on the module path. An import of the bindings needs
the library beside them, but no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests.test_tensorrt_names import RECORD, used_names

_LOOK = """
import importlib, json, sys
sys.path.insert(0, sys.argv[2])
module = importlib.import_module({"cuda": "cuda.bindings.runtime"}.get(sys.argv[1], sys.argv[1]))
found = []
for name in json.loads(sys.argv[3]):
    value = module
    for part in name.split(".")[1:]:
        value = getattr(value, part, None)
    if value is not None:
        found.append(name)
print(json.dumps(found))
"""


def main(arguments: list[str]) -> None:
    names = sorted(used_names())
    versions: dict[str, list[str]] = {"cuda": [], "tensorrt": []}
    record: dict[str, list[str]] = {name: [] for name in names}
    for argument in arguments:
        library, version, directory = argument.split("=")
        asked = [name for name in names if name.startswith(f"{library}.")]
        command = [sys.executable, "-c", _LOOK, library, directory, json.dumps(asked)]
        versions[library].append(version)
        for name in json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout):
            record[name].append(version)
    RECORD.write_text(json.dumps({"versions": versions, "names": record}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
