"""Why mutants of the kernels that no test notices compute what the kernel computes: a proof each, in a line.

    judge(mutant, subject)          # of mutation.py: (EQUIVALENT, why), (SURVIVES, why it does), or None: not known

Three rules are general, and rest on DEAD, which says why code is never reached, or a branch never taken:
- what happens to dead code does not matter;
- a branch that goes one way for every thread may be told to, and the comparison for it be weaker or stronger;
- a result that is not read (liveness.py) may be anything.
Else a reason of REASONS holds for mutants of some kinds, in some kernels, at some line of CUDA C. That none is
stretched too far is checked: no mutant that a test kills may be called equivalent (test_mutation.py). GAPS has what is
not equivalent, and why no case notices it.
"""

import re
from dataclasses import dataclass

EQUIVALENT, SURVIVES = "equivalent", "survives"
NOT_READ = "nothing that is executed reads the result"
WEAKER = {"lt": "le", "gt": "ge", "lo": "ls"}


@dataclass(frozen=True)
class Reason:
    """functions, kinds, line, before, instruction: regular expressions; the first two for the whole; before: for the
    line of CUDA C before it; instruction: for Mutant.resolved. options: what the kernel is compiled with. used_by:
    names of instructions, of which one reads the result. array: the number of the parameter that the address comes
    from. one_way: only of a branch that goes the same way for every thread, or the comparison for it. first: only of
    the first such instruction of a line. becomes: regular expression for the mutated instruction."""

    why: str
    functions: str = ".*"
    kinds: str = ".*"
    line: str = ""
    instruction: str = ""
    options: str = ""
    before: str = ""
    used_by: frozenset = frozenset()
    array: int | None = None
    one_way: bool = False
    first: bool = False
    becomes: str = ""

    def holds(self, mutant, subject) -> bool:
        variant = mutant.variant
        return bool(
            re.fullmatch(self.functions, variant.function)
            and re.fullmatch(self.kinds, mutant.kind)
            and self.options in f"{' '.join(variant.options)} "
            and re.search(self.line, mutant.line)
            and re.search(self.before, mutant.line_before)
            and re.search(self.instruction, mutant.resolved)
            and re.search(self.becomes, str(mutant.instruction))
            and (not self.used_by or self.used_by & mutant.used_by)
            and (self.array is None or self.array in mutant.arrays)
            and (not self.one_way or subject.decided(mutant.index) is not None)
            and (not self.first or subject.first_of_its_line(mutant.index))
        )


def judge(mutant, subject) -> tuple[str, str] | None:
    changed = mutant.at(mutant.index + 1) if mutant.kind == "always" else mutant
    if changed.index in subject.gaps:
        return SURVIVES, _first(GAPS, changed, subject)
    if why := _from_dead_code(mutant, subject) or _first(REASONS, mutant, subject):
        return EQUIVALENT, why
    why = _first(KNOWN, mutant, subject)
    return (SURVIVES, why) if why else None


def _first(reasons, mutant, subject) -> str | None:
    return next((reason.why for reason in reasons if reason.holds(mutant, subject)), None)


def why_dead(mutant, subject) -> str | None:
    """Why no thread comes to an instruction, or why none takes a branch."""
    return _first(DEAD, mutant, subject)


def is_gap(place, subject) -> bool:
    """Whether no case comes to an instruction, although a launch could."""
    return _first(GAPS, place, subject) is not None


def _from_dead_code(mutant, subject) -> str | None:
    if mutant.index not in subject.reached:
        return why_dead(mutant, subject)
    if _same_way(mutant, subject):
        branch = subject.decided(mutant.index)
        return why_dead(mutant.at(branch + subject.one_way(branch)), subject)  # or of what follows it, always taken
    return NOT_READ if subject.unread(mutant.index) else None


