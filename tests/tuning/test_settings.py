"""The three files: what is taken, what is translated, and what each fault says."""

import inspect
import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION as FUNCTIONS
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS

from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import ConfigError
from glmspectra.tuning.settings.checks import OPTIMIZER_OPTIONS, SCHEDULE_OPTIONS
from glmspectra.tuning.settings.explain import trainer_keys_page
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.settings.old_names import SILENT
from glmspectra.tuning.settings.train_args import Optimizer, Schedule

STUDY = {
    "finetune": {
        "dataset_path": "data/Med_datasets.jsonl",
        "model_path": "chatglm2-6b",
        "label_pad_token_id": -100,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32",
        "seed": 42,
        "resume_from_checkpoint": None,
        "final_model_path": "out/final",
    },
    "lora": {
        "r": 12,
        "target_modules": ["query_key_value"],
        "lora_alpha": 48,
        "lora_dropout": 0.05,
        "bias": "none",
        "inference_mode": False,
        "layers_to_transform": None,
        "layers_pattern": None,
        "Adapter_name": "LoraAdapter",
    },
    "train": {
        "output_dir": "out",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 2e-05,
        "evaluation_strategy": "steps",
        "eval_steps": 100,
    },
}


@pytest.fixture
def folder(tmp_path):
    """Writes the three files, each with the changes given; a value of `...` removes a key."""

    def write(**changes) -> Path:
        for name, values in STUDY.items():
            merged = {**values, **changes.get(name, {})}
            kept = {key: value for key, value in merged.items() if value is not ...}
            (tmp_path / f"{name}_args.json").write_text(json.dumps(kept), encoding="utf-8")
        return tmp_path

    return write


def fault(path: Path, *overrides: str, ranks: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, list(overrides), ranks)
    return str(caught.value)


def test_the_rate_of_the_embedded_model_is_noted_where_another_is_trained(folder, tmp_path):
    def noted(model: str, rate: float, *overrides: str) -> bool:
        path = folder(finetune={"model_path": model}, train={"learning_rate": rate})
        return any("--find-lr" in note for note in load_settings(path, list(overrides)).notes)

    assert noted(str(tmp_path), 1e-2)
    assert not noted("nano", 1e-2)
    assert not noted(str(EMBEDDED_MODEL), 1e-2)
    assert not noted(str(tmp_path), 2e-4)
    assert not noted(str(tmp_path), 1e-2, "train.learning_rate=1e-2"), "asked for"


def test_every_key_of_the_study_keeps_its_value(folder):
    settings = load_settings(folder())
    assert settings.method == "qlora"
    assert settings.quantized
    assert not settings.adaptive
    assert (settings.lora.r, settings.lora.lora_alpha, settings.lora.lora_dropout) == (12, 48, 0.05)
    assert settings.lora.adapter_name == "LoraAdapter"
    assert settings.finetune.bnb_4bit_compute_dtype == "float32"
    assert str(settings.final_adapter) == "out/final"
    arguments = settings.training_arguments(use_cpu=True)
    assert arguments.learning_rate == 2e-05
    assert arguments.eval_strategy == "steps"
    assert arguments.eval_steps == 100
    assert arguments.seed == 42
    assert arguments.train_sampling_strategy == "group_by_length"


@pytest.mark.shared
def test_the_files_of_the_study_load_unchanged(shared):
    settings = load_settings(shared / "reference/study_runs/args_file")
    assert settings.method == "qlora"
    assert settings.notes == [
        "train_args.json: overwrite_output_dir is set aside: a new run writes into output_dir and keeps the "
        "checkpoints that stand there.",
        "train_args.json: evaluation_strategy is taken as eval_strategy.",
    ]
    assert settings.training_arguments(use_cpu=True).per_device_train_batch_size == 8


