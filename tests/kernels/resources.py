"""What each kernel takes of a device, as reviewed: ``python tests/kernels/resources.py`` writes it anew.

Registers of a thread, bytes that it spills, and static shared memory, by NVRTC's own ptxas, whose version is
written beside them: another one allocates otherwise. Shared memory of tiles is what `forms` says.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
REVIEWED = HERE / "resources.json"


def main() -> int:
    """Compile every instantiation for every architecture; write what each takes."""
    sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
    from kernels.nvrtc import ARCHITECTURES, KERNELS, version

    lines = []
    for architecture in ARCHITECTURES:
        for name in KERNELS:
            for kernel, found in figures(name, architecture).items():
                lines.append(f"  {json.dumps(f'sm_{architecture} {kernel}')}: {json.dumps(found)}")
    head = f'{{\n "nvrtc": "{version()}",\n "kernels": {{\n'
    REVIEWED.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")
    print(f"{len(lines)} kernels by NVRTC {version()}: {REVIEWED}")
    return 0


def figures(name: str, architecture: str) -> dict[str, dict[str, int]]:
    """Of the instantiations of a kernel."""
    from kernels.nvrtc import KERNELS, resources
    from scatterbrain_backends.cupy_.forms import all_tiles

    dynamic = {tile.kernel(dtype): tile.shared_bytes(dtype) for dtype, tile in all_tiles()}
    return {
        kernel: {
            "registers": found.registers,
            "spilled": found.spilled,
            "shared": found.shared + dynamic.get(kernel, 0),
        }
        for kernel, found in resources(name, KERNELS[name], architecture).items()
    }


def reviewed(name: str, architecture: str) -> tuple[str, dict[str, dict[str, int]]]:
    """NVRTC's version, and the figures of a kernel's instantiations, as the file has them."""
    record = json.loads(REVIEWED.read_text(encoding="utf-8"))
    start = f"sm_{architecture} "
    own = {key.removeprefix(start): x for key, x in record["kernels"].items() if key.startswith(start)}
    return record["nvrtc"], {kernel: x for kernel, x in own.items() if kernel.partition("<")[0] == name}


if __name__ == "__main__":
    sys.exit(main())
