"""What this machine has: for bug reports, and to see why something is slow or missing."""

import ctypes
import importlib.util
import os
import platform

import numpy as np

import minilora
from minilora.models.fetch import PACKAGES, cache_folder

EXTRAS = {
    "test": ("pytest", "hypothesis", "ml_dtypes"),
    "peers": ("torch", "bitsandbytes", "transformers", "peft", "xllamacpp"),
}


def blas() -> str:
    """NumPy's BLAS library, its kernel and threads, as the library itself reports them."""
    from threadpoolctl import threadpool_info

    info = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    text = f"{info.get('name')} {info.get('version')}"
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            return f"{text}, kernel {pool.get('architecture')}, {pool['num_threads']} threads"
    return f"{text}, which does not say which kernel it uses"


def memory() -> str:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{total / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):  # not on Windows
        return "unknown"


def cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report() -> list[str]:
    """The lines that `minilora doctor` prints."""
    lines = [
        f"minilora  {minilora.__version__}",
        f"Python    {platform.python_version()} on {platform.system()} {platform.machine()}",
        f"NumPy     {np.__version__}; BLAS {blas()}",
        f"CPU       {cpu()}, {os.cpu_count()} logical cores",
        f"memory    {memory()}",
        f"mallopt   {'yes' if hasattr(ctypes, 'CDLL') and platform.system() == 'Linux' else 'no: not Linux'}",
        f"cache     {cache_folder()}",
    ]
    for name, package in PACKAGES.items():
        there = (cache_folder() / package.member).is_file()
        lines.append(f"  {name}: {'fetched' if there else f'missing; minilora fetch {name}'}")
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        lines.append(
            f"extra     {extra}: "
            + (f"missing {', '.join(missing)}; pip install 'minilora[{extra}]'" if missing else "complete")
        )
    return lines