def _same_way(mutant, subject) -> bool:
    """Whether the mutant is a branch, or the comparison before one, that goes one way as it did."""
    i = mutant.original
    if i.name == "bra":
        always = subject.one_way(mutant.index)
        other = mutant.instruction.predicate and mutant.instruction.predicate[1]
        return (
            (mutant.kind == "always" and always is True)
            or (mutant.kind == "never branch" and always is False)
            or (mutant.kind == "another predicate" and always is True and subject.of_a_shuffle(other))
            or (mutant.kind == "another predicate" and always is False and subject.never_holds(other, mutant.index))
        )
    branch = subject.decided(mutant.index)
    if branch is None or mutant.kind not in ("boundary", "number + 1"):
        return False
    holds = subject.one_way(branch) ^ subject.variant.kernel.instructions[branch].predicate[0]
    relation, new = i.modifiers[0], mutant.instruction.modifiers[0]
    if mutant.kind == "boundary":
        weaker = True if WEAKER.get(relation) == new else False if WEAKER.get(new) == relation else None
    else:
        larger = mutant.instruction.operands[2] != i.operands[2]  # of the right-hand side
        weaker = {"lt": larger, "le": larger, "gt": not larger, "ge": not larger}.get(relation)
    return weaker is holds


FLOAT, HALF = "-DOUT=float ", "-DOUT=__half "
STORES = "dequantize_4bit_(double_)?v[23]|dequantize_int8_v1"
ROUNDED_AWAY = "float32 from 65504 to below 65520 are 65504 as float16"
ROUNDS = "the loop has at least one round: no size is zero"
RANK = "an adapter has a rank of at least 1"
THREADS = "a CUDA block of this kernel always has 256 threads, eight warps"
THREADS_128 = "a CUDA block of this kernel always has 128 threads"
TWO_ZEROS = "beyond the end both factors are zero; one of them suffices, the other being finite"
BASIS = "offsets 2, 4, 8, 16 of which one is odd, with 1: sums (exclusive or) of them still lead to each lane once"
NO_PARTS = "a sum that is split has no adapter: there is one part"
POWER = "exp takes a power of two apart and puts it back: another one gives the same but for the last bits"
FEWER_THAN_FOUR = "fewer than four entries are left, so that the loop that is unrolled by four is not taken"
NO_SECOND = "of two blocks the first is full; a partial one has no second, which is then a copy of it"


def dead(why: str, functions: str, line: str = "", options: str = "", instruction: str = "") -> Reason:
    return Reason(why, functions, line=line, options=options, instruction=instruction)


DEAD = [
    dead(ROUNDS, "quantize_4bit_v0|quantize_(int8|8bit)_v0", "i = begin; i < end"),
    dead(ROUNDS, "quantize_4bit_v3", "w = warp; w < warp"),
    dead(ROUNDS, "gemv_4bit_v.", "k < K|start < K"),
    dead(ROUNDS, "gemm_4bit_.*", r"r0? < end|a\[0\]|s < splits"),
    dead(ROUNDS, "(softmax|rms_norm)_v0", "i = 0; i < n"),
    dead("a row is not cut off within the loop: its index is below N, and k below K", "gemm_4bit_v0", "n >= N"),
    dead(RANK, "gem[vm]_4bit_.*", "r < rank|i < rank|first < rank"),
    dead(FEWER_THAN_FOUR, STORES, r"i < stop|unsigned two = |\*out\+\+|ARITHMETIC|float y = ", FLOAT),
    dead(
        "fewer than eight entries are left: the loop that is unrolled by four has one round", STORES, "i < stop", HALF
    ),
    dead(FEWER_THAN_FOUR, "quantize_int8_v2", "i < n|int8_code|ARITHMETIC"),
    dead(NO_SECOND, "quantize_4bit_v1", "divide|scaled"),
    dead(THREADS, "quantize_8bit_v1|slice_absmax|dequantize_4bit_double_v3", "blockDim"),
    dead(THREADS_128, "gemm_4bit_(v2|tensor_v3)", "i = threadIdx.x / "),
    dead("K, the columns of y, is a multiple of 32", "gemm_4bit_tensor_v4", options="TRANSPOSE=1"),
]

GAPS = [
    dead("only more than 2^32 outputs are divided in 64 bits; no case can have as many", "gemm_4bit_add", "s < splits"),
]