@pytest.mark.parametrize(
    ("given", "taken", "note"),
    [
        ({"no_cuda": False}, {"use_cpu": False}, "no_cuda is taken as use_cpu."),
        (
            {"group_by_length": True},
            {"train_sampling_strategy": "group_by_length"},
            'group_by_length is taken as train_sampling_strategy "group_by_length".',
        ),
        (
            {"warmup_ratio": 0.1},
            {"warmup_steps": 0.1},
            "warmup_ratio is taken as warmup_steps, below 1 a share of all steps.",
        ),
        (
            {"optim": "adamw_hf"},
            {"optim": "adamw_torch"},
            'optim "adamw_hf" is gone from transformers and is taken as "adamw_torch".',
        ),
        ({"per_gpu_eval_batch_size": 4}, {"per_device_eval_batch_size": 4}, "per_device_eval_batch_size."),
        ({"save_safetensors": True}, {}, "save_safetensors is set aside: adapters are always saved as safetensors."),
        ({"logging_dir": "x"}, {}, "logging_dir is set aside: logs go to output_dir"),
    ],
)
def test_names_of_earlier_versions(folder, given, taken, note):
    settings = load_settings(folder(train=given))
    assert {key: getattr(settings.train, key) for key in taken} == taken
    assert [line for line in settings.notes if note in line]
    settings.training_arguments(use_cpu=True)  # the Trainer takes what came out


def test_both_names_of_checkpointing_mean_the_same(folder):
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        settings = load_settings(folder(train={name: True}))
        assert settings.train.gradient_checkpointing is True
        arguments = settings.training_arguments(use_cpu=True)
        assert getattr(arguments, "activation_checkpointing", None) or arguments.gradient_checkpointing


def test_an_old_and_a_new_name_with_different_values(folder):
    assert fault(folder(train={"eval_strategy": "epoch"})) == (
        "train_args.json: evaluation_strategy is the old name of eval_strategy, and both are given with different "
        "values; keep eval_strategy."
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"lora_aplha": 24}}, "lora_args.json: unknown key lora_aplha; did you mean lora_alpha?"),
        ({"lora": {"learning_rate": 1}}, "lora_args.json: unknown key learning_rate; it belongs in train_args.json."),
        ({"train": {"learnig_rate": 1}}, "train_args.json: unknown key learnig_rate; did you mean learning_rate?"),
        (
            {"train": {"max_lenght": 1}},
            "train_args.json: unknown key max_lenght; did you mean max_length of finetune_args.json?",
        ),
        ({"lora": {"r": "12"}}, 'lora_args.json: r is "12"; allowed: a whole number of at least 1.'),
        ({"lora": {"r": True}}, "lora_args.json: r is true; allowed: a whole number of at least 1."),
        ({"lora": {"bias": "some"}}, 'lora_args.json: bias is "some"; allowed: one of none, all, lora_only.'),
        (
            {"lora": {"inference_mode": True}},
            "lora_args.json: inference_mode is true; allowed: false, since true freezes the adapter.",
        ),
        (
            {"lora": {"rank_pattern": {"dense": 0}}},
            'lora_args.json: rank_pattern is {"dense": 0}; allowed: an object of module name or regex to a whole '
            "number of at least 1.",
        ),
        (
            {"lora": {"init_lora_weights": "pizza"}},
            'lora_args.json: init_lora_weights is "pizza"; allowed: true, false, gaussian, olora, pissa, '
            "pissa_niter_N, eva or loftq.",
        ),
        (
            {"finetune": {"label_pad_token_id": 0}},
            "finetune_args.json: label_pad_token_id is 0; allowed: -100, the id that the loss leaves out.",
        ),
        (
            {"finetune": {"dataset_path": ...}},
            "finetune_args.json: key dataset_path is missing; it takes the path of a data file or folder, or a list",
        ),
        ({"train": {"fp16": 1}}, "train_args.json: fp16 is 1; allowed: true or false."),
        ({"train": {"save_strategy": "often"}}, "one of no, steps, epoch, best."),
        ({"train": {"per_device_train_batch_size": 0}}, "allowed: a whole number of at least 1."),
        (
            {"finetune": {"method": "lora"}},
            'finetune_args.json: method "lora" and load_in_4bit true contradict each other; write method "qlora" or '
            "leave load_in_4bit out.",
        ),
        (
            {"lora": {"init_r": 18}},
            "lora_args.json: init_r is a key of AdaLoRA and method is qlora; remove it, or write method "
            '"qadalora" into finetune_args.json.',
        ),
        (
            {"finetune": {"method": "qadalora"}, "lora": {"init_r": 6, "target_r": 8}},
            "lora_args.json: target_r 8 is above init_r 6, and AdaLoRA only takes ranks away; allowed: at most 6.",
        ),
        (
            {"finetune": {"method": "qadalora"}, "lora": {"use_dora": True}},
            "lora_args.json: use_dora does not go with method qadalora: PEFT has no AdaLoRA with DoRA.",
        ),
        (
            {"finetune": {"method": "qadalora"}, "lora": {"tinit": 0.6, "tfinal": 0.4}},
            "lora_args.json: tinit 0.6 and tfinal 0.4 leave no share of the run for ranks to fall in; their sum must "
            "be below 1.",
        ),
        (
            {"finetune": {"method": "qadalora"}, "lora": {"tinit": 8, "tfinal": 4}, "train": {"max_steps": 10}},
            "lora_args.json: tinit 8 and tfinal 4 leave no of the 10 steps",
        ),
        (
            {"lora": {"init_lora_weights": "pissa"}},
            'lora_args.json: init_lora_weights "pissa" takes singular vectors out of the weights',
        ),
        ({"train": {"bf16": True, "fp16": True}}, "train_args.json: bf16 and fp16 are both true; keep one."),
        (
            {"finetune": {"packing": True}, "train": {"group_by_length": True}},
            "train_args.json: packing fills rows to one length, so there is nothing to group by length; remove one "
            "of the two.",
        ),
        ({"train": {"seed": 7}}, "train_args.json: seed is 7 here and 42 in finetune_args.json; keep one of the two."),
        (
            {"lora": {"layers_pattern": "layers"}},
            "lora_args.json: layers_pattern needs layers_to_transform, the layers it counts.",
        ),
        (
            {"lora": {"target_modules": "query.*", "layers_to_transform": [1]}},
            "lora_args.json: layers_to_transform works with a list of target_modules, and target_modules is a regex; "
            "put the layer numbers into the regex.",
        ),
    ],
)
def test_what_a_fault_says(folder, changes, message):
    assert message in fault(folder(**changes))


