"""A solution to each exercise of the lessons: lesson -> name of the problem -> function."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np


def broadcast_shape(a, b):
    n = max(len(a), len(b))
    pairs = list(zip((1,) * (n - len(a)) + a, (1,) * (n - len(b)) + b, strict=True))
    if any(i != j and 1 not in (i, j) for i, j in pairs):
        return None
    return tuple(j if i == 1 else i for i, j in pairs)


def row_strides(shape, itemsize):
    return tuple(itemsize * int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def sigmoid_vjp(y, g):
    return g * y * (1 - y)


def row_mean_vjp(x, g):
    return np.broadcast_to(g[:, None] / x.shape[1], x.shape)


def merged_weight(W, A, B, alpha):
    return W + alpha / len(A) * B @ A


def visible(segments):
    return np.tri(len(segments), dtype=bool) & (segments[:, None] == segments)


def next_tokens(ids, segments):
    same = np.append(segments[1:] == segments[:-1], False)
    return np.where(same, np.append(ids[1:], -100), -100)


def to_bfloat16(bits):
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)


def absmax_int8(x):
    absmax = np.abs(x).max()
    return np.rint(x * (127 / (absmax or 1))).astype(np.int8), absmax


def normal_float(bits):
    n, quantile = 2**bits, NormalDist().inv_cdf
    p = 1 - (1 / (2 * (n - 1)) + 1 / (2 * n)) / 2
    above = [quantile(share) for share in np.linspace(p, 0.5, n // 2 + 1)[:-1]]
    below = [-quantile(share) for share in np.linspace(p, 0.5, n // 2)[:-1]]
    return np.sort([*below, 0.0, *above]) / quantile(p)


def unpack(packed, n):
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()[:n]


def most_kept(n, every):
    parts = [min(every, n - start) for start in range(0, n, every)]
    return max(i + layers + 1 for i, layers in enumerate(parts))


def better_order(pages):
    return [*range(pages), *reversed(range(pages))]


def pack():
    return r"""
extern "C" __global__ void pack(const unsigned char* codes, unsigned char* packed, int n) {
  int j = blockIdx.x * blockDim.x + threadIdx.x;
  if (2 * j >= n) return;
  int second = 2 * j + 1 < n ? codes[2 * j + 1] : 7;
  packed[j] = codes[2 * j] << 4 | second;
}"""


def count_sectors(addresses, nbytes):
    return len(np.unique((addresses[:, None] + np.arange(nbytes)) // 32))


def best_factors(W, r):
    U, S, Vt = np.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r], Vt[:r]


def least_rank(W, share):
    squares = np.linalg.svd(W, compute_uv=False) ** 2
    return next(r for r in range(len(squares) + 1) if squares[r:].sum() <= share**2 * squares.sum())


def interval(k, n):
    share, z = k / n, 1.96
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def exact_match(likeliest, labels):
    wanted = labels[:, 1:]
    return ((likeliest[:, :-1] == wanted) | (wanted == -100)).all(axis=1).mean()


def is_right(scale):
    rng = np.random.default_rng(0)
    cases = [sign * size * rng.standard_normal(n) for n in (1, 2, 9) for size in (0.01, 1, 999) for sign in (1, -1)]
    return all(abs(np.rint(scale(x) * x)).max() == 127 for x in [*cases, -np.arange(1.0, 4), np.arange(1.0, 4)])


def labels_of(ids, lengths):
    return np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, -100)


def stored_bytes(n):
    blocks = -(-n // 64)
    return -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4


def expand(codes, absmax2, offset):
    return codes / 127 * np.repeat(absmax2, 256)[: len(codes)] + offset


def said_gradients(g, P, theta_d, scale):
    return scale * (P.T @ g), g @ (P @ theta_d)


def d90(reached, full):
    return min((d for d, metric in reached.items() if metric >= 0.9 * full), default=None)


def first_adapter(G, X, L1, L2, W2, M1, M2, s):
    gY = G @ W2.T + s * G @ M2.T @ M1.T
    return s * X.T @ (gY @ L2.T), s * (X @ L1).T @ gY


def input_gradient(G, codes, absmax, levels, L1, L2, s):
    W = levels[codes] * np.repeat(absmax, 4)[: codes.size].reshape(codes.shape)
    return G @ (W + s * L1 @ L2).T


def rank_for_budget(shapes, budget):
    return budget // sum(d_out + d_in for d_out, d_in in shapes)


def joined(B1, A1, B2, A2):
    return np.concatenate([B1, B2], axis=1), np.concatenate([A1, A2])


ANSWERS: dict[str, dict[str, Callable]] = {
    "00_arrays_backends": {"broadcast_shape": broadcast_shape, "row_strides": row_strides},
    "01_autograd": {"sigmoid_vjp": sigmoid_vjp, "row_mean_vjp": row_mean_vjp},
    "02_transformer": {"visible": visible, "next_tokens": next_tokens},
    "03_rank_svd": {"best_factors": best_factors, "least_rank": least_rank},
    "04_intrinsic_dimension": {"said_gradients": said_gradients, "d90": d90},
    "05_lora": {"merged_weight": merged_weight},
    "06_which_matrices_which_rank": {"rank_for_budget": rank_for_budget, "joined": joined},
    "07_floats_int8": {"to_bfloat16": to_bfloat16, "absmax_int8": absmax_int8},
    "08_nf4": {"normal_float": normal_float, "unpack": unpack},
    "09_double_quantization": {"stored_bytes": stored_bytes, "expand": expand},
    "10_qlora": {"first_adapter": first_adapter, "input_gradient": input_gradient},
    "11_memory": {"most_kept": most_kept, "better_order": better_order},
    "12_cuda_kernel": {"pack": pack, "count_sectors": count_sectors},
    "13_real_llm": {"interval": interval, "exact_match": exact_match},
    "14_errata": {"is_right": is_right, "labels_of": labels_of},
}
