"""Every function of NumPy that the package applies to arrays exists in CuPy, and takes the keywords that it is given.

Read from the source, so that a line which no test runs counts too. What stays on the host is listed, with the reason.
"""

import ast
import inspect
from pathlib import Path

import pytest

import minilora

cupy = pytest.importorskip("cupy", reason="this asks the installed CuPy what it has: pip install 'minilora[gpu]'")

ROOT = Path(minilora.__file__).parent
PACKAGES = ("autograd", "ops", "nn", "lora", "train", "quant")
# Functions that take no array to be dispatched by: called as NumPy's, their result is in the host's memory.
CREATION = {"arange", "array", "asarray", "ascontiguousarray", "empty", "eye", "frombuffer", "fromfile", "full", "ones",
            "linspace", "r_", "s_", "tri", "zeros"}  # fmt: skip

HOST_FILES = {
    "autograd/gradcheck.py": "checks in float64 by NumPy, on any machine",
    "lora/combine.py": "adds adapters up on the host, once",
    "lora/exchange.py": "reads and writes files",
    "nn/positions.py": "tables of constants, which the models put beside their arrays",
    "quant/codebooks.py": "the codes' levels stay on the host; launchers copy them",
    "quant/files.py": "reads and writes files",
    "quant/int8.py": "a lesson on one array",
    "quant/lloyd.py": "computes codes",
    "quant/theory.py": "integrates",
    "train/distributed.py": "MPI sends from the host's memory",
    "train/paged.py": "pages of parameters in the host's memory; on a GPU the driver has them",
    "train/prepare.py": "datasets",
}
IDS, NEW = "numbers of tokens and rows stay on the host, where they are counted", "new weights, which Parameter places"
HOST_USES = {
    ("autograd/rounding.py", "errstate"): "says what NumPy is to warn of; CuPy never warns",
    ("autograd/tensor.py", "array"): "Tensor.__array__, where CuPy refuses to convert implicitly",
    ("lora/baselines.py", "arange"): IDS,
    ("lora/baselines.py", "zeros"): IDS,
    ("lora/fused.py", "arange"): IDS,
    ("lora/rows.py", "array"): IDS,
    ("nn/bloom.py", "arange"): "distances, moved with the slopes",
    ("nn/encoder.py", "arange"): IDS,
    ("nn/encoder.py", "ones"): "the default mask, moved by attention",
    ("nn/encoder.py", "zeros"): IDS,
    ("nn/language_model.py", "arange"): IDS,
    ("nn/language_model.py", "eye"): "a mask, moved by attention",
    ("nn/language_model.py", "maximum.accumulate"): IDS,
    ("nn/language_model.py", "ones"): IDS,
    ("nn/layers.py", "ones"): NEW,
    ("nn/layers.py", "zeros"): NEW,
    ("nn/module.py", "array"): "a file's array, then moved",
    ("nn/seq2seq.py", "full"): IDS,
    ("ops/elementwise.py", "arange"): "the table of erf, of NumPy's branch; CuPy has erf",
    ("ops/elementwise.py", "array"): "the table of erf",
    ("ops/elementwise.py", "clip"): "NumPy's branch of erf",
    ("ops/elementwise.py", "errstate"): "NumPy's branch of erf",
    ("ops/elementwise.py", "take"): "NumPy's branch of erf",
    ("ops/nn.py", "add.reduceat"): "NumPy's branch of the embedding's gradient",
    ("ops/nn.py", "r_"): "NumPy's branch of the embedding's gradient",
    ("quant/array.py", "errstate"): "says what NumPy is to warn of",
    ("train/precision.py", "errstate"): "says what NumPy is to warn of",
    ("train/trainer.py", "ascontiguousarray"): "the hash of a batch, which is on the host",
}


def uses(source: str):
    """(name, keywords, whether it is called through array_namespace) of each np.* and xp.* in a module."""
    tree = ast.parse(source)
    keywords = {id(n.func): [k.arg for k in n.keywords if k.arg] for n in ast.walk(tree) if isinstance(n, ast.Call)}
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts, root = [], node
        while isinstance(root, ast.Attribute) and root.attr != "xp":
            parts, root = [root.attr, *parts], root.value
        by_array = ast.unparse(root).endswith("xp") or ast.unparse(root).startswith("array_namespace(")
        if parts and (by_array or (isinstance(root, ast.Name) and root.id == "np")):
            yield ".".join(parts), keywords.get(id(node), []), by_array


def lacks(name: str, keywords: list[str], by_array: bool) -> str | None:
    """What CuPy lacks for this, or None."""
    found, parent = cupy, None
    for part in name.split("."):
        parent, found = found, getattr(found, part, None)
        if found is None:
            return f"cupy.{name} does not exist"
    if not by_array and (name in CREATION or isinstance(parent, cupy.ufunc)):
        return f"np.{name} is not dispatched to CuPy; array_namespace(x).{name} is"
    if isinstance(found, cupy.ufunc):
        return next((f"cupy.{name} takes no {k}" for k in keywords if k not in ("out", "dtype", "casting")), None)
    if not keywords or isinstance(found, type):
        return None
    parameters = inspect.signature(type(found).__call__ if name == "matmul" else found).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return next((f"cupy.{name} takes no {k}" for k in keywords if k not in parameters and not takes_any), None)


def test_what_cupy_lacks_is_used_on_the_host_only():
    missing, needed = [], set()
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        file = path.relative_to(ROOT).as_posix()
        if file in HOST_FILES:
            continue
        for name, keywords, by_array in uses(path.read_text(encoding="utf-8")):
            if what := lacks(name, keywords, by_array):
                needed.add((file, name))
                if (file, name) not in HOST_USES:
                    missing.append(f"{file}: {what}")
    assert missing == []
    assert HOST_USES.keys() - needed == set()  # an exception that is not needed any more
    assert [file for file in HOST_FILES if not (ROOT / file).exists()] == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("np.take(a, i, mode='clip')", "cupy.take takes no mode"),
        ("np.add.at(a, i, b)", "np.add.at is not dispatched"),
        ("np.zeros(3)", "np.zeros is not dispatched"),
        ("xp.zeros(3)", None),
        ("array_namespace(a).add.at(a, i, b)", None),
        ("self.xp.nanargpartition(a)", "cupy.nanargpartition does not exist"),
        ("np.sum(a, initial=0)", "cupy.sum takes no initial"),
        ("np.matmul(a, b, out=c)", None),
        ("np.linalg.svd(a, full_matrices=False)", None),
        ("np.linalg.svd(a, hermitian=True)", "cupy.linalg.svd takes no hermitian"),
        ("np.exp(a, where=b)", "cupy.exp takes no where"),
    ],
)
def test_the_check_sees(line, what):
    found = [w for w in (lacks(*use) for use in uses(line)) if w]
    assert found[0].startswith(what) if what else not found, found
