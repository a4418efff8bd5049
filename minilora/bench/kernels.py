"""`minilora kernels report`: what the CUDA kernels cost, by what can be known without a GPU; and what they may cost.

    machine = machine_rows([90])          # registers, shared memory, spills, occupancy: the compiler's, of each kernel
    runs = run_rows()                     # instructions, bytes, sectors, bank conflicts: counted on the simulated GPU
    failed = [gate for gate in gates(machine, runs) if not gate.passed]

No figure is a time. A GPU runs a kernel no faster than the slowest of four things allows: bringing its bytes from
memory, issuing its instructions, moving sectors through its cache, and serving its shared memory. `GPUS` has what each
GPU can do of the others while a byte arrives (Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009).
"""

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache

from minilora import simt
from minilora.backend.cuda.launch import FOLDER, Launch, source
from minilora.backend.simt import SimulatedDevice
from minilora.bench.ladders import LADDERS, VARIANTS, Ladder
from minilora.bench.lookups import lookups
from minilora.errors import ConfigError, LaunchError
from minilora.simt import nvrtc, sass
from minilora.simt.counters import SECTOR, Count, Counters, total
from minilora.simt.occupancy import occupancy

ARCHS = (75, 80, 90, 120)
CACHE = 128  # bytes that the cache of a multiprocessor gives a clock, at most
SIMULATED = 80  # the least that has what the last steps use
GPUS = {  # multiprocessors, GHz, GB/s: NVIDIA's whitepapers and data sheets, the clock as their peak rates imply it
    "H100 SXM": (132, 1.775, 3350),
    "A100 40 GB": (108, 1.41, 1555),
    "RTX 3090": (82, 1.695, 936),
    "T4": (40, 1.59, 320),
}


def instructions_per_byte(gpu: str) -> float:
    """Thread instructions that it issues while a byte arrives: four warps a clock and multiprocessor."""
    return 4 * 32 * clocks_per_byte(gpu)


def clocks_per_byte(gpu: str) -> float:
    """Clocks of all multiprocessors together meanwhile; in each, one pass through the banks of shared memory."""
    processors, ghz, bandwidth = GPUS[gpu]
    return processors * ghz / bandwidth


class Recorder(SimulatedDevice):
    """Keeps what it is asked to launch. counting: it also runs it, with counters for each launch. edit: as there."""

    def __init__(self, arch: int, counting: bool = False, edit=None):
        super().__init__(arch, check=False, edit=edit)
        self.counting = counting
        self.launches: list[Launch] = []
        self.counts: list[Counters] = []

    def execute(self, launch: Launch):
        self.launches.append(launch)
        if self.counting:
            self.counters = Counters(self.program(launch).kernel(launch.function))
            super().execute(launch)
            self.counts.append(self.counters)


@dataclass(frozen=True)
class MachineRow:
    """A kernel as machine code for one architecture, at the block size of its launch.

    shared, dynamic: bytes of a block, known to the compiler and asked for by the launch. blocks: resident on one
    multiprocessor; share: of its warps; limit: why not more. instructions: machine instructions a weight in the loop
    over W, of a kernel that loads 16 bytes of it at a time, else None. loads, stores: of 16 bytes; mma: for tensor
    cores, in the text of the kernel.
    """

    ladder: str
    version: int
    function: str
    arch: int
    threads: int
    registers: int
    shared: int
    dynamic: int
    spills: int
    blocks: int
    share: float
    limit: str
    loads: int
    stores: int
    mma: int
    instructions: float | None


@cache
def machine_code(name: str, options: tuple[str, ...], arch: int) -> dict[str, sass.MachineCode]:
    return sass.disassemble(simt.compile_cubin(source(name), arch, options, name))


def machine_rows(archs: Iterable[int] = ARCHS, ladders: Iterable[Ladder] = LADDERS + VARIANTS) -> list[MachineRow]:
    """Of every launch of every step, once. A step that an architecture cannot run has no row for it."""
    rows = {}
    for arch in archs:
        for ladder in ladders:
            for version in ladder.versions:
                device = Recorder(arch)
                try:
                    ladder.call(device, version)
                except LaunchError:
                    if arch >= SIMULATED:
                        raise
                    continue  # tensor cores
                for launch in device.launches:
                    row = _machine_row(ladder.name, version, launch, arch)
                    rows.setdefault((row.ladder, version, row.function, arch), row)
    return list(rows.values())


