"""transformers' Trainer whose checkpoints appear whole and hold all that a run goes on from."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer_callback import ExportableState

from glmspectra.checkpoint.formats.torch_file import load_torch_file
from glmspectra.errors import TrainingError
from glmspectra.files import atomic_folder, write_text
from glmspectra.json_files import read_model
from glmspectra.tuning.model import adalora
from glmspectra.tuning.training.checkpoints import STATE_FILE, prune, write_sums
from glmspectra.tuning.training.divergence import Explosion, ExplosionWatch
from glmspectra.tuning.training.model_card import write_card

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PROGRESS_FILE = "progress.json"


class Progress(BaseModel):
    """`progress.json` of a checkpoint: what stands behind the losses that are logged, which the Trainer forgets.

    unlogged_loss: sum of the steps' losses since the last log. logged_loss: sum of all before. In nats a token.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    unlogged_loss: float
    logged_loss: float
    last_logged_step: int
    explosion: Explosion


class SavingTrainer(Trainer):
    """Saves and takes up the adapter of a PEFT model.

    Attributes:
        adapter: The adapter's name.
        base_name: What the model card calls the base.
        allocator: AdaLoRA's; None for another method.
        explosion: The watch over the losses, which a checkpoint holds too.
    """

    # The Trainer declares these as optional; here they are there from the start.
    model: Any
    args: Any
    state: Any
    train_dataset: Any
    explosion: ExplosionWatch

    def __init__(self, *, adapter: str, base_name: str, **arguments: Any):
        super().__init__(**arguments)
        self.adapter = adapter
        self.base_name = base_name
        self.allocator = adalora.allocator_of(self.model)
        self._started_from: Path | None = None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self.args.output_dir)
        target = output / f"checkpoint-{self.state.global_step}"
        self.store_flos()
        main = self.args.should_save
        if main and self.state.best_global_step:
            best = output / f"checkpoint-{self.state.best_global_step}"
            if best.exists() or best == target:
                self.state.best_model_checkpoint = str(best)
        with atomic_folder(target, main) as staging:
            self.accelerator.wait_for_everyone()  # the folder stands
            self.save_model(str(staging), _internal_call=True)
            if not self.args.save_only_model:
                self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
                self._save_rng_state(str(staging))
            if main:
                self._save_progress(staging)
            self.accelerator.wait_for_everyone()  # every process has written its part
            if main:
                write_sums(staging)
        if main:
            best_path = self.state.best_model_checkpoint
            prune(output, self.args.save_total_limit, Path(best_path) if best_path else None)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter in PEFT's format in a folder of its name, and the training arguments."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        self.save_adapter(folder / self.adapter, state_dict)
        if self.allocator is not None:
            state = self.allocator.state_dict()
            state["whole"] = {
                name: parameter.detach().cpu()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad and ".lora_" not in name
            }
            torch.save(state, folder / adalora.STATE_FILE)
        arguments = copy.copy(self.args)
        arguments.hub_token = None  # a secret, and the file is one that people share
        torch.save(arguments, folder / "training_args.bin")

    def save_adapter(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        """Write adapter_model.safetensors and adapter_config.json into `folder`, as PEFT does for a default adapter."""
        model = self.accelerator.unwrap_model(self.model)
        if self.allocator is not None:
            self.allocator.describe_for_saving()
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A matrix that AdaLoRA pruned to rank 0 has empty factors, which PEFT takes for unfinished
            # sharding.
            if self.allocator is not None:
                warnings.filterwarnings("ignore", message=".*invalid shape")
            tensors = get_peft_model_state_dict(
                model, state_dict=state_dict, adapter_name=self.adapter, save_embedding_layers=False
            )
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS
        )
        config = model.peft_config[self.adapter]
        training, config.inference_mode = config.inference_mode, True
        try:
            config.save_pretrained(str(folder))
        finally:
            config.inference_mode = training

    def gathered_state(self) -> dict[str, Any] | None:
        """Under FSDP the whole state, which all processes gather together; else None: it is at hand."""
        return self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None

    def _save_progress(self, folder: Path) -> None:
        for callback in [c for c in [*self.callback_handler.callbacks, self.control] if isinstance(c, ExportableState)]:
            self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / STATE_FILE))
        progress = Progress(
            unlogged_loss=float(self._tr_loss),
            logged_loss=self._total_loss_scalar,
            last_logged_step=self._globalstep_last_logged,
            explosion=self.explosion.state(),
        )
        write_text(folder / PROGRESS_FILE, progress.model_dump_json(indent=2) + "\n")
        write_card(folder / "README.md", self.base_name, self.adapter, self.state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Adapter weights of a checkpoint into the model; raises TrainingError when they are of another adapter."""
        folder = Path(resume_from_checkpoint)
        self._started_from = folder
        if self.allocator is not None:
            path = folder / adalora.STATE_FILE
            if not path.is_file():
                raise TrainingError(f"{folder}: has no {adalora.STATE_FILE}, without which AdaLoRA cannot go on.")
            state = load_torch_file(path)
            self.allocator.load_state_dict(state, folder)
            parameters = dict(self.model.named_parameters())
            with torch.no_grad():
                for name, value in state["whole"].items():
                    parameters[name].copy_(value)
            return
        tensors = load_file(folder / self.adapter / ADAPTER_WEIGHTS)
        expected = get_peft_model_state_dict(self.model, adapter_name=self.adapter, save_embedding_layers=False)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
            raise TrainingError(
                f"{folder}: its adapter has other matrices or ranks than the settings ask for; resume with the "
                "settings that were saved beside it."
            )
        set_peft_model_state_dict(self.model, tensors, adapter_name=self.adapter)

    def _load_best_model(self) -> None:
        """Load the adapter of the best checkpoint.

        Of AdaLoRA its ranks too, which may be above the budget if it is an early one.
        """
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def stopped_at(self, checkpoint: Path, total_steps: int) -> bool:
        """Whether the run had taken its last step when it wrote `checkpoint`, by its number or by early stopping."""
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        control = state.stateful_callbacks.get("TrainerControl", {})
        early = any(isinstance(callback, EarlyStoppingCallback) for callback in self.callback_handler.callbacks)
        return state.global_step >= total_steps or (early and bool(control.get("args", {}).get("should_training_stop")))

    def take_up_end(self, checkpoint: Path) -> None:
        """Stand where the run stood after its last step, when it was killed between that and its end.

        The Trainer, resumed there, would take a further step.
        """
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        self._tr_loss = torch.tensor(0.0)
        self.restore_progress()
        self._total_loss_scalar += float(self._tr_loss)
        self.log({"train_loss": 0.0})  # which computes it
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def restore_progress(self) -> None:
        """Take up the sums behind the logged losses; called when training begins, after the Trainer has reset them."""
        path = self._started_from / PROGRESS_FILE if self._started_from else None
        if path is None or not path.is_file():
            return
        progress = read_model(path, Progress, TrainingError)
        self._tr_loss += progress.unlogged_loss
        self._total_loss_scalar = progress.logged_loss
        self._globalstep_last_logged = progress.last_logged_step
        self.explosion.restore(progress.explosion)