def test_all_faults_are_said_at_once(folder):
    path = folder(
        finetune={"packing": "yes", "metod": "lora"}, lora={"r": 0}, train={"bf16": True, "fp16": True, "optimm": "x"}
    )
    lines = fault(path, "--oops", "lora.q=1").splitlines()
    assert lines[0] == f"7 faults in the settings of {path}:"
    assert sorted(line.split(":")[0].strip() for line in lines[1:]) == [
        "--set --oops",
        "--set lora.q",
        "finetune_args.json",
        "finetune_args.json",
        "lora_args.json",
        "train_args.json",
        "train_args.json",
    ]


def test_files_that_cannot_be_read(folder, tmp_path):
    path = folder()
    (path / "lora_args.json").write_text('{"r": 12,\n "r": 8}')
    (path / "train_args.json").write_text('{"output_dir": "x",\n}')
    message = fault(path)
    assert f"{path / 'lora_args.json'}: the key 'r' stands twice in one object." in message
    assert f"{path / 'train_args.json'} is not JSON (line 2, column 1: " in message
    (path / "train_args.json").unlink()
    assert f"train_args.json: is not in the folder {path}; `glmspectra init` writes the three files" in fault(path)
    (path / "train_args.json").write_text("[]")
    assert f"{path / 'train_args.json'} holds a list where a JSON object was expected." in fault(path)
    assert fault(tmp_path / "nowhere").endswith(
        "there is no such folder; `glmspectra init` writes the three settings files."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fault(empty).startswith(f"{empty}: holds none of the three settings files (finetune_args.json, ")
    assert fault(empty).endswith("; `glmspectra init` writes them.")
    shutil.copytree(folder(), empty / "lora", ignore=shutil.ignore_patterns("empty"))
    assert fault(empty).endswith(f"; name one that does: --args {empty / 'lora'}.")


def test_options_have_the_last_word(folder):
    settings = load_settings(
        folder(),
        [
            "lora.r=8",
            "learning_rate=1e-4",
            "finetune.template=chat",
            'target_modules=["dense"]',
            "evaluation_strategy=no",
        ],
    )
    assert settings.lora.r == 8
    assert settings.train.learning_rate == 1e-4
    assert settings.finetune.template == "chat"
    assert settings.lora.target_modules == ["dense"]
    assert settings.train.eval_strategy == "no"


def test_several_data_sets_are_named_in_one_key(folder):
    named = [{"path": "a.jsonl", "weight": 2, "columns": {"messages": "talk", "system": "role"}}, "b.jsonl"]
    sources = load_settings(folder(), [f"dataset_path={json.dumps(named)}", "columns=context=Q"]).finetune.sources
    assert [(source.path, source.weight) for source in sources] == [("a.jsonl", 2.0), ("b.jsonl", 1.0)]
    assert [source.columns for source in sources] == [{"messages": "talk", "system": "role"}, {"context": "Q"}]
    for wrong in ([], [{"path": "a", "wieght": 2}], [{"path": "a", "weight": "2"}], [{"path": "a", "weight": 0}]):
        assert "dataset_path is" in fault(folder(), f"dataset_path={json.dumps(wrong)}")


def test_columns_in_the_form_of_the_option(folder):
    settings = load_settings(folder(), ["columns=context=question,target=answer"])
    assert settings.finetune.columns == {"context": "question", "target": "answer"}
    assert "columns is" in fault(folder(), "columns=question")
    assert "columns names messages and context, target or input; give either." in fault(
        folder(), "columns=messages=m,target=t"
    )


def test_options_that_name_nothing(folder):
    assert fault(folder(), "lora.rr=8") == "--set lora.rr: unknown key rr; did you mean r?"
    assert fault(folder(), "learning_rat=8") == (
        "--set learning_rat: learning_rat is no key of any file; write train.learning_rate."
    )
    assert fault(folder(), "peft.r=8") == "--set peft.r: peft is no section; write one of finetune.r, lora.r, train.r."
    assert fault(folder(), "resume_from_checkpoint=true") == (
        "--set resume_from_checkpoint: resume_from_checkpoint is a key of several files; write "
        "finetune.resume_from_checkpoint or train.resume_from_checkpoint."
    )


def test_a_method_by_option_needs_no_second_option(folder):
    settings = load_settings(folder(), ["method=lora"])
    assert settings.method == "lora"
    assert settings.notes[-1] == "finetune_args.json: load_in_4bit is set aside, since --set method is given."


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "qadalora"])
def test_what_is_saved_loads_again_as_the_same(folder, tmp_path, method):
    settings = load_settings(folder(), [f"method={method}", "bf16=false"])
    settings.save(tmp_path / "saved")
    again = load_settings(tmp_path / "saved")
    assert again.as_files() == settings.as_files()
    assert again.method == method
    assert again.notes == []
    assert (again.init_r, again.target_r) == (settings.init_r, settings.target_r)