def _machine_row(ladder: str, version: int, launch: Launch, arch: int) -> MachineRow:
    code = machine_code(launch.source, launch.options, arch)[launch.function]
    threads = math.prod(launch.block)
    held = occupancy(arch, threads, code.registers, code.shared + launch.shared)
    loop = max(code.loops, key=lambda loop: sass.count(loop, "LDG", "128"), default=None)
    weights = 32 * sass.count(loop, "LDG", "128") if loop and launch.source == "gemv_4bit.cu" else 0
    return MachineRow(
        ladder, version, launch.function, arch, threads, code.registers, code.shared, launch.shared,
        code.spills + code.local, held.blocks, held.share, held.limit, code.count("LDG", "128"),
        code.count("STG", "128"), code.count("HMMA"), loop.total() / weights if weights else None,
    )  # fmt: skip


@dataclass(frozen=True)
class RunRow:
    """A step of a ladder as the simulated GPU counts it, all of its launches together (simt/counters.py).

    Of a `unit` (a weight, a product, ...): instructions, PTX instructions that threads executed; moved, bytes of the
    sectors that each warp asks for at a time; memory, bytes of those sectors, each once a launch; passes, of a warp
    through the banks of shared memory. efficiency: the least number of sectors over those that are moved. conflicts:
    passes over the fewest. Both leave out look-ups (lookups.py), which are apart: lookup_efficiency, lookup_conflicts;
    None where there is no such access. active: lanes at work, of all lanes in the warps that execute.
    """

    ladder: str
    version: int
    sizes: str
    unit: str
    instructions: float
    moved: float
    memory: float
    efficiency: float | None
    lookup_efficiency: float | None
    passes: float
    conflicts: float | None
    lookup_conflicts: float | None
    active: float

    def bound(self, gpu: str) -> tuple[str, float]:
        """What this GPU is busiest with, and how much longer than its memory at the least."""
        busy = {
            "memory": 1.0,
            "instructions": self.instructions / self.memory / instructions_per_byte(gpu),
            "shared memory": self.passes / self.memory / clocks_per_byte(gpu),
            "cache": self.moved / CACHE / self.memory / clocks_per_byte(gpu),
        }
        what = max(busy, key=busy.get)
        return what, busy[what]


def run_rows(ladders: Iterable[Ladder] = LADDERS, edit=None) -> list[RunRow]:
    """Of every step. edit(name, text) -> text: changes a .cu file first, to see what that changes."""
    return [_run_row(ladder, version, edit) for ladder in ladders for version in ladder.versions]


def _run_row(ladder: Ladder, version: int, edit) -> RunRow:
    device = Recorder(SIMULATED, counting=True, edit=edit)
    ladder.call(device, version)
    parts = {True: Count(), False: Count()}  # look-ups, and the rest
    memory = 0
    for counters in device.counts:
        found = lookups(counters.kernel)
        for index, count in counters.counts.items():
            parts[index in found].add(count)
        memory += counters.summary().dram_bytes
    rest, apart = parts[False], parts[True]
    both = total(parts.values())
    return RunRow(
        ladder.name, version, ladder.sizes, ladder.unit, both.lanes / ladder.work, SECTOR * both.sectors / ladder.work,
        memory / ladder.work, _if(rest.sectors, rest.efficiency), _if(apart.sectors, apart.efficiency),
        both.passes / ladder.work, _if(rest.fewest, rest.conflicts), _if(apart.fewest, apart.conflicts), both.active,
    )  # fmt: skip


def _if(there: int, value: float) -> float | None:
    return value if there else None


@dataclass(frozen=True)
class Gate:
    """A limit, what was found where it is worst, and whether that is within it."""

    name: str
    limit: str
    found: str
    where: str
    passed: bool


