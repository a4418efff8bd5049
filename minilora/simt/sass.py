"""What the machine code of a kernel says without running: registers, spills, and which instructions were chosen.

    code = disassemble(compile_cubin(source, arch=90))["gemv_4bit_v3"]
    code.registers, code.local                  # local memory is 0 where nothing spilled
    code.count("LDG", "128")                    # 16-byte loads from global memory
    code.loops                                  # the same of each loop: what a turn of it costs

NVRTC compiles PTX further to SASS, the instructions of one GPU architecture: what such a GPU would execute. They are
read by NVIDIA's cuobjdump and nvdisasm, which need no driver (CUDA Binary Utilities).
"""

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minilora.errors import SimulationError

_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LINE = re.compile(r"(?m)^(\.L\w+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+,?\s+)?([A-Z][A-Z0-9_.]*)(?:.*`\((\.L\w+)\))?")
_ARCH = re.compile(r"EF_CUDA_SM(\d+)|\.target\s+sm_(\d+)")
RESERVED = 1024  # bytes of shared memory that code for 9.0 and above counts with a block's, and the system uses


@dataclass(frozen=True)
class MachineCode:
    """registers: of a thread. shared: static bytes of a block. stack, local: bytes of a thread in slow memory.

    opcodes: how often each instruction occurs; loops: the same within each loop that has none inside it.
    """

    registers: int
    shared: int
    stack: int
    local: int
    opcodes: Counter
    loops: tuple[Counter, ...] = ()

    def count(self, name: str, *modifiers: str) -> int:
        """Instructions of this name with all these modifiers: count("STG", "128") counts STG.E.128."""
        return count(self.opcodes, name, *modifiers)

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not fit."""
        return self.count("LDL") + self.count("STL")


def count(opcodes: Counter, name: str, *modifiers: str) -> int:
    parts = {opcode: opcode.split(".") for opcode in opcodes}
    return sum(n for op, n in opcodes.items() if parts[op][0] == name and {*modifiers} <= {*parts[op]})


def disassemble(cubin: bytes) -> dict[str, MachineCode]:
    """kernel name -> MachineCode. Raises SimulationError where NVIDIA's tools are missing or fail."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", path)
        listing = _run("nvdisasm", "-c", path)
    reserved = RESERVED if int(_ARCH.search(listing).expand(r"\1\2")) >= 90 else 0
    code = {
        section.partition(":")[0].removeprefix(".text."): _opcodes(section)
        for section in re.split(r"(?m)^(?=\.text\.)", listing)[1:]
    }
    kernels = {}
    for name, *sizes in _USAGE.findall(usage):
        registers, stack, shared, local = map(int, sizes)
        kernels[name] = MachineCode(registers, max(shared - reserved, 0), stack, local, *code[name])
    return kernels


def _opcodes(section: str) -> tuple[Counter, tuple[Counter, ...]]:
    """Instructions of a kernel, and of its innermost loops: from a branch's target to a branch back to it."""
    opcodes, at, loops = [], {}, []
    for label, opcode, target in _LINE.findall(section):
        if label:
            at[label] = len(opcodes)
            continue
        opcodes.append(opcode)
        if opcode.startswith("BRA") and at.get(target, len(opcodes) - 1) < len(opcodes) - 1:
            loops.append((at[target], len(opcodes)))  # not the branch to itself, which follows the last instruction
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))]
    return _counter(opcodes), tuple(_counter(opcodes[a:b]) for a, b in inner)


def _counter(opcodes: list[str]) -> Counter:
    return Counter(opcode for opcode in opcodes if opcode != "NOP")  # NOP: padding


def available() -> bool:
    """Whether NVIDIA's disassembler is here."""
    return all(_tool(name) for name in ("nvdisasm", "cuobjdump"))


def _tool(name: str) -> str | None:
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    return next((str(path) for path in sorted(wheels.glob(f"*/bin/{name}*"))), None) or shutil.which(name)


def _run(name: str, *args) -> str:
    tool = _tool(name)
    if tool is None:
        raise SimulationError(f"{name} is not here; install it with: pip install 'minilora[simt]'")
    beside = f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump calls nvdisasm
    done = subprocess.run([tool, *map(str, args)], capture_output=True, text=True, env={**os.environ, "PATH": beside})
    if done.returncode:
        raise SimulationError(f"{name} failed: {done.stderr.strip()}")
    return done.stdout
