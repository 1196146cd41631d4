"""Combinations of settings that cannot be, each refused in the user's own words."""

from collections.abc import Mapping

from glmspectra.language import text
from glmspectra.tuning.settings.files import Faults, Section, is_secret, shown
from glmspectra.tuning.settings.models import ADALORA_KEYS, LORA_ONLY_KEYS, FinetuneArgs, LoraArgs
from glmspectra.tuning.settings.train_args import TrainArgs, check_status, statuses, takes

_CYCLES, _LEAST = ("num_cycles",), ("num_cycles", "min_lr", "min_lr_rate")
# What lr_scheduler_kwargs may hold for each schedule of transformers, which leaves out or stumbles over anything else.
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "constant": (),
    "constant_with_warmup": (),
    "cosine": _CYCLES,
    "cosine_with_restarts": _CYCLES,
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"),
    "cosine_with_min_lr": _LEAST,
    "cosine_warmup_with_min_lr": (*_LEAST, "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
}
_FREE, _MIX = ("weight_lr_power", "r"), ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
# The same for optim_args; transformers passes over what an optimizer does not ask for, and every other one has none.
OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "adamw_anyprecision": (
        "use_kahan_summation",
        "momentum_dtype",
        "variance_dtype",
        "compensation_buffer_dtype",
    ),
    "adamw_torch_4bit": ("bf16_stochastic_round",),
    "adamw_torch_8bit": ("bf16_stochastic_round",),
    "ademamix": _MIX,
    "ademamix_8bit": _MIX,
    "paged_ademamix_32bit": _MIX,
    "paged_ademamix_8bit": _MIX,
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    "schedule_free_adamw": _FREE,
    "schedule_free_radam": _FREE,
    "schedule_free_sgd": _FREE,
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
}


def check_combinations(
    finetune: FinetuneArgs,
    lora: LoraArgs,
    train: TrainArgs,
    sections: Mapping[str, Section],
    wrong: set[str],
    faults: Faults,
) -> None:
    """Add a fault for each combination that cannot work.

    finetune, lora, train are the validated models; `wrong` names keys whose own values are at fault already, which
    are not held against any combination.
    """
    if not {"method", "load_in_4bit", "layers_to_transform"} & wrong:
        _check_method(finetune, sections["finetune"], faults)
        method = finetune.method or ("qlora" if finetune.load_in_4bit else "lora")
        _check_adapter(method, lora, sections["lora"], faults)
        _check_adalora(method, lora, train, sections["lora"], wrong, faults)
    _check_train(finetune, train, sections, faults)


def _check_method(finetune: FinetuneArgs, section: Section, faults: Faults) -> None:
    if finetune.method is None or finetune.load_in_4bit is None:
        return
    if finetune.load_in_4bit != finetune.method.startswith("q"):
        other = finetune.method.removeprefix("q") if finetune.method.startswith("q") else "q" + finetune.method
        faults.add(
            section.source("method"),
            f'method "{finetune.method}" and load_in_4bit {str(finetune.load_in_4bit).lower()} contradict each other; '
            f'write method "{other}" or leave load_in_4bit out.',
        )


def _check_adapter(method: str, lora: LoraArgs, section: Section, faults: Faults) -> None:
    start = lora.init_lora_weights
    if (
        isinstance(lora.target_modules, str)
        and lora.target_modules != "all-linear"
        and lora.layers_to_transform is not None
    ):
        faults.add(
            section.source("layers_to_transform"),
            "layers_to_transform works with a list of target_modules, and target_modules is a regex; "
            "put the layer numbers into the regex.",
        )
    if lora.layers_pattern is not None and lora.layers_to_transform is None:
        faults.add(section.source("layers_pattern"), "layers_pattern needs layers_to_transform, the layers it counts.")
    if method.startswith("q") and isinstance(start, str) and start.startswith("pissa"):
        faults.add(
            section.source("init_lora_weights"),
            f'init_lora_weights "{start}" takes singular vectors out of the weights, which a 4-bit base cannot give '
            f"up; allowed with method {method}: true, false, gaussian, olora, eva, loftq.",
        )
    if method == "lora" and start == "loftq":
        faults.add(
            section.source("init_lora_weights"),
            'init_lora_weights "loftq" makes up for the error of a 4-bit base; it goes with method qlora.',
        )
    if isinstance(lora.target_modules, list) and not lora.target_modules:
        faults.add(
            section.source("target_modules"),
            "target_modules is an empty list, so nothing would be trained; "
            "name modules, or write null for those of the model's family.",
        )


