"""`glmspectra` for two CPU processes under FSDP, which the library and we keep for GPUs: sharding, gathering and saving
run as they do there, only the collectives are gloo's. Started by `test_training_fsdp.py`."""

import sys

import accelerate.state
from accelerate.utils import DistributedType

import glmspectra.tuning.training.arguments as training
from glmspectra.cli.main import main


def take_fsdp_on_cpu() -> None:
    """accelerate looks at a plugin for FSDP only where it found several GPUs."""
    original = accelerate.state.AcceleratorState.__init__

    def with_plugin(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = with_plugin


if __name__ == "__main__":
    take_fsdp_on_cpu()
    training.refuse_idle_fsdp = lambda arguments, device: None  # tested elsewhere
    sys.exit(main())