REASONS = [
    # The largest float16
    Reason("at the limit itself both choices are the limit", kinds="boundary", line="LARGEST"),
    Reason(ROUNDED_AWAY, kinds="real number \\+ 1 ulp", line="LARGEST"),
    # Numbers
    Reason(
        "a scale below 2^-126 times a level of at most 1 is zero as float16",
        "dequantize_4bit_double_v.",
        "subnormals flushed",
        options=HALF,
        used_by=frozenset({"mul", "add", "st"}),
    ),
    Reason("a product below 2^-126 is zero as float16", "dequantize_int8_v.", "subnormals flushed", options=HALF),
    Reason(
        "127 / absmax, with an absmax from 1e-36 to the largest float, is not subnormal",
        "quantize_int8_v.",
        "subnormals flushed",
        line="divide",
    ),
    Reason(
        "the number has four bits: a field of five holds no more",
        "quantize_4bit_v3",
        "number \\+ 1",
        instruction=r"^bfi.* 4, 4$",
        becomes=r" 4, 5$",
    ),
    Reason(
        "the number has no sign",
        "gemm_4bit_v2|gemm_4bit_tensor_v.",
        "another operation",
        r"base = |int slot",
        r"^(shr\.u32 .*, 26|add\.s32 .*)$",
        used_by=frozenset({"add", "shr"}),
    ),
    Reason(
        "fewer than eight entries are left: the unrolled loop has one round",
        STORES,
        "number \\+ 1",
        "i < stop",
        r"^add\.s32 .*, 4$",
        HALF,
    ),
    Reason("the loop ends at stop itself: neither is less", STORES, "operands swapped", "i < stop", one_way=True),
    Reason(
        "all threads have the maximum: any may write it", "quantize_8bit_v1", "number \\+ 1", r"== 0\) absmax", "^setp"
    ),
    Reason(
        "a round more has nothing to add: no lane is inside",
        "gemv_4bit_v[34]",
        "boundary",
        "start < K",
        r"^setp\.lt\.s32 %p\d+, %r\d+, %r\d+",
    ),
    Reason(
        "which copy of the table a lane reads does not matter",
        "gemv_4bit_v4",
        "number \\+ 1",
        r"at\[r\] = min",
        r"^and\.b32 .*, 120$",
    ),
    Reason("a CUDA block is 16 x 16", "gemm_4bit_v0", "another place", becomes="%ntid"),
    Reason(
        "C is no multiple of 4 here, and c is one: C is not c + 4",
        "gemm_4bit_v2",
        "number \\+ 1",
        r"j < 4 && c",
        r"^add\.s32 .*, (3|35)$",
    ),
    Reason(
        "base is a multiple of 16, so that base / 8 is even: exclusive or with 1 is or",
        "gemm_4bit_v2",
        "another operation",
        "int w_swizzle",
        r"^xor\.b32 .*, 1$",
    ),
    Reason(TWO_ZEROS, "gemm_4bit_v2|gemm_4bit_tensor_v3", "number \\+ 1", r"m < M && r \+ j < R", r"^mov\.u16 .*, 0$"),
    Reason(
        "a loop unrolled by four has its last round 768 entries before its end, and not as many rounds",
        "(softmax|rms_norm)_v1",
        "number \\+ 1",
        "i < n; i \\+= THREADS",
        r"^add\.s32 .*, 1024$",
    ),
    Reason(
        "the exponential of LOWEST minus another number is zero, by which the first sum is multiplied",
        "softmax_v2",
        "real number doubled",
        "const int lane",
        "0f00000000",
    ),
    Reason("exclusive or with false is or", kinds="another operation", instruction=r"^xor\.pred .*, 0$"),
    Reason("zero is added", kinds="drop addend", instruction=r", 0f00000000$"),
    Reason(
        "a field of 28 bits at bit 4 reaches the top already",
        kinds="number \\+ 1",
        instruction="^bfi",
        becomes=r" 4, 29$",
    ),
    Reason(
        BASIS,
        kinds="number \\+ 1",
        line=r"__shfl_xor_sync\(ALL, (largest|value|sum|m), ",
        instruction=r"^mov\.u32 .*, (2|4|8|16)$",
    ),
    Reason(
        "all lanes have the sum or the maximum: any may write it",
        kinds="number \\+ 1",
        line=r"if \(lane == 0\)",
        instruction=r"^setp\.ne\.s32",
    ),
    Reason("the number has no sign", kinds="operands swapped|number \\+ 1", instruction=r"^shr\.s32 .*, 31$"),
    Reason(
        "of two equal numbers either is the smaller",
        kinds="boundary",
        line=r"SIZES|min\(",
        instruction=r"^setp\.[lg][te]\.",
    ),
    # Work that is only saved
    Reason(
        "entries that could be stored at once are stored one by one",
        "dequantize.*|quantize_int8_v2",
        "boundary|number \\+ 1",
        r"if \(i \+ (WIDTH|4) |codes\[step\] = i \+ WIDTH",
    ),
    Reason(
        "blocksize / 4 is a power of two, and up to 32 it is one warp, whose maximum is taken once more",
        "quantize_4bit_v3",
        "boundary|never branch|number \\+ 1",
        r"if \(threads > 32\)",
    ),
    Reason("border 15 is not looked at", "quantize_4bit_v3", "boundary", r"if \(threadIdx.x < 16\)"),
    # Quantize
    Reason(
        "i - begin is even; middle - begin is odd, or middle is the end",
        "quantize_4bit_v1",
        "boundary",
        "float first = i < middle",
    ),
    Reason(NO_SECOND, "quantize_4bit_v1", "negate predicate|never branch", "float first|second = ", one_way=True),
    Reason(
        "i is a multiple of 4: i + stop and stop - i leave the same rest",
        STORES,
        "another operation",
        "i < stop",
        r"^sub\.s32",
    ),
    Reason(
        "i < middle here, as the branch before says", "quantize_4bit_v1", "another predicate", r"full \?", one_way=True
    ),
    Reason(
        "the code of an entry beyond the end is not stored, and a partial block's absmax is at least 1e-38",
        "quantize_4bit_v3",
        "real number \\+ 1 ulp",
        r"v\.z = x",
    ),
    Reason(
        THREADS,
        "quantize_8bit_v1|slice_absmax",
        "boundary|number \\+ 1",
        "blockDim.x / 32",
        r"^setp\.lt\.u32 .*, (64|3)$",
        one_way=True,
    ),
    Reason(
        THREADS,
        "quantize_8bit_v1|slice_absmax",
        "number \\+ 1",
        "blockDim.x / 32",
        r"^setp\.eq\.s32 .*, 0$",
        one_way=True,
    ),
    Reason(
        "each slice then takes all that follows it in the block: the maximum of the maxima stays",
        "slice_absmax",
        "another parameter",
        "",
        "param_4",
    ),
    # Products
    Reason(
        TWO_ZEROS,
        "gemm_4bit_v[12]|gemm_4bit_tensor_v.",
        "real number doubled",
        r"n >= N|n < N|0\.0f|const int k =|const unsigned word|cp.async|__cvta",
    ),
    Reason(
        "the scale of weights beyond the end is zero, whatever their codes",
        "gemm_4bit_tensor_v4",
        "copy not filled up",
        array=0,
    ),
    Reason(
        "the table of the adapter's columns has 64 rows; those after them are not read",
        "gemm_4bit_tensor_v3|gemm_4bit_v2",
        "boundary",
        "i < ROWS \\+ 64",
    ),
    Reason(
        "nothing is read for a copy of zero bytes, whatever its address",
        "gemm_4bit_tensor_v4",
        "never branch",
        r"inside \? x",
    ),
    Reason(NO_PARTS, "gemm_4bit_v2", "drop factor", "SIZES", options="-DLORA=1"),
    Reason(NO_PARTS, "gemm_4bit_v[01]", "drop factor|drop product", "SIZES|n >= N", r"^m(ul|ad)\.lo\.s32", "-DLORA=1"),
    Reason(
        "four stores do what a store of four does",
        "gemm_4bit_tensor_v4",
        "negate predicate",
        "j < 4",
        options="TRANSPOSE=1",
    ),
    Reason(
        "four stores do what a store of four does",
        "gemm_4bit_v2|gemm_4bit_tensor_v.",
        "never branch",
        r"j < 4; j \+= 2|C % 4",
        r"setp\.eq\.s32 .*, 0$",
    ),
    Reason(
        "K is a multiple of 32",
        "gemv_4bit_v[234]",
        "boundary|number \\+ 1",
        "start < K",
        r"^setp\.(lt|gt)\.s32 .*, [01]$",
    ),
    Reason(
        "division in 32 bits is the compiler's short cut",
        "gemm_4bit_add",
        "negate predicate|never branch|boundary",
        instruction=r"setp\.eq\.s64",
    ),
    Reason(
        "a sum that is split has two parts at least",
        "gemm_4bit_add",
        "boundary|number \\+ 1",
        "s < splits",
        r"^setp\.lt\.s32 .*, 1$",
    ),
    Reason(
        "which copy of the table a lane reads does not matter", "gemv_4bit_v4", "operands swapped", r"at\[r\] = min"
    ),
    Reason(
        "two rows of x at a time are taken of two or four: there is no odd last one",
        "gemv_4bit_v4",
        "another operation",
        "last = N - 1",
        "-1$",
        "-DXROWS=2",
    ),
    Reason(
        "the loop has barriers before the table is read; only double quantization reads one earlier",
        "gemv_4bit_v4",
        "drop barrier",
        options="-DROWS=4 -DX=float",
        before="const Table mine",
    ),
    Reason(
        "x beyond the end meets lanes that have no weights",
        "gemv_4bit_v[34]",
        "real number doubled",
        "__syncthreads|make_float4|start < K",
    ),
    # Rows
    Reason(
        "nothing has been read or written before the first reduction",
        "(softmax|rms_norm)_v1",
        "drop barrier",
        "has been read",
        first=True,
    ),
    Reason("the maximum of a number and NaN is the number", "softmax_v.", "real number doubled", "", "0fFF7FFFFF"),
    Reason(POWER, "softmax_v.", "drop product|drop addend", "expf", "0f3BBB989D, 0f3F000000"),
    Reason(POWER, "softmax_v.", "drop product", "expf", "0f437C0000, 0f4B400001"),
    Reason(POWER, "softmax_v.", "real number doubled", "expf", "0f(3BBB989D|3F000000|437C0000)$"),
    Reason(
        "2e-8 of x - m: less than the rounding of x - m",
        "softmax_v.",
        "drop product|real number doubled",
        "expf",
        "0f32A57060",
    ),
]