def test_a_secret_is_not_printed(folder):
    for value in ("hf_abcdef", '["hf_abcdef"]'):
        message = fault(folder(), f"train.hub_token={value}")
        assert "hub_token is (hidden)" in message
        assert "hf_abcdef" not in message


def test_the_table_of_the_trainers_keys_is_the_librarys():
    """Names, defaults and choices of the installed transformers; what it lacks came with a later version."""
    import dataclasses
    import enum
    import typing

    from transformers import TrainingArguments

    from glmspectra.tuning.settings.train_args import TrainArgs

    ours = TrainArgs.model_fields
    own = {"output_dir", "logging_steps", "gradient_checkpointing"}
    hints = typing.get_type_hints(TrainingArguments)
    for item in dataclasses.fields(TrainingArguments):
        if not item.init or item.name in SILENT:
            continue
        assert item.name in ours, item.name
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if item.name not in own:
            assert ours[item.name].default == getattr(default, "value", default), item.name
        enums = [
            arm for arm in typing.get_args(hints[item.name]) if isinstance(arm, type) and issubclass(arm, enum.Enum)
        ]
        choices = [member.value for arm in enums for member in arm] or list(item.metadata.get("choices") or [])
        named = [value for arm in (ours[item.name].annotation, *typing.get_args(ours[item.name].annotation))
                 if typing.get_origin(arm) is typing.Literal for value in typing.get_args(arm)]  # fmt: skip
        if choices and named and item.name != "metric_for_best_model":
            assert set(named) <= set(choices), item.name