def gates(machine: list[MachineRow], runs: list[RunRow]) -> list[Gate]:
    """Each limit that has rows to be held to. The last step of a ladder is its best."""
    steps = {ladder.name: ladder.versions[-1] for ladder in LADDERS}
    last = [row for row in runs if row.version == steps[row.ladder]]
    spread = [row for row in last if row.ladder.startswith("dequantize_4bit")]
    gemv = [row for row in last if row.ladder == "gemv_4bit"]
    tensor = [row for row in machine if "tensor" in row.function]
    vectors = [row for row in machine if row.ladder == "gemv_4bit" and row.version == steps["gemv_4bit"]]
    names = [f"{name}_v{steps[name]}" for name in ("dequantize_4bit", "dequantize_4bit_double")]
    stores = [row for row in machine if row.function in names]
    wanted = [
        _most("spilled registers, and bytes of local memory", machine, "spills", 0),
        _least("LDG.E.128 in the last GEMV", vectors, "loads", 1),
        _least("STG.E.128 in the last dequantize", stores, "stores", 1),
        _least("HMMA in the GEMM for tensor cores", tensor, "mma", 1),
        _most("machine instructions a weight in the loop of the last GEMV", vectors, "instructions", 4.6),
        _most("PTX instructions a weight of the last GEMV, all in all", gemv, "instructions", 4.6),
        _most("bytes of memory a weight, GEMV with double-quantized scales", gemv, "memory", 0.55),
        _most("bytes of memory a weight, dequantize to float16", spread, "memory", 2.6),
        _least("sector efficiency of the last steps, without look-ups", last, "efficiency", 0.95),
        _most("bank passes of the last steps over the fewest, without look-ups", last, "conflicts", 1.05),
    ]
    return [gate for gate in wanted if gate is not None]


def _most(name: str, rows, figure: str, limit: float) -> Gate | None:
    rows = [row for row in rows if getattr(row, figure) is not None]
    worst = max(rows, key=lambda row: getattr(row, figure), default=None)
    return worst and _gate(name, f"at most {limit:g}", worst, figure, getattr(worst, figure) <= limit, rows)


def _least(name: str, rows, figure: str, limit: float) -> Gate | None:
    rows = [row for row in rows if getattr(row, figure) is not None]
    worst = min(rows, key=lambda row: getattr(row, figure), default=None)
    return worst and _gate(name, f"at least {limit:g}", worst, figure, getattr(worst, figure) >= limit, rows)


def _gate(name: str, limit: str, worst, figure: str, passed: bool, rows) -> Gate:
    values = {getattr(row, figure) for row in rows}
    where = f"{worst.ladder} v{worst.version}" + (f", sm_{worst.arch}" if isinstance(worst, MachineRow) else "")
    where = f"all {len(rows)}" if len(values) == 1 and len(rows) > 1 else where
    return Gate(name, limit, f"{getattr(worst, figure):.4g}", where, passed)


def fingerprint(name: str) -> str:
    """Of a .cu file without its comments and blanks: what the figures depend on."""
    code = re.sub(r"//.*", "", source(name))
    return hashlib.sha256("".join(code.split()).encode()).hexdigest()[:16]


def results(archs: Iterable[int] = ARCHS) -> dict:
    """Everything, as what JSON can hold. machine: empty where NVIDIA's disassembler is not installed.

    Raises ConfigError for a compute capability that this NVRTC does not compile for.
    """
    known = nvrtc.architectures()
    if unknown := sorted(set(archs) - set(known)):
        raise ConfigError(f"NVRTC {nvrtc.version()} compiles for {', '.join(map(str, known))}, not for {unknown[0]}")
    machine = machine_rows(archs) if sass.available() else []
    runs = run_rows()
    return {
        "compiler": f"NVRTC {nvrtc.version()}",
        "sources": {path.name: fingerprint(path.name) for path in sorted(FOLDER.glob("*.cu"))},
        "gates": [asdict(gate) for gate in gates(machine, runs)],
        "runs": [asdict(row) for row in runs],
        "machine": [asdict(row) for row in machine],
    }


def rows_of(found: dict) -> tuple[list[MachineRow], list[RunRow], list[Gate]]:
    """The rows of `results`, as it returns them or as JSON gives them back."""
    return (
        [MachineRow(**row) for row in found["machine"]],
        [RunRow(**row) for row in found["runs"]],
        [Gate(**gate) for gate in found["gates"]],
    )
