"""An opened PEFT adapter, and what it changes: of itself as factors, in a base as one change a tensor.

Read are LoRA with its patterns, rsLoRA, DoRA, KaSA, BD-LoRA, LoftQ, AdaLoRA (pruned or not), and PiSSA, OLoRA, CorDA
and LoRA-GA beside the factors they began with; biases, whole modules and single tokens that were trained too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from glmspectra.checkpoint.adapter.change import TensorChange
from glmspectra.checkpoint.adapter.config import BASE_REDUCED, AdapterConfig, read_config
from glmspectra.checkpoint.adapter.convolutions import as_factors, as_matrix, kernel_of
from glmspectra.checkpoint.adapter.factors import BaseRule, Factors, LoftQ, Truncation
from glmspectra.checkpoint.adapter.layout import BaseLayout, is_transposed
from glmspectra.checkpoint.adapter.parameters import parameter_changes
from glmspectra.checkpoint.adapter.promised import check_base, check_file, notes
from glmspectra.checkpoint.adapter.start import find_start, step_of
from glmspectra.checkpoint.adapter.stored import StoredAdapter, read_stored, shortened
from glmspectra.checkpoint.adapter.tying import untie
from glmspectra.checkpoint.names import natural_order
from glmspectra.errors import CheckpointError, RequestError

Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Changes:
    """What an adapter changes in one base.

    Attributes:
        tensors: Name in the merged checkpoint -> its change.
        untied: Tensors that were tied to another and no longer are (an output layer to its embedding) -> the base's
            tensor that each begins as. They are written on their own, and the configuration says that nothing is tied.
        notes: What a person is told: modules without factors, files that are not read.
    """

    tensors: dict[str, TensorChange]
    untied: dict[str, str]
    notes: list[str] = field(default_factory=list)


@dataclass
class Adapter:
    """An opened adapter folder.

    Attributes:
        path: The folder.
        config: Its configuration.
        names: Weights with factors (module + '.weight'), in the order of depth.
        step: Of checkpoint-N, where the folder says so.
        start: The adapter as it was before its first step, where that is taken off.
        stored: Its tensors as the file holds them.
    """

    path: Path
    config: AdapterConfig
    names: list[str]
    step: int | None
    start: "Adapter | None" = None
    stored: StoredAdapter = field(default_factory=StoredAdapter, repr=False)

    @property
    def peft_method(self) -> str:
        """Name of the method, as `AdapterConfig.peft_method`."""
        return self.config.peft_method

    def rename_modules(self, modules: Mapping[str, str]) -> None:
        """Keep the factors of these modules alone, each under its new name."""
        self.stored.factors = {new: self.stored.factors[old] for old, new in modules.items()}
        self.names = [f"{module}.weight" for module in sorted(self.stored.factors, key=natural_order)]

    @property
    def base_model(self) -> str | None:
        """base_model_name_or_path of the configuration."""
        return self.config.base_model_name_or_path

    @property
    def parameters(self) -> int:
        """Numbers in all factors as stored."""
        wrappers = [parts for found in self.stored.parameters.values() for parts in found.values()]
        return sum(tensor.numel() for parts in (*self.stored.factors.values(), *wrappers) for tensor in parts.values())

    @property
    def beyond_matrices(self) -> list[str]:
        """Modules with factors that are no matrix of their own: stacked experts, convolutions."""
        kernels = [module for module, parts in self.stored.factors.items() if kernel_of(parts) is not None]
        return sorted({*self.stored.parameters, *kernels}, key=natural_order)

    @property
    def whole(self) -> list[str]:
        """Tensors that are no factors: trained biases and modules, and tokens' rows; by base name."""
        rows = [f"{module}.weight" for module in self.stored.rows]
        added = [f"{module}.bias" for module, parts in self.stored.factors.items() if "lora_B.bias" in parts]
        return sorted({*self.stored.whole, *rows, *added}, key=natural_order)

    @property
    def needs_base(self) -> bool:
        """Whether some change of a matrix cannot be computed without the base's weight."""
        dora = any("lora_magnitude_vector" in parts for parts in self.stored.factors.values())
        return dora or self.config.peft_method in ("loftq", "kasa") or bool(self.stored.parameters)

    @property
    def is_zero(self) -> bool:
        """Whether its factors alone tell that it changes nothing, as before the first step of a training."""
        return not (self.whole or self.needs_base) and all(self.change(name).is_zero for name in self.names)

    def change(self, name: str) -> Factors:
        """What training changed of one weight, the way round that the layer multiplies: B A, without its start.

        Raises:
            RequestError: The adapter has no factors for this name.
            CheckpointError: Tensors are missing or contradict the configuration.
        """
        found = self._product(name)
        if self.start is None:
            return found
        return found.less(self.start._product(name))

    def own_factors(self, name: str) -> Factors:
        """The factors of one weight as they are stored, the way round that the layer multiplies: with their start."""
        return self._product(name)

    def changes(self, base: BaseLayout) -> "Changes":
        """Every tensor that this adapter changes in a base: the one answer for `merge`, `delta` and `evaluate`.

        Raises:
            CheckpointError: The base lacks one of them, or the factors do not fit it.
        """
        check_base(self.path, self.config, self.stored, base)
        found: dict[str, TensorChange] = {}

        def at(name: str) -> TensorChange:
            there, source = base.resolve(name, str(self.path), self.base_model)
            return found.setdefault(there, TensorChange(there, source, str(self.path)))

        for name, tensor in self.stored.whole.items():
            at(name).replaced = tensor
        for name in self.names:
            change = at(name)
            change.adapter_name = name
            change.factors = self._in_layer(name, change, base)
        for module, parts in self.stored.factors.items():
            if "lora_B.bias" in parts:
                self._add_bias(at, module, parts["lora_B.bias"], base)
        for module, rows in self.stored.rows.items():
            change = at(f"{module}.weight")
            change.rows = (self._tokens(module, rows), rows)
        for change in parameter_changes(self.path, self.config, self.stored.parameters, base):
            if change.name in found:
                raise CheckpointError(f"{self.path}: changes {change.name} twice, by a module and by a parameter.")
            found[change.name] = change
        return Changes(
            found, untie(self.path, self.peft_method, found, base), notes(self.path, self.config, found, base)
        )

    def _in_layer(self, name: str, change: TensorChange, base: BaseLayout) -> Factors:
        """The factors of one weight as its layer stores it."""
        module = name.removesuffix(".weight")
        shapes = base if change.replaced is None else base.with_shape(change.source, tuple(change.replaced.shape))
        if (kernel := kernel_of(self.stored.factors[module])) is not None:
            shapes = as_matrix(shapes, change.source, kernel, self.peft_method, f"{self.path}: {module}")
        product = self._product(name)
        start = self.start._product(name) if self.start is not None else None
        if change.replaced is not None and self.peft_method in BASE_REDUCED:
            start = None  # the weight that PEFT saved beside the factors has lost the first product already
        if product.transposed:  # an embedding, (tokens, width) already
            if product.shape != tuple(shapes.shapes[change.source]):
                is_transposed(shapes, module, product.shape, change.source, False)
            return product if start is None else product.less(start)
        flag = bool(self.config.fan_in_fan_out)
        if not is_transposed(shapes, module, product.shape, change.source, flag):
            return product if start is None else product.less(start)
        turned = replace(product.turned(), transposed=True)
        if start is None:
            return turned
        # PEFT takes OLoRA's first product out of the weight as it is stored, the others' the way the layer multiplies.
        return turned.less(start if self.peft_method == "olora" else start.turned())

    def _product(self, name: str) -> Factors:
        module = name.removesuffix(".weight")
        if module not in self.stored.factors:
            raise RequestError(f"{self.path}: no factors for {name!r}; it changes {shortened(self.names)}.")
        parts = self.stored.factors[module]
        embedding = "lora_embedding_A" in parts
        left, right = self._pair(module, parts, embedding)
        rank = right.shape[0]
        if self.config.adalora:
            # PEFT: B (A * E) * scaling / (ranknum + 1e-5); a pruned triplet is E = 0 or no longer in the file.
            allotted = round(float(parts["ranknum"].item())) if "ranknum" in parts else int(self.config.init_r or 0)
            right = right.double() * parts["lora_E"].double().reshape(-1, 1)
            alpha = self.config.lora_alpha
            scale = (alpha if alpha > 0 else allotted) / (allotted + 1e-5)
        elif "alpha" in parts:  # of a file that has no configuration (`lora_file`)
            allotted, scale = rank, float(parts["alpha"]) / rank
        else:
            allotted = rank
            self._check_rank(module, rank)
            scale = self.config.scale_of(module, rank)
        if "lora_diag" in parts:
            right = right * parts["lora_diag"].reshape(-1, 1)
        if embedding:
            left, right = right.T, left.T
        magnitude = parts.get("lora_magnitude_vector")
        outputs = right.shape[1] if embedding else left.shape[0]
        if magnitude is not None and magnitude.numel() != outputs:
            raise CheckpointError(
                f"{self.path}: {module} has {outputs} outputs and a lora_magnitude_vector of {list(magnitude.shape)}; "
                "they are of different layers."
            )
        return Factors(
            f"{module}.weight", left, right, scale, allotted,
            magnitude=None if magnitude is None else magnitude.flatten(),
            rule=self._rule(rank), transposed=embedding,
        )  # fmt: skip

    def _pair(self, module: str, parts: Parts, embedding: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """B (out, rank) and A (rank, in), checked."""
        b_key, a_key = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_B", "lora_A")
        needed = [
            a_key,
            b_key,
            *(["lora_E"] if self.config.adalora else []),
            *(["lora_diag"] if self.config.kasa_config is not None else []),
            *(["lora_magnitude_vector"] if self.config.use_dora else []),
            *(["lora_B.bias"] if self.config.lora_bias and not embedding else []),
        ]
        missing = [key for key in needed if key not in parts]
        if missing:
            raise CheckpointError(f"{self.path}: {module} lacks {', '.join(missing)}; the adapter was not saved whole.")
        for key, setting in (("lora_magnitude_vector", "use_dora"), ("lora_diag", "kasa_config"), ("lora_E", "")):
            if key in parts and key not in needed:
                said = f"{setting} is not set" if setting else "its type is not ADALORA"
                raise CheckpointError(f"{self.path}: {module} has {key}, but {said} in its configuration.")
        left, right = parts[b_key], parts[a_key]
        if not self.config.adalora and (min(left.ndim, right.ndim) < 2 or left.numel() == 0 or right.numel() == 0):
            raise CheckpointError(
                f"{self.path}: {module} has empty factors of shapes {tuple(left.shape)} and {tuple(right.shape)}: they "
                "were saved while DeepSpeed ZeRO-3 or FSDP held them in shards; gather them before saving."
            )
        left, right = self._whole_blocks(module, left, right)
        factors = as_factors(left, right)
        if factors is None:
            raise CheckpointError(
                f"{self.path}: {module} has factors of shapes {tuple(left.shape)} and {tuple(right.shape)}, which "
                "do not multiply to a matrix; linear layers, embeddings and convolutions are read."
            )
        return factors

    def _whole_blocks(self, module: str, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """BD-LoRA's factors, which are stored as their blocks, with the zeros around these."""
        blocks = self.config.use_bdlora
        if blocks is None:
            return left, right
        leaf = module.rpartition(".")[2]
        for modules, tensor in ((blocks.target_modules_bd_a, right), (blocks.target_modules_bd_b, left)):
            if any(part in leaf for part in modules or []) and tensor.shape[0] % blocks.nblocks:
                raise CheckpointError(f"{self.path}: {module} does not divide into {blocks.nblocks} blocks.")
        if any(part in leaf for part in blocks.target_modules_bd_a or []):
            right = torch.block_diag(*right.chunk(blocks.nblocks))  # type: ignore[no-untyped-call]
        if any(part in leaf for part in blocks.target_modules_bd_b or []):
            left = torch.block_diag(*left.chunk(blocks.nblocks))  # type: ignore[no-untyped-call]
        return left, right

    def _rule(self, rank: int) -> BaseRule | None:
        if self.peft_method == "loftq":
            settings = self.config.loftq_config
            return LoftQ(settings.loftq_bits if settings else 4, rank, settings.loftq_iter if settings else 1)
        return Truncation(rank) if self.config.kasa_config is not None else None

    def _check_rank(self, module: str, rank: int) -> None:
        expected, key = self.config.rank_of(module)
        if expected != rank:
            raise CheckpointError(
                f"{self.path}: {module} has factors of rank {rank}, but its configuration says {expected}"
                f"{'' if key is None else f' (rank_pattern {key!r})'}; PEFT would refuse to load it."
            )

    def _add_bias(self, at: Callable[[str], TensorChange], module: str, bias: torch.Tensor, base: BaseLayout) -> None:
        name = f"{module}.bias"
        if not base.find(name) and name not in base.tied:
            raise CheckpointError(
                f"{self.path}: lora_bias adds to the bias of {module}, which has none in the base; PEFT refuses it."
            )
        at(name).added = bias * self._product(f"{module}.weight").scale

    def _tokens(self, module: str, rows: torch.Tensor) -> torch.Tensor:
        """Numbers of the tokens whose rows were trained."""
        found = self.config.trainable_token_indices or []
        if isinstance(found, dict):
            fits = [indices for key, indices in found.items() if f".{module}".endswith(f".{key}")]
            found = fits[0] if len(fits) == 1 else []
        if len(found) != rows.shape[0]:
            raise CheckpointError(
                f"{self.path}: {module} has {rows.shape[0]} trained tokens, and trainable_token_indices names "
                f"{len(found)} of them."
            )
        if len(set(found)) != len(found):
            twice = next(token for token in found if found.count(token) > 1)
            raise CheckpointError(f"{self.path}: trainable_token_indices names token {twice} of {module} twice.")
        return torch.tensor(found)


def open_adapter(path: Path | str, initial: Path | str | None = None) -> Adapter:
    """Open a PEFT adapter folder (adapter_config.json beside adapter_model.safetensors or .bin).

    Args:
        path: The folder. A .bin is read by torch's restricted unpickler.
        initial: The adapter as it was before the first step; None looks where `start.find_start` says.

    Raises:
        RequestError: There is no adapter.
        CheckpointError: It cannot be read, or changes the base in a way that is not known here.
    """
    path = Path(path)
    config = read_config(path)
    start = find_start(path, config.peft_method, initial)
    adapter = _opened(path, config)
    adapter.step = step_of(path)
    if start is not None:
        # Its configuration says how the base was changed; as a start only the factors count.
        plain = {"init_lora_weights": True, "use_dora": False, "loftq_config": None}
        adapter.start = _opened(start, read_config(start).model_copy(update=plain), only_factors=True)
    return adapter


def _opened(path: Path, config: AdapterConfig, only_factors: bool = False) -> Adapter:
    stored = read_stored(path, config.modules_of_parameters)
    check_file(path, config, stored)
    if only_factors:
        for parts in stored.factors.values():
            parts.pop("lora_magnitude_vector", None)
    names = [f"{module}.weight" for module in sorted(stored.factors, key=natural_order)]
    return Adapter(path, config, names, None, None, stored)