KNOWN = [  # survivors: equivalent at some places, but nothing tells these from others; or more than a case can show
    Reason(
        "where the index of an entry is even, its parity may be zero: the first and the third of a rest",
        STORES,
        "number \\+ 1",
        r"\*out\+\+",
        r"^and\.b32 .*, 1$",
        FLOAT,
    ),
    Reason(
        "the last exchange: it concerns lanes whose results are below exp(-87), that is zero, whatever their sum",
        "softmax_v2",
        "no saturation",
        r"sum \* expf",
    ),
    Reason(
        "where the index of an entry is odd, the upper half of its byte is not taken: the second of a rest",
        STORES,
        "number \\+ 1",
        r"\*out\+\+",
        r"^shr\.u32 .*, 4$",
    ),
    Reason(
        "the other predicate says whether n is even, and there is a copy of the loop for each",
        "quantize_4bit_v0",
        "another predicate",
        "i = begin; i < end",
        one_way=True,
    ),
    Reason(
        "lanes beyond K then multiply zeros of x by scales that were never loaded: zero in a register of the simulated "
        "GPU, anything in one of a real GPU",
        "gemv_4bit_v4",
        "never branch",
        r"if \(inside\)",
    ),
    Reason(
        "where C is a multiple of 4 or 32, there are copies in which no column is C itself",
        "gemm_4bit_v2|gemm_4bit_tensor_v4",
        "boundary",
        r"if \((m|row) >= M \|\| ",
    ),
]
