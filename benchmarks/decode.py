"""Tokens a second of decoding one sequence: this model, transformers' GlmForCausalLM with the same weights, the bound.

Each token reads every weight once, so that no model decodes faster than bandwidth / bytes of weights. The bandwidth is
what a device-to-device copy reaches here; the weights are those of the layers and the output layer (one row of the
input embedding is read). Every rate is taken from two lengths, so that prefill and start-up cancel.

    python benchmarks/decode.py                       # CUDA: the 28-layer shape, random weights, bf16 and NF4, ~70 s
    python benchmarks/decode.py --model FOLDER        # the same from a checkpoint, loaded as bf16 and as NF4
    python benchmarks/decode.py --device cpu --tiny   # a check that it runs
    python benchmarks/decode.py --compile             # also Glm's step under torch.compile, minutes more

Exit status 1 when the two models disagree, or when this one is slower than Glm in a row both have.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, GlmForCausalLM
from transformers import initialization as init

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration
from glmspectra.chatglm2.conversion import to_glm

TINY = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "padded_vocab_size": 320,
}
PROMPT_TOKENS = 64
SHORT = 16  # tokens of the shorter of the two runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a ChatGLM2 folder; absent: random weights of the same shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=128, help="tokens each rate is taken over")
    parser.add_argument("--tiny", action="store_true", help="two small layers instead of 28 real ones")
    parser.add_argument("--compile", action="store_true", help="also Glm with a static cache under torch.compile")
    parser.add_argument("--forms", default="bf16,nf4", help="bf16, nf4 or both")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    options = parser.parse_args()
    device = torch.device(options.device)
    bench = Bench(device, options.tokens)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}; a copy moves {bench.bandwidth / 1e9:.0f} GB/s", flush=True)

    for form in options.forms.split(","):
        start = time.perf_counter()
        model = load(options.model, device, form, options.tiny)
        print(f"{form}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
        bench.rates("ours", form, model, graph=device.type == "cuda")
        if form == "nf4" and options.model is None:
            glm = in_four_bits(to_glm(random_model(device, options.tiny)))
        elif form == "nf4":
            glm = in_four_bits(to_glm(load(options.model, device, "bf16", options.tiny)))
        else:
            glm = to_glm(model)
        bench.rates("Glm", form, glm, graph=False)
        if options.compile and form == "bf16":
            bench.rate("Glm", form, glm, "torch.compile", cache_implementation="static")
        bench.compare(form, model, glm)  # last: it leaves Glm in float32
        del model, glm
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    if options.json:
        Path(options.json).write_text(json.dumps({"device": name, "rows": bench.rows}, indent=1), encoding="utf-8")
    rates = {(row["model"], row["form"], row["step"]): row["tokens_per_second"] for row in bench.rows}
    slower = [form for form in options.forms.split(",") if rates["ours", form, "eager"] < rates["Glm", form, "eager"]]
    for form in slower:
        print(f"slower than Glm in {form}")
    return 1 if bench.disagreements or (slower and device.type == "cuda") else 0


def random_model(device: torch.device, tiny: bool) -> ChatGLMForConditionalGeneration:
    """The published shape with normal weights, made on the device; the same ones at every call."""
    config = ChatGLMConfig(**TINY if tiny else {})
    with init.no_init_weights(), device:
        model = ChatGLMForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.data.normal_(0, 0.02, generator=generator)
        else:
            weight.data.fill_(1.0 if weight.shape[0] == config.hidden_size else 0.0)  # norms, biases
    return model.eval()


def load(folder: Path | None, device: torch.device, form: str, tiny: bool) -> Any:
    if folder is None:
        model = random_model(device, tiny)
        return in_four_bits(model) if form == "nf4" else model
    quantization = {}
    if form == "nf4":
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return ChatGLMForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, device_map={"": str(device)}, **quantization
    ).eval()


def in_four_bits(model: Any) -> Any:
    """`model` with the matrices of its layers as NF4, as `BitsAndBytesConfig` would have loaded it."""
    import bitsandbytes as bnb

    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear or linear is model.get_output_embeddings():
                continue
            device = linear.weight.device
            packed = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
                device="meta",
            )
            packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=packed)
            packed.bias = linear.bias
            setattr(parent, name, packed.to(device))
            linear.weight = None
    return model


def in_float32(model: Any) -> Any:
    """`model` with the weights it has, computing in float32; changed in place."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes' 4-bit layers
            module.compute_dtype = torch.float32
    return model.float()


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a weight as it is read, with the scales of its blocks where it is NF4."""
    scales = getattr(getattr(weight, "quant_state", None), "absmax", None)
    own = weight.numel() * weight.element_size()
    return own if scales is None else own + scales.numel() * scales.element_size()


class Bench:
    def __init__(self, device: torch.device, tokens: int):
        self.device = device
        self.tokens = tokens
        self.rows: list[dict[str, Any]] = []
        self.disagreements = 0
        self.bandwidth = self._copied()
        self.ids = torch.randint(3, 300, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(1)).to(device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _copied(self) -> float:
        """Bytes a second, read and written, of the fastest of several large copies."""
        size = (1 << 30) if self.device.type == "cuda" else (1 << 26)
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        best = float("inf")
        for _ in range(5):
            self.wait()
            start = time.perf_counter()
            target.copy_(source)
            self.wait()
            best = min(best, time.perf_counter() - start)
        return 2 * size / best

    def generate(self, model: Any, tokens: int, **settings: Any) -> float:
        self.wait()
        start = time.perf_counter()
        model.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, eos_token_id=None, pad_token_id=0, **settings,
        )  # fmt: skip
        self.wait()
        return time.perf_counter() - start

    def rates(self, who: str, form: str, model: Any, graph: bool) -> None:
        self.rate(who, form, model, "eager")
        if graph:
            self.rate(who, form, model, "CUDA graph", cache_implementation="static")

    def rate(self, who: str, form: str, model: Any, step: str, **settings: Any) -> None:
        self.generate(model, SHORT, **settings)  # warm
        seconds = min(
            self.generate(model, SHORT + self.tokens, **settings) - self.generate(model, SHORT, **settings)
            for _ in range(2)
        )
        embedding = model.get_input_embeddings().weight
        bytes_read = sum(stored_bytes(weight) for weight in model.parameters()) - stored_bytes(embedding)
        bound = self.bandwidth / bytes_read
        row = {
            "model": who,
            "form": form,
            "step": step,
            "tokens_per_second": self.tokens / seconds,
            "bound": bound,
            "share_of_bound": self.tokens / seconds / bound,
            "weight_bytes": bytes_read,
        }
        self.rows.append(row)
        print(
            f"{who:5}{form:6}{step:14}{row['tokens_per_second']:9.1f} tokens/s"
            f"{100 * row['share_of_bound']:7.1f} % of the bound {bound:.0f} ({bytes_read / 1e9:.2f} GB a token)",
            flush=True,
        )

    @torch.no_grad()
    def compare(self, form: str, model: Any, glm: GlmForCausalLM) -> None:
        """Whether the two models say the same, and the graph what the eager step says.

        Two models that round at each step are apart by the roundings of both, which grow with depth (5e-2 of the logits
        after 28 layers of random weights), so that no fixed limit tells a fault: ours must be no further from Glm in
        float32 than 1.25 times what Glm in its own type is. SwiGLU wrong by 2 % gives 1.4. `glm` is left in float32.
        """
        ours, theirs = model(self.ids).logits.float(), glm(self.ids).logits.float()
        arguments: dict[str, Any] = {"max_new_tokens": 48, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(self.ids)
        runs = {"Glm": glm.generate(self.ids, attention_mask=mask, **arguments)}
        if self.device.type == "cuda":
            runs["its CUDA graph"] = model.generate(
                self.ids, attention_mask=mask, cache_implementation="static", **arguments
            )
        eager = model.generate(self.ids, attention_mask=mask, **arguments)
        for name, tokens in runs.items():
            same = int((tokens == eager)[0, PROMPT_TOKENS:].cumprod(0).sum())
            print(f"{form}: the first {same} of 48 greedy tokens are those of {name}", flush=True)
        exact = in_float32(glm)(self.ids).logits
        own, glms, apart = (
            ((found - reference).norm() / reference.norm()).item()
            for found, reference in ((ours, exact), (theirs, exact), (ours, theirs))
        )
        print(
            f"{form}: logits of the prompt are {own:.1e} from those of float32 (relative), Glm's {glms:.1e}, and "
            f"{apart:.1e} from Glm's",
            flush=True,
        )
        if own > 1.25 * glms:
            print(f"{form}: that is more than 1.25 times Glm's own rounding")
            self.disagreements += 1


if __name__ == "__main__":
    sys.exit(main())
