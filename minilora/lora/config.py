"""LoraConfig: which layers get an adapter, of what size, how it starts. The fields are PEFT's, enable_lora loralib's.

config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
config.size_at("model.layers.0.self_attn.q_proj")       # (r, alpha) there, patterns considered
"""

import math
import re
from dataclasses import dataclass, field, fields

from minilora.errors import ConfigError

# Ways to start. The last group is accepted in files only: what they did to A and B is in the file.
INITIALISATIONS = (True, False, "gaussian", "pissa", "olora", "loftq")
ONLY_LOADED = ("eva", "orthogonal", "mica")


@dataclass
class LoraConfig:
    """ΔW = (lora_alpha / r) B A, of rank r (use_rslora: lora_alpha / √r, arXiv:2312.03732). Raises ConfigError.

    target_modules: "all-linear" (all but the head), a regular expression for whole paths, or names by which a layer's
    path ends; exclude_modules likewise takes layers out. layers_to_transform: only in these blocks, counted from 0;
    layers_pattern: the name of the list of blocks, if it is not the first list in the path.
    rank_pattern, alpha_pattern: {regular expression for the end of a path: r or lora_alpha there}.
    lora_dropout: on the adapter's input, in training. bias: "none", or biases are trained too, those of the adapted
    layers ("lora_only") or "all". modules_to_save: modules trained whole, as copies, and saved with the adapter.
    use_dora: a trained magnitude for each row of W + ΔW (see dora.py).
    init_lora_weights: True (Kaiming uniform A, B = 0), "gaussian", "pissa", "olora", "loftq" (see init.py), or False,
    both random. loftq_config: {"loftq_bits": 4 or 8, "loftq_iter": 1}.
    enable_lora: for a layer that computes q, k and v in one product, which of them get an update (see fused.py).
    fan_in_fan_out: PEFT's note that weights are stored (in, out); here the layer knows, and the field is only written.
    task_type, base_model_name_or_path, revision, inference_mode: kept for the files, not used; extra: likewise, fields
    that only a file had.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | list[str] = "all-linear"
    lora_dropout: float = 0.0
    exclude_modules: str | list[str] | None = None
    bias: str = "none"
    fan_in_fan_out: bool = False
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    loftq_config: dict = field(default_factory=dict)
    enable_lora: list[bool] | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = True
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.init_lora_weights in ("default", None):
            self.init_lora_weights = True
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or {}, self.alpha_pattern or {}
        self.loftq_config = self.loftq_config or {}
        if self.init_lora_weights == "loftq":
            self.loftq_config = {"loftq_bits": 4, "loftq_iter": 1} | self.loftq_config
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"):
            value = getattr(self, name)
            if isinstance(value, (tuple, set, list)):
                value = sorted(value) if isinstance(value, set) else list(value)
                setattr(self, name, value if value or name == "target_modules" else None)
        self._check_sizes()
        self._check_names()
        self._check_kinds()

    def size_at(self, path: str) -> tuple[int, float]:
        """(r, lora_alpha) of the layer at `path`; the first pattern that matches the path's end decides."""
        return _at(path, self.rank_pattern, self.r), _at(path, self.alpha_pattern, self.lora_alpha)

    @property
    def scaling(self) -> float:
        """alpha / r, or alpha / √r, where no pattern says otherwise."""
        return self.scale(self.r, self.lora_alpha)

    def scale(self, r: int, alpha: float) -> float:
        """alpha / r, or alpha / √r with use_rslora: what B A is multiplied by."""
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation moves a part of the base weight into the adapter."""
        return self.init_lora_weights in ("pissa", "olora", "loftq")

    def _check_sizes(self):
        for what, r in {"r": self.r, **{f"rank_pattern[{k!r}]": v for k, v in self.rank_pattern.items()}}.items():
            if not (isinstance(r, int) and not isinstance(r, bool) and r > 0):
                raise ConfigError(f"{what} must be a positive integer, not {r!r}")
        alphas = {"lora_alpha": self.lora_alpha, **{f"alpha_pattern[{k!r}]": v for k, v in self.alpha_pattern.items()}}
        for what, alpha in alphas.items():
            if not (_number(alpha) and alpha > 0 and math.isfinite(alpha)):
                raise ConfigError(f"{what} must be positive, not {alpha!r}")
        if not (_number(self.lora_dropout) and 0 <= self.lora_dropout < 1):
            raise ConfigError(f"lora_dropout must be in [0, 1), not {self.lora_dropout!r}")

    def _check_names(self):
        if not self.target_modules:
            raise ConfigError("target_modules is empty: name layers, or say 'all-linear'")
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str) or _list_of(value, str)):
                raise ConfigError(f"{name} is a text or a list of names, not {value!r}")
        if not (self.modules_to_save is None or _list_of(self.modules_to_save, str)):
            raise ConfigError(f"modules_to_save is a list of names, not {self.modules_to_save!r}")
        blocks = self.layers_to_transform
        if not (blocks is None or (isinstance(blocks, int) and blocks >= 0) or _list_of(blocks, int)):
            raise ConfigError(f"layers_to_transform is a number of a block or a list of them, not {blocks!r}")
        if isinstance(self.target_modules, str) and self.target_modules.lower() != "all-linear":
            if blocks is not None:
                raise ConfigError("layers_to_transform needs target_modules as a list; the expression can name blocks")
            _check_expression("target_modules", self.target_modules)
        if self.layers_pattern and blocks is None:
            raise ConfigError("layers_pattern says where layers_to_transform counts, which is not given")
        if isinstance(self.exclude_modules, str):
            _check_expression("exclude_modules", self.exclude_modules)
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            _check_expression("rank_pattern or alpha_pattern", key)

    def _check_kinds(self):
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(f"bias is 'none', 'all' or 'lora_only', not {self.bias!r}")
        for name in ("use_rslora", "use_dora", "fan_in_fan_out"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is True or False, not {getattr(self, name)!r}")
        known = INITIALISATIONS + ONLY_LOADED
        if not any(self.init_lora_weights is k or (isinstance(k, str) and self.init_lora_weights == k) for k in known):
            raise ConfigError(f"init_lora_weights is one of {INITIALISATIONS}, not {self.init_lora_weights!r}")
        if self.enable_lora is not None:
            if not (_list_of(self.enable_lora, bool) and any(self.enable_lora)):
                raise ConfigError(f"enable_lora is a list of booleans with a True in it, not {self.enable_lora!r}")
            if self.use_dora or self.changes_base:
                raise ConfigError("enable_lora goes with plain LoRA: not with use_dora, pissa, olora or loftq")
        if unknown := self.loftq_config.keys() - {"loftq_bits", "loftq_iter"}:
            raise ConfigError(f"loftq_config has loftq_bits and loftq_iter, not {', '.join(sorted(map(str, unknown)))}")
        bits, rounds = self.loftq_config.get("loftq_bits", 4), self.loftq_config.get("loftq_iter", 1)
        if bits not in (4, 8) or not (isinstance(rounds, int) and rounds > 0):
            raise ConfigError(f"loftq_config: loftq_bits is 4 or 8, loftq_iter at least 1, not {bits!r}, {rounds!r}")


FIELDS = tuple(f.name for f in fields(LoraConfig))


def _at(path: str, pattern: dict, default):
    return next((value for key, value in pattern.items() if matches(key, path)), default)


def matches(key: str, path: str) -> bool:
    """Whether the key of a rank_pattern or alpha_pattern is for the layer at `path`."""
    return re.match(rf"(.*\.)?({key})$", path) is not None


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _list_of(value, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) is kind for v in value)


def _check_expression(what: str, expression: str):
    try:
        re.compile(expression)
    except (re.error, TypeError, RecursionError) as error:
        raise ConfigError(f"{what}: {expression!r} is not a regular expression: {error}") from error
