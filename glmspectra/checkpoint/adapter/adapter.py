"""Opens adapter folders as PEFT writes them, since 2023, and yields for each base weight the factors of its
change.

What is known: LoRA, rsLoRA, `rank_pattern` and `alpha_pattern`, AdaLoRA (before and after pruning), DoRA,
LoftQ, and PiSSA, OLoRA and CorDA, which take their first factors out of the base: training's change is then s
(B A - B0 A0), and B0 A0 must have been saved before the first step (PEFT:
`model.save_pretrained("initial_adapter")`). They are looked for in a folder `initial_adapter` inside the
adapter's folder or beside it, or where the caller says. Any other change of the base is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from glmspectra.checkpoint.adapter.factors import Factors, LoftQ
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.peft_rules import ModulePatterns

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
INITIAL_FOLDER = "initial_adapter"  # beside checkpoints: the factors that PiSSA and OLoRA took out of the base
INITIAL_FOLDERS = (INITIAL_FOLDER, "pissa_init", "pissa_backup", "olora_init", "corda_init")

# What PEFT's init_lora_weights does to the base weight.
BASE_UNCHANGED = ("gaussian", "eva", "orthogonal", "mica")
BASE_REDUCED = ("pissa", "olora", "corda", "lora_ga")  # W becomes W - s B0 A0

_PARAMETER = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?P<kind>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ranknum)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<suffix>\.weight|\.bias)?$"
)


@dataclass
class Adapter:
    """An opened adapter folder. `names` are base weight names (module + '.weight'), in the order of depth.

    kind: lora, rslora, adalora, dora, pissa, olora, corda, lora_ga, loftq. whole: tensors that training
    replaced as a whole (modules_to_save, biases), by base name; they have no factors. step: of checkpoint-N,
    where the folder says so.
    """

    path: Path
    config: dict[str, Any]
    kind: str
    names: list[str]
    whole: list[str]
    step: int | None
    _tensors: dict[str, dict[str, torch.Tensor]] = field(repr=False)
    _initial: "Adapter | None" = field(default=None, repr=False)  # B0 A0 that the base lost
    _start: "Adapter | None" = field(default=None, repr=False)  # B0 A0 that the base never had

    @property
    def base_model(self) -> str | None:
        """base_model_name_or_path of the configuration."""
        return self.config.get("base_model_name_or_path")

    @property
    def start_path(self) -> Path | None:
        """The folder of the factors as they were before the first step, where they are taken off."""
        start = self._initial or self._start
        return start.path if start is not None else None

    @property
    def parameters(self) -> int:
        """Numbers in all factors as stored."""
        return sum(t.numel() for parts in self._tensors.values() for t in parts.values())

    def factors(self, name: str) -> Factors:
        """Factors of the change of one base weight. Raises RequestError for a name that the adapter does not
        change, CheckpointError where tensors are missing or contradict the configuration.
        """
        module = name.removesuffix(".weight")
        if module not in self._tensors:
            raise RequestError(f"{self.path}: no factors for {name!r}; it changes {_some(self.names)}.")
        parts = self._tensors[module]
        embedding = "lora_embedding_A" in parts
        a_key, b_key = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        missing = [key for key in (a_key, b_key, *(["lora_E"] if self.kind == "adalora" else [])) if key not in parts]
        if missing:
            raise CheckpointError(f"{self.path}: {module} lacks {', '.join(missing)}; the adapter was not saved whole.")
        right, left = parts[a_key], parts[b_key]
        if right.ndim != 2 or left.ndim != 2 or right.shape[0] != left.shape[1]:
            raise CheckpointError(
                f"{self.path}: {module} has factors of shapes {tuple(left.shape)} and {tuple(right.shape)}, which "
                "do not multiply to a matrix; only linear layers and embeddings are read."
            )
        rank = right.shape[0]
        if self.kind == "adalora":
            # PEFT: B (A * E) * scaling / (ranknum + 1e-5); a pruned triplet is E = 0 or is no longer in the
            # file.
            allotted = self._starting_rank(module, parts)
            right = right.double() * parts["lora_E"].double().reshape(-1, 1)
            alpha = float(self.config["lora_alpha"])
            scale = (alpha if alpha > 0 else allotted) / (allotted + 1e-5)
        else:
            allotted = rank
            self._check_rank(module, rank)
            scale = self._scale(module, rank)
        magnitude = parts.get("lora_magnitude_vector")
        if self._initial is not None:
            left, right = _less_start(left, right, scale, self._initial.factors(name))
        transposed = embedding or bool(self.config.get("fan_in_fan_out"))
        if transposed:
            left, right = right.T, left.T
        loftq = None
        if self.kind == "loftq":
            settings = self.config.get("loftq_config") or {}
            loftq = LoftQ(int(settings.get("loftq_bits", 4)), rank, int(settings.get("loftq_iter", 1)))
        return Factors(
            f"{module}.weight", left, right, scale, allotted,
            magnitude=None if magnitude is None else magnitude.flatten(), loftq=loftq, transposed=transposed,
        )  # fmt: skip

    def change(self, name: str) -> Factors:
        """As `factors`, less what the factors held before the first step where that was kept (`initial_adapter`).

        A LoRA adapter whose start was fitted to a 4-bit base's error (LoftQ on a base that was loaded quantised)
        is kept so; against the published weights only what came since is training's change, as in `merge`.
        """
        found = self.factors(name)
        if self._start is None:
            return found
        start = self._start.factors(name)
        left, right = _less_start(found.left, found.right, found.scale, start)
        return replace(found, left=left, right=right)

    def _starting_rank(self, module: str, parts: Mapping[str, torch.Tensor]) -> int:
        """AdaLoRA's ranknum: init_r for all in PEFT; a module's own where the file gives it."""
        if "ranknum" in parts:
            return round(float(parts["ranknum"].item()))
        return int(self.config["init_r"])

    def _scale(self, module: str, rank: int) -> float:
        alphas = self.config.get("alpha_pattern") or {}
        key = ModulePatterns(alphas, "alpha_pattern").first(module)
        alpha = float(self.config["lora_alpha"] if key is None else alphas[key])
        return alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank

    def _check_rank(self, module: str, rank: int) -> None:
        ranks = self.config.get("rank_pattern") or {}
        key = ModulePatterns(ranks, "rank_pattern").first(module)
        told = int(self.config["r"] if key is None else ranks[key])
        if told != rank:
            raise CheckpointError(
                f"{self.path}: {module} has factors of rank {rank}, but {CONFIG_FILE} says {told}"
                f"{'' if key is None else f' (rank_pattern {key!r})'}; PEFT would refuse to load it."
            )

    def base_names(self, available: Mapping[str, Any] | list[str]) -> dict[str, str]:
        """Adapter's weight name -> the base's: equal, or the only one that ends in it (a wrapper adds a
        prefix to one of them).

        Raises CheckpointError for a weight that the base lacks or that several could be.
        """
        names = list(available)
        known = set(names)
        result = {}
        for name in self.names:
            if name in known:
                result[name] = name
                continue
            fits = [other for other in names if other.endswith(f".{name}") or name.endswith(f".{other}")]
            if len(fits) != 1:
                raise CheckpointError(
                    f"{self.path}: the adapter changes {name!r}, of which the base has "
                    f"{'none' if not fits else _some(fits)}; it was trained on {self.base_model or 'another base'}."
                )
            result[name] = fits[0]
        return result


def open_adapter(path: Path | str, initial: Path | str | None = None) -> Adapter:
    """Open a PEFT adapter folder (adapter_config.json beside adapter_model.safetensors or .bin).

    initial: folder of the adapter as it was before the first step, for PiSSA, OLoRA, CorDA; when None, looked
    for as the module says. The factors are read at once: they are megabytes. A .bin is read by torch's
    restricted unpickler. Raises RequestError when there is no adapter, CheckpointError when it cannot be read
    or changes the base in a way not known here.
    """
    path = Path(path)
    config = _read_config(path)
    kind = _kind(path, config)
    tensors, whole = _read_tensors(path)
    names = [f"{module}.weight" for module in sorted(tensors, key=_depth)]
    adapter = Adapter(path, config, kind, names, whole, _step_of(path), tensors)
    if kind in BASE_REDUCED:
        adapter._initial = _open_initial(path, kind, initial)
    elif kind in ("lora", "rslora"):
        adapter._start = _kept_start(path, initial)
    elif initial is not None:
        raise RequestError(
            f"{path}: an initial adapter is only needed for {', '.join(BASE_REDUCED)}; this one is {kind}."
        )
    if kind == "dora" and not all("lora_magnitude_vector" in parts for parts in tensors.values()):
        raise CheckpointError(f"{path}: use_dora is set, but some modules have no lora_magnitude_vector.")
    return adapter


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_FILE
    if not file.is_file():
        raise RequestError(f"{path}: no adapter here: there is no {CONFIG_FILE}.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: an object is expected.")
    needed = ("peft_type", "lora_alpha", "init_r" if config.get("peft_type") == "ADALORA" else "r")
    missing = [key for key in needed if key not in config]
    if missing:
        raise CheckpointError(f"{file}: the key {missing[0]!r} is missing.")
    return config


def _kind(path: Path, config: Mapping[str, Any]) -> str:
    """Name the method, and refuse what changes the base or the product in a way not known here."""
    peft_type = str(config["peft_type"])
    if peft_type not in ("LORA", "ADALORA"):
        raise CheckpointError(
            f"{path}: adapters of type {peft_type} have no factors that are read here, only LORA and ADALORA."
        )
    for key in (
        "layer_replication",
        "target_parameters",
        "use_qalora",
        "kasa_config",
        "arrow_config",
        "use_bdlora",
    ):
        if config.get(key):
            raise CheckpointError(f"{path}: {key} is set in {CONFIG_FILE}; what it does to the base is not known here.")
    if peft_type == "ADALORA":
        return "adalora"
    start = config.get("init_lora_weights", True)
    if isinstance(start, str):
        method = start.lower().split("_niter_")[0]
        if method in BASE_REDUCED:
            if config.get("use_dora"):
                raise CheckpointError(f"{path}: DoRA on a base changed by {method} is not known here.")
            return method
        if method == "loftq":
            return "loftq"
        if method not in (*BASE_UNCHANGED, "true", "false"):
            raise CheckpointError(
                f"{path}: init_lora_weights {start!r} may have changed the base in a way not known here; "
                "compare the merged checkpoint with the base instead (glmspectra delta BASE MERGED)."
            )
    if config.get("use_dora"):
        return "dora"
    return "rslora" if config.get("use_rslora") else "lora"


def _read_tensors(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Module -> kind -> tensor, and the names of tensors that are no factors but whole replaced ones."""
    file = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path}: {CONFIG_FILE} is there, but neither {' nor '.join(WEIGHT_FILES)}.")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                stored = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); was it saved whole?") from None
    except Exception as error:  # the restricted unpickler raises its own class
        raise CheckpointError(f"{file}: holds more than tensors, it is not opened ({type(error).__name__}).") from None
    modules: dict[str, dict[str, torch.Tensor]] = {}
    whole = []
    for key, tensor in stored.items():
        found = _PARAMETER.match(key)
        if found and found["suffix"] != ".bias":
            modules.setdefault(found["module"].replace(".base_layer", ""), {})[found["kind"]] = tensor
        elif "lora_" in key and not found:
            raise CheckpointError(f"{file}: the tensor {key!r} belongs to a variant of LoRA that is not read here.")
        else:
            whole.append(key.removeprefix("base_model.model.").replace(".modules_to_save.default", ""))
    if not modules:
        raise CheckpointError(f"{file}: no factors in it; its tensors are {_some(list(stored)) or 'none'}.")
    return modules, sorted(whole, key=_depth)