REFUSED = {
    "label_smoothing_factor": 0.1, "data_seed": 1, "optim_target_modules": "all",
    "average_tokens_across_devices": False,
    "bf16_full_eval": True, "fp16_full_eval": True, "torch_compile": True, "torch_compile_backend": "inductor",
    "torch_compile_mode": "default", "use_liger_kernel": True, "liger_kernel_config": {"rope": True}, "use_cache": True,
    "auto_find_batch_size": True, "use_cpu": True, "trackio_space_id": "a", "trackio_bucket_id": "a",
    "trackio_static_space_id": "a", "include_for_metrics": ["loss"], "batch_eval_metrics": True, 
    "label_names": ["nothing"],
    "length_column_name": "n", "ddp_find_unused_parameters": True, "deepspeed": {}, "accelerator_config": {},
    "parallelism_config": {}, "debug": "underflow_overflow", "push_to_hub": True, "hub_token": "x",
    "hub_private_repo": True,
    "hub_model_id": "x", "hub_strategy": "end", "hub_always_push": True, "hub_revision": "x",
}  # fmt: skip
IDLE = {
    "disable_tqdm": False, "include_num_input_tokens_seen": "all", "eval_do_concat_batches": False,
    "eval_use_gather_object": True, "eval_accumulation_steps": 2, "local_rank": 0, "do_eval": True, "do_predict": True,
    "skip_memory_metrics": False,
}  # fmt: skip


def test_what_our_training_ignores_is_refused_or_said(folder):
    from glmspectra.tuning.settings.train_args import TrainArgs, statuses

    assert REFUSED.keys() == {key for key, status in statuses().items() if status == "refused"}
    message = fault(folder(train=REFUSED))
    for key in REFUSED:
        assert f"train_args.json: {key} is " in message, key
    as_done = {
        "logging_nan_inf_filter": False,
        "prediction_loss_only": True,
        "remove_unused_columns": False,
        "do_train": True,
    }
    notes = load_settings(folder(train=IDLE | as_done)).notes
    assert [note.split()[1] for note in notes if "has no effect here" in note] == list(IDLE)
    assert IDLE.keys() | as_done.keys() == {key for key, status in statuses().items() if status == "no effect"}
    defaults = {key: info.default for key, info in TrainArgs.model_fields.items() if key in REFUSED}
    assert not any("has no effect" in note for note in load_settings(folder(train=defaults)).notes)


def test_an_optimizer_or_schedule_that_does_not_fit_is_refused(folder):
    assert 'optim is "galore_adamw"; allowed: one of adamw_torch' in fault(folder(train={"optim": "galore_adamw"}))
    assert "train_sampling_strategy is" in fault(folder(train={"train_sampling_strategy": "batch_rebalance"}))
    assert "metric_for_best_model is" in fault(folder(train={"metric_for_best_model": "accuracy"}))


def test_an_option_that_the_schedule_has_not_is_refused(folder):
    """transformers drops every option of a constant rate, and fails in the middle of a start for the others."""
    plateau = inspect.signature(torch.optim.lr_scheduler.ReduceLROnPlateau).parameters
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    for name, options in SCHEDULE_OPTIONS.items():
        known = plateau if name == "reduce_lr_on_plateau" else inspect.signature(FUNCTIONS[name]).parameters
        assert set(options) == set(known) - given
    assert SCHEDULE_OPTIONS.keys() == set(get_args(Schedule))
    constant = {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"min_lr": 1e-6}}
    assert 'the schedule "constant" has no option min_lr; it has none' in fault(folder(train=constant))
    cosine = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}}
    assert load_settings(folder(train=cosine)).train.lr_scheduler_kwargs == {"min_lr": 1e-6}


