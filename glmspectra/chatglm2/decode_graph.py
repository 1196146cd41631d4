"""One step of decoding as a CUDA graph: every kernel of it launched at once.

Decoding one sequence is a few hundred small kernels a token, and launching them from Python takes longer than running
them. With `generate(..., cache_implementation="static")` the shapes of a step never change, so that the step can be
recorded once and replayed. transformers would hand such a step to torch.compile, which takes a minute for 28 layers and
declines 4-bit weights; recording takes a fraction of a second and takes every kernel that keeps to its stream.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, StaticLayer

from glmspectra.chatglm2.one_token import OneTokenProducts
from glmspectra.chatglm2.versions import CACHE

KEPT_OUTPUTS = ("output_attentions", "output_hidden_states")
# Every step attends to all positions of a static cache, masked where nothing is yet: dear when it is long and empty.
LONGEST = 4096


def graph_settings(model: Any, positions: int) -> dict[str, Any]:
    """Arguments of `generate` with which `model` decodes up to `positions` tokens through a CUDA graph.

    None where it cannot: on a CPU, over several devices, another model.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    devices = set(getattr(base, "hf_device_map", {}).values())
    if isinstance(base, GraphedGeneration) and model.device.type == "cuda" and len(devices) <= 1:
        return {"cache_implementation": "static"} if positions <= LONGEST else {}
    return {}


def can_be_recorded(device: torch.device, cache: Any) -> bool:
    """Whether a step on `device` with `cache` has shapes and addresses that never change."""
    return (
        device.type == "cuda"
        and isinstance(cache, Cache)
        and bool(cache.layers)
        and all(type(layer) is StaticLayer for layer in cache.layers)
    )


class DecodeGraph:
    """Calls `model`, from the second call of one shape on by replaying the first.

    A model whose step cannot be recorded (it waits for the device, as some quantized layers do) is called each time.
    It lives for one call of `generate`: a graph that outlived it would miss adapters that are switched in between.
    The output of a replay is overwritten by the next one.
    """

    def __init__(self, model: Any):
        self.model = model
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = False
        self.inputs: dict[str, torch.Tensor] = {}
        self.rest: dict[str, Any] = {}
        self.output: Any = None
        self.products: OneTokenProducts | None = None
        self.address = 0  # of the cached keys: a cache that was reordered lies elsewhere

    def __call__(self, **inputs: Any) -> Any:
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in inputs.items() if name not in tensors}
        if self.graph is None and not self.refused and self._is_a_step(tensors, rest):
            counts = [layer.cumulative_length.clone() for layer in rest[CACHE].layers]
            try:
                self.products = OneTokenProducts(self.model)
                with self.products.used():
                    self._record(tensors, rest)
            except RuntimeError:
                self.graph, self.refused = None, True
                for layer, count in zip(rest[CACHE].layers, counts, strict=True):
                    layer.cumulative_length.copy_(count)
                return self.model(**inputs)
        elif not self._is_the_recorded_step(tensors, rest):
            return self.model(**inputs)
        for name, tensor in tensors.items():
            self.inputs[name].copy_(tensor)
        assert self.graph is not None  # either recorded just now or matched above
        with torch.cuda.device(self.inputs["input_ids"].device):
            self.graph.replay()
        return self.output

    def _is_a_step(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> bool:
        mask = tensors.get("attention_mask")
        return (
            "input_ids" in tensors
            and tensors["input_ids"].shape[1] == 1
            and mask is not None
            and mask.dim() == 4  # a mask that grows with every token is another shape at every step
            and can_be_recorded(tensors["input_ids"].device, rest.get(CACHE))
            # The next replay would overwrite what is kept of every step.
            and not any(rest.get(key) or getattr(self.model.config, key, False) for key in KEPT_OUTPUTS)
        )

    def _is_the_recorded_step(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> bool:
        return (
            self.graph is not None
            and rest.keys() == self.rest.keys()
            and all(rest[name] is value or rest[name] == value for name, value in self.rest.items())
            and rest[CACHE].layers[0].keys.data_ptr() == self.address
            and {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
            == {name: (tensor.shape, tensor.dtype) for name, tensor in self.inputs.items()}
        )

    def _record(self, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
        self.inputs = {name: tensor.clone() for name, tensor in tensors.items()}
        self.rest = rest
        layers = rest[CACHE].layers
        self.address = layers[0].keys.data_ptr()
        seen = [layer.cumulative_length.clone() for layer in layers]
        # Once for real, off the main stream, so that libraries allocate their workspaces and kernels are compiled.
        device = self.inputs["input_ids"].device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self.model(**self.inputs, **rest)
        torch.cuda.current_stream(device).wait_stream(stream)
        # The keys and values it stored are stored again by the replay, at the same position, once the counts are back.
        for layer, length in zip(layers, seen, strict=True):
            layer.cumulative_length.copy_(length)
        self.graph = torch.cuda.CUDAGraph()
        # The stream in use is named, so that it is again the one in use when recording fails half way.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(self.graph, capture_error_mode="thread_local"),
        ):
            self.output = self.model(**self.inputs, **rest)


class GraphedGeneration:
    """Has `generate` decode through a `DecodeGraph` where it would compile, unless a `compile_config` asks for that."""

    def get_compiled_call(self, compile_config: Any) -> Any:
        """What `generate` calls for each step with a static cache on a GPU."""
        if compile_config is None and self.device.type == "cuda":  # type: ignore[attr-defined]
            return DecodeGraph(self)
        return super().get_compiled_call(compile_config)  # type: ignore[misc]

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        # Asked before `get_compiled_call`, and answered no for 4-bit weights, which can be recorded all the same.
        if generation_config.disable_compile:
            return False
        devices = set(getattr(self, "hf_device_map", {}).values())
        if generation_config.compile_config is None and len(devices) <= 1:
            return can_be_recorded(self.device, model_kwargs.get(CACHE))  # type: ignore[attr-defined]
        by_transformers: bool = super()._valid_auto_compile_criteria(model_kwargs, generation_config)  # type: ignore[misc]
        return by_transformers
