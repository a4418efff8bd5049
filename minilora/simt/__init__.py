"""A CUDA machine in NumPy: compile a kernel with NVIDIA's compiler, run its PTX without a GPU, and see what is wrong.

program = simt.load(simt.compile_cuda(source))
simt.launch(program, "scale", grid=(4,), block=(128,), args=(simt.Buffer(x), np.float32(2), np.int32(x.size)))
"""

from minilora.simt.counters import Counters
from minilora.simt.machine import Machine, launch
from minilora.simt.memory import Buffer
from minilora.simt.nvrtc import CompileError, available, compile_cubin, compile_cuda
from minilora.simt.ptx import Instruction, Kernel, Program, load
from minilora.simt.stepper import Stepper

__all__ = [
    "Buffer",
    "CompileError",
    "Counters",
    "Instruction",
    "Kernel",
    "Machine",
    "Program",
    "Stepper",
    "available",
    "compile_cubin",
    "compile_cuda",
    "launch",
    "load",
]