def test_an_option_that_the_optimizer_does_not_ask_for_is_refused(folder):
    """transformers passes over it. Held against the library's own code, which asks for each by its name."""
    for name, options in OPTIMIZER_OPTIONS.items():
        code = inspect.getsource(_OPTIMIZER_HANDLERS[name])
        assert all(f'"{option}"' in code for option in options), name
    for name in set(get_args(Optimizer)) - OPTIMIZER_OPTIONS.keys():
        code = inspect.getsource(_OPTIMIZER_HANDLERS[name])
        assert "optim_args" not in code or "bitsandbytes" in code, name
    assert 'the optimizer "adamw_torch" has no option betas in optim_args; it has none' in fault(
        folder(train={"optim": "adamw_torch", "optim_args": "betas=0.5"})
    )
    assert "without a value" in fault(folder(train={"optim": "sgd", "optim_args": "momentum"}))
    assert load_settings(folder(train={"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}))


def test_the_page_of_the_trainers_keys_is_written_from_the_table():
    page = Path(__file__).parents[2] / "docs" / "trainer_keys.md"
    assert page.read_text(encoding="utf-8") == trainer_keys_page()


def test_adalora_starts_half_above_its_target(folder):
    settings = load_settings(folder(finetune={"method": "qadalora"}))
    assert (settings.target_r, settings.init_r) == (12, 18)
    settings = load_settings(folder(finetune={"method": "qadalora"}, lora={"target_r": 3}))
    assert settings.init_r == 5
    settings = load_settings(folder(finetune={"method": "qadalora"}, lora={"start_ranks": {"dense": 40}}))
    assert settings.init_r == 40


RANKS = {
    "glmspectra_ranks": 1,
    "base": {"name": "chatglm2-6b", "fingerprint": "0123456789abcdef"},
    "criterion": "energy",
    "budget": {"kind": "like", "parameters": 100},
    "lora_args": {
        "r": 6,
        "lora_alpha": 12,
        "target_modules": ["encoder.layers.0.mlp.dense_h_to_4h"],
        "rank_pattern": {"^a": 3},
        "alpha_pattern": {"^a": 6.5},
    },
    "adalora": {"init_r": 9, "target_r": 6, "start_ranks": {"encoder.layers.0.mlp.dense_h_to_4h": 9}},
    "ranks": {"encoder.layers.0.mlp.dense_h_to_4h.weight": 3},
}


@pytest.fixture
def ranks(tmp_path):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps(RANKS))
    return path


def test_ranks_replace_ranks_and_targets(folder, ranks, tmp_path):
    settings = load_settings(folder(), None, ranks)
    assert settings.lora.r == 6
    assert settings.lora.lora_alpha == 12
    assert settings.lora.target_modules == ["encoder.layers.0.mlp.dense_h_to_4h"]
    assert settings.lora.rank_pattern == {"^a": 3}
    assert settings.lora.alpha_pattern == {"^a": 6.5}
    assert settings.lora.lora_dropout == 0.05  # what the file says nothing of stays
    by_key = load_settings(folder(lora={"ranks_file": str(ranks)}))
    assert by_key.as_files() == settings.as_files()
    settings.save(tmp_path / "saved")
    ranks.unlink()  # the resolved settings do not need the file any more
    assert load_settings(tmp_path / "saved").as_files() == settings.as_files()


def test_ranks_for_adalora_are_start_ranks_and_a_budget(folder, ranks):
    settings = load_settings(folder(), ["method=qadalora"], ranks)
    assert (settings.init_r, settings.target_r) == (9, 6)
    assert settings.lora.start_ranks == {"encoder.layers.0.mlp.dense_h_to_4h": 9}
    assert settings.lora.rank_pattern == {}


def test_ranks_of_another_checkpoint_are_refused(folder, ranks):
    settings = load_settings(folder(), None, ranks)
    settings.check_base("chatglm2-6b", "0123456789abcdef")
    with pytest.raises(ConfigError, match=r"the ranks were measured on chatglm2-6b .fingerprint 0123456789abcdef., "):
        settings.check_base("other", "ffffffffffffffff")
    load_settings(folder(), ["lora.ranks_base=null"], ranks).check_base("other", "ffffffffffffffff")


def test_ranks_files_that_are_none(folder, tmp_path):
    path = folder()
    missing = tmp_path / "none.json"
    assert fault(path, ranks=missing) == (
        f"ranks {missing}: there is no such file; `glmspectra suggest-rank` writes one."
    )
    missing.write_text("{}")
    assert "is no ranks file of version 1" in fault(path, ranks=missing)
    missing.write_text(json.dumps({**RANKS, "base": {"name": "x"}}))
    assert "key base.fingerprint: Field required" in fault(path, ranks=missing)


def test_what_the_trainer_refuses_is_quoted(folder):
    settings = load_settings(folder(train={"load_best_model_at_end": True, "save_strategy": "epoch"}))
    with pytest.raises(ConfigError, match=r"^train_args.json: the Trainer refuses these arguments: .*load_best_model"):
        settings.training_arguments(use_cpu=True)