def _open_initial(path: Path, kind: str, initial: Path | str | None) -> Adapter:
    places = [Path(initial)] if initial is not None else []
    if initial is None:
        # Inside the adapter's folder, beside it, and (checkpoint-N/LoraAdapter) beside its checkpoint.
        places = [root / name for root in (path, path.parent, path.parent.parent) for name in INITIAL_FOLDERS]
    found = next((place for place in places if (place / CONFIG_FILE).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{path}: {kind} took its first factors out of the base, and without them the change cannot be told; "
            f"save the adapter before training as {INITIAL_FOLDERS[0]} in this folder, or name its folder."
        )
    return _plain_adapter(found)


def _kept_start(path: Path, initial: Path | str | None) -> Adapter | None:
    """The start of a LoRA adapter, where it was kept: in its own folder, or beside the checkpoint-N it lies in."""
    places = [Path(initial)] if initial is not None else [path / INITIAL_FOLDERS[0]]
    if initial is None:
        places += [f.parent / INITIAL_FOLDERS[0] for f in (path, path.parent) if f.name.startswith("checkpoint-")]
    found = next((place for place in places if (place / CONFIG_FILE).is_file()), None)
    if found is None:
        if initial is not None:
            raise RequestError(f"{initial}: no adapter here: there is no {CONFIG_FILE}.")
        return None
    return _plain_adapter(found)


def _plain_adapter(path: Path) -> Adapter:
    """An adapter as LoRA factors alone, whatever its configuration says of the base."""
    config = _read_config(path)
    tensors, whole = _read_tensors(path)
    kind = "rslora" if config.get("use_rslora") else "lora"
    return Adapter(path, config, kind, list(tensors), whole, None, tensors)


def _less_start(
    left: torch.Tensor, right: torch.Tensor, scale: float, start: Factors
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of left @ right - start: [left, -left_0] and [right; right_0], the start's scale brought to `scale`.

    left (rows, r) -> (rows, r + r_0), right (r, cols) -> (r + r_0, cols).
    """
    start_left = start.left if start.scale == scale else start.left * (start.scale / scale)
    return (
        torch.cat([left, -start_left.to(left.dtype)], dim=1),
        torch.cat([right, start.right.to(right.dtype)], dim=0),
    )


def _depth(name: str) -> list[tuple[int, int, str]]:
    """Sort key: numbers in a name count as numbers, layers.2 before layers.11."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _step_of(path: Path) -> int | None:
    for folder in (path, path.parent):
        found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if found:
            return int(found[1])
    return None


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
