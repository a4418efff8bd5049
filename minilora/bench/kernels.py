"""`minilora kernels report`: what the CUDA kernels cost, by what can be known without a GPU; and what they may cost.

    machine = machine_rows([90])          # registers, shared memory, spills, occupancy: the compiler's, of each kernel
    runs = run_rows()                     # instructions, bytes, sectors, bank conflicts: counted on the simulated GPU
    failed = [gate for gate in gates(machine, runs) if not gate.passed]

No figure is a time. A GPU runs a kernel no faster than the slowest of three things allows: bringing its bytes from
memory, issuing its instructions, and serving its shared memory. `GPUS` has what each GPU allows of the second and the
third while a byte arrives (Williams, Waterman, Patterson, "Roofline", Communications of the ACM 52(4), 2009).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache

from minilora import simt
from minilora.backend.cuda.launch import Launch, source
from minilora.backend.simt import SimulatedDevice
from minilora.bench.ladders import LADDERS, VARIANTS, Ladder
from minilora.errors import LaunchError
from minilora.simt import sass
from minilora.simt.occupancy import occupancy

ARCHS = (75, 80, 90, 120)
GPUS = {  # multiprocessors, GHz, GB/s, of NVIDIA's whitepapers and data sheets (the clock, of the peak rates given there)
    "H100 SXM": (132, 1.775, 3350),
    "A100 40 GB": (108, 1.41, 1555),
    "RTX 3090": (82, 1.695, 936),
    "T4": (40, 1.59, 320),
}


def instructions_per_byte(gpu: str) -> float:
    """Thread instructions that it issues while a byte arrives: four warps a clock and multiprocessor."""
    processors, ghz, bandwidth = GPUS[gpu]
    return processors * 4 * 32 * ghz / bandwidth


def passes_per_byte(gpu: str) -> float:
    """Passes through the banks of shared memory meanwhile: one a clock and multiprocessor."""
    return instructions_per_byte(gpu) / 128


class Recorder(SimulatedDevice):
    """Keeps what it is asked to launch; runs it only where counters are given for each launch."""

    def __init__(self, arch: int, count=None):
        super().__init__(arch, check=False)
        self.launches: list[Launch] = []
        self.counts, self.count = [], count

    def execute(self, launch: Launch):
        self.launches.append(launch)
        if self.count is not None:
            self.counters = self.count()
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
                except LaunchError:  # tensor cores, on sm_75
                    continue
                for launch in device.launches:
                    row = _machine_row(ladder.name, version, launch, arch)
                    rows.setdefault((row.ladder, version, row.function, arch), row)
    return list(rows.values())


def _machine_row(ladder: str, version: int, launch: Launch, arch: int) -> MachineRow:
    code = machine_code(launch.source, launch.options, arch)[launch.function]
    threads = 1
    for n in launch.block:
        threads *= n
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
    """A step of a ladder as the simulated GPU counts it, all of its launches together.

    Of a `unit` (a weight, a product, ...): instructions, PTX instructions that threads executed; asked, bytes that
    threads load from and store to global memory; memory, bytes of the 32-byte sectors that they touch, each sector once
    a launch, as if the cache were endless; passes, of a warp through the banks of shared memory.
    efficiency: the least number of sectors that could hold what each warp asks for at a time, over those it touches.
    conflicts: passes over the least possible. Both without look-ups (lookups.py), which are apart: lookup_efficiency,
    lookup_conflicts. 1.0 where there is no such access. active: lanes at work, of all in the warps that execute.
    """

    ladder: str
    version: int
    sizes: str
    unit: str
    instructions: float
    asked: float
    memory: float
    efficiency: float
    lookup_efficiency: float
    passes: float
    conflicts: float
    lookup_conflicts: float
    active: float

    def bound(self, gpu: str) -> tuple[str, float]:
        """What this GPU is busiest with, and for how long at least, over how long its memory is busy."""
        busy = {
            "memory": 1.0,
            "instructions": self.instructions / self.memory / instructions_per_byte(gpu),
            "shared memory": self.passes / self.memory / passes_per_byte(gpu),
        }
        what = max(busy, key=busy.get)
        return what, busy[what]
