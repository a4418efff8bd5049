"""Compile CUDA C with NVIDIA's own compiler, without a GPU and without a driver.

    ptx = compile_cuda(source, arch=80)             # text: PTX, which load() reads
    cubin = compile_cubin(source, arch=80)          # bytes: machine code, for sass.disassemble

NVRTC is a library that takes CUDA C as a string (NVIDIA, "NVRTC" documentation, section "User Interface"); it comes as
a wheel. CuPy uses it too and appends -ftz=true: subnormal float32 numbers become zero in arithmetic. The same is the
default here, so that what is simulated is what CuPy would run.
"""

import ctypes
import ctypes.util
import functools
import sysconfig
from pathlib import Path

from minilora.errors import SimulationError

CUPY_OPTIONS = ("-ftz=true", "-lineinfo")
INSTALL = "install it with: pip install 'minilora[simt]'"


class CompileError(SimulationError):
    """CUDA C that NVRTC refuses. The message is NVRTC's log, with file and line."""


def compile_cuda(source: str, arch: int = 80, options: tuple[str, ...] = (), name: str = "kernel.cu") -> str:
    """PTX of `source`, for compute capability `arch` (80 is 8.0). options: NVRTC's, after CuPy's own two.

    Raises CompileError with NVRTC's log, SimulationError where NVRTC is not installed.
    """
    return _compile(source, f"compute_{arch}", options, name, "PTX").rstrip(b"\0").decode()


def compile_cubin(source: str, arch: int = 80, options: tuple[str, ...] = (), name: str = "kernel.cu") -> bytes:
    """Machine code (an ELF file) of `source` for the GPU architecture sm_<arch>. Errors as `compile_cuda`."""
    return _compile(source, f"sm_{arch}", options, name, "CUBIN")


def available() -> bool:
    """Whether NVRTC can be loaded here."""
    try:
        return bool(library())
    except SimulationError:
        return False


def version() -> str:
    """NVRTC's own, such as "12.9"; another one may choose other instructions."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library(), library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def architectures() -> list[int]:
    """The compute capabilities that it compiles for."""
    count = ctypes.c_int()
    _check(library(), library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(library(), library().nvrtcGetSupportedArchs(found))
    return list(found)


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC: a wheel's, or the system's. Raises SimulationError where there is none."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    found = [*sorted(wheels.glob("*/lib/libnvrtc.so.1?")), *sorted(wheels.glob("*/bin/nvrtc64_*_0.dll"))]
    for path in [*found, ctypes.util.find_library("nvrtc")]:
        try:
            opened = ctypes.CDLL(str(path)) if path else None
        except OSError:
            continue
        if opened is not None:
            opened.nvrtcGetErrorString.restype = ctypes.c_char_p
            return opened
    raise SimulationError(f"NVRTC, NVIDIA's compiler for CUDA C, is not here; {INSTALL}")


def _headers() -> list[str]:
    """Folders with cuda_fp16.h and its kin: the runtime wheel's, or a toolkit's."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    folders = [*sorted(wheels.glob("*/include")), Path("/usr/local/cuda/include")]
    return [f"-I{folder}" for folder in folders if (folder / "cuda_fp16.h").exists()]


def _compile(source: str, arch: str, options: tuple[str, ...], name: str, what: str) -> bytes:
    nvrtc = library()
    program = ctypes.c_void_p()
    flags = [f"-arch={arch}", *CUPY_OPTIONS, *options, *_headers()]
    array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    _check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(flags), array):
            log = _text(nvrtc, program, "ProgramLog").rstrip(b"\0").decode().strip()
            log += "" if _headers() else f"\n(CUDA's headers are not here either; {INSTALL})"
            raise CompileError(f"{name} does not compile for {arch}:\n{log}")
        return _text(nvrtc, program, what)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(library: ctypes.CDLL, status: int):
    if status:
        raise SimulationError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")
