"""What sharing gradients costs: measured between the processes of this machine, and extrapolated as a model.

    mpiexec -n 2 python -m minilora.bench.parallel

Sending b bytes takes about α + β b (Hockney, 1994): a latency and a time per byte. A ring all-reduce over n processes
passes 2 (n - 1) messages of b / n bytes from each to the next, so that T(n, b) = 2 (n - 1) (α + β b / n). α and β are
measured here between two processes; T for other n is this formula's, not a measurement: it knows of no congestion, no
slower link between racks, and no overlap with computing.
"""

import time

import numpy as np

from minilora.train.distributed import bytes_per_step, processes

SIZES = [2**k for k in range(6, 25, 2)]  # bytes
MODELS = {  # numbers that are trained
    "embedded, LoRA r=8 all-linear": 78_848,
    "embedded, every weight": 935_040,
    "SmolLM2-135M, LoRA r=8 all-linear": 2_442_240,
    "SmolLM2-135M, every weight": 134_515_008,
    "LLaMA 7B, LoRA r=8 all-linear": 19_988_480,
    "LLaMA 7B, every weight": 6_738_415_616,
}
NODES = [2, 8, 64, 1000]


def fit(sizes, seconds) -> tuple[float, float]:
    """(α, β) of seconds ≈ α + β · bytes with the least relative errors: large messages do not drown small ones."""
    sizes, seconds = np.asarray(sizes, float), np.asarray(seconds, float)
    design = np.stack([1 / seconds, sizes / seconds], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)
    return float(alpha), float(beta)


def ring(nodes: int, size: float, alpha: float, beta: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes."""
    return 2 * (nodes - 1) * (alpha + beta * size / nodes)


def measure(comm, size: int, repeats: int = 30) -> float:
    """Seconds of one message of `size` bytes from process 0 to 1: half of the median time there and back."""
    buffer, times = np.zeros(size, np.uint8), []
    for _ in range(repeats):
        comm.Barrier()
        start = time.perf_counter()
        if comm.rank == 0:
            comm.Send(buffer, 1)
            comm.Recv(buffer, 1)
        elif comm.rank == 1:
            comm.Recv(buffer, 0)
            comm.Send(buffer, 0)
        times.append((time.perf_counter() - start) / 2)
    return float(np.median(times))


def table(alpha: float, beta: float) -> list[str]:
    lines = [f"{'':<36}{'MB a step':>10}" + "".join(f"{f'{n} nodes':>12}" for n in NODES)]
    for name, numbers in MODELS.items():
        seconds = [ring(n, 4 * numbers, alpha, beta) for n in NODES]
        sent = bytes_per_step(numbers, 1000) / 1e6
        lines.append(f"{name:<36}{sent:>10.2f}" + "".join(f"{s:>10.3g} s" for s in seconds))
    return lines


def main():
    workers = processes()
    if workers.size < 2:
        raise SystemExit("this needs two processes: mpiexec -n 2 python -m minilora.bench.parallel")
    seconds = [measure(workers.comm, size) for size in SIZES]
    if not workers.first:
        return
    alpha, beta = fit(SIZES, seconds)
    print(f"measured between two processes: α = {1e6 * alpha:.1f} µs, 1/β = {1e-9 / beta:.2f} GB/s")
    for size, found in zip(SIZES, seconds, strict=True):
        print(f"  {size:>12,} bytes {1e6 * found:>10.1f} µs, the model says {1e6 * (alpha + beta * size):>10.1f}")
    print("\nring all-reduce by the model, float32 gradients (MB sent by each of many nodes):")
    print("\n".join(table(alpha, beta)))


if __name__ == "__main__":
    main()