def _check_adalora(
    method: str, lora: LoraArgs, train: TrainArgs, section: Section, wrong: set[str], faults: Faults
) -> None:
    if not method.endswith("adalora"):
        for key in ADALORA_KEYS:
            if key in section.values:
                faults.add(
                    section.source(key),
                    f"{key} is a key of AdaLoRA and method is {method}; remove it, or write method "
                    f'"{"qadalora" if method == "qlora" else "adalora"}" into finetune_args.json.',
                )
        return
    for key, reason in LORA_ONLY_KEYS.items():
        if section.values.get(key):
            faults.add(section.source(key), f"{key} does not go with method {method}: {reason}.")
    if not isinstance(lora.init_lora_weights, bool):
        faults.add(
            section.source("init_lora_weights"),
            f'init_lora_weights "{lora.init_lora_weights}" does not go with method {method}; allowed: true or false.',
        )
    target = lora.target_r if lora.target_r is not None else lora.r
    if lora.init_r is not None and target > lora.init_r and not {"r", "target_r"} & wrong:
        faults.add(
            section.source("target_r"),
            f"target_r {target} is above init_r {lora.init_r}, and AdaLoRA only takes ranks away; "
            f"allowed: at most {lora.init_r}.",
        )
    if lora.init_r is not None and lora.start_ranks and max(lora.start_ranks.values()) > lora.init_r:
        faults.add(
            section.source("start_ranks"),
            f"start_ranks holds {max(lora.start_ranks.values())}, above init_r {lora.init_r}; "
            "raise init_r to the largest start rank.",
        )
    _check_phases(lora, train.max_steps, section, faults)


def _check_phases(lora: LoraArgs, max_steps: int, section: Section, faults: Faults) -> None:
    """Shares are of any run; steps can be checked here only when max_steps says how many there are."""
    if isinstance(lora.tinit, float) and isinstance(lora.tfinal, float):
        total, name = 1, "share of the run"
    elif isinstance(lora.tinit, int) and isinstance(lora.tfinal, int) and max_steps > 0:
        total, name = max_steps, f"of the {max_steps} steps"
    else:
        return
    if lora.tinit + lora.tfinal >= total:
        faults.add(
            section.source("tinit"),
            f"tinit {lora.tinit} and tfinal {lora.tfinal} leave no {name} for ranks to fall in; "
            f"their sum must be below {total}.",
        )


def _check_train(finetune: FinetuneArgs, train: TrainArgs, sections: Mapping[str, Section], faults: Faults) -> None:
    section = sections["train"]
    if train.bf16 and train.fp16:
        faults.add(section.source("fp16"), "bf16 and fp16 are both true; keep one.")
    if finetune.packing and train.train_sampling_strategy == "group_by_length":
        faults.add(
            section.source("train_sampling_strategy"),
            "packing fills rows to one length, so there is nothing to group by length; remove one of the two.",
        )
    if finetune.valid_path is not None and finetune.valid_fraction is not None:
        faults.add(
            sections["finetune"].source("valid_fraction"),
            "valid_path and valid_fraction are both given; keep one, since each says what is evaluated on.",
        )
    options = SCHEDULE_OPTIONS[train.lr_scheduler_type]
    if unknown := [key for key in train.lr_scheduler_kwargs or {} if key not in options]:
        faults.add(
            section.source("lr_scheduler_kwargs"),
            f'the schedule "{train.lr_scheduler_type}" has no option {unknown[0]}; it has '
            f"{', '.join(options) or 'none'}.",
        )
    for piece in train.optim_args.split(",") if train.optim_args else []:
        name, has = piece.partition("=")[0].strip(), OPTIMIZER_OPTIONS.get(train.optim, ())
        if "=" not in piece or name not in has:
            faults.add(
                section.source("optim_args"),
                f'the optimizer "{train.optim}" has no option {name or "without a name"} in optim_args'
                f"{'' if '=' in piece else ' without a value'}; it has {', '.join(has) or 'none'}.",
            )
            break
    if train.load_best_model_at_end and train.eval_strategy == "no":
        faults.add(
            section.source("load_best_model_at_end"),
            'load_best_model_at_end needs eval_strategy "steps" or "epoch".',
        )
    for named in [finetune.columns, *(source.columns for source in finetune.sources)]:
        if named and "messages" in named and {"context", "target", "input"} & named.keys():
            faults.add(
                sections["finetune"].source("columns"),
                "columns names messages and context, target or input; give either.",
            )
            break


def check_train_keys(train: TrainArgs, section: Section, wrong: set[str], notes: list[str], faults: Faults) -> None:
    """A fault for each key of the Trainer that is refused, a note for each that has no effect here."""
    for key, value in section.values.items():
        why = check_status(key, value) if key in statuses() and key not in wrong else None
        if why is None:
            continue
        if statuses()[key] == "refused":
            value_shown = "(hidden)" if is_secret(key) else shown(value)
            faults.add(section.source(key), f"{key} is {value_shown}; allowed: {takes(key)}. {why}.")
        else:
            notes.append(text("settings-idle", source=section.source(key), key=key, why=why))


def join_shared_keys(sections: Mapping[str, Section], faults: Faults) -> None:
    """`seed` and `resume_from_checkpoint` are keys of two files; what train_args gives moves to finetune_args."""
    finetune, train = sections["finetune"], sections["train"]
    for key in ("seed", "resume_from_checkpoint"):
        if key not in train.values:
            continue
        source = train.source(key)
        value = train.drop(key)
        if finetune.values.get(key) is None:
            finetune.put(key, value, source)
        elif value is not None and value != finetune.values[key]:
            faults.add(
                source,
                f"{key} is {shown(value)} here and {shown(finetune.values[key])} in {finetune.source(key)}; "
                "keep one of the two.",
            )
