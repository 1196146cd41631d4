"""The estimate of peak memory: the counting, the parts, and measured figures."""

import pytest
import torch
from torch import nn

from glmspectra.chatglm2 import ChatGLMConfig
from glmspectra.tuning.memory import estimate as memory
from glmspectra.tuning.memory.estimate import GIB, BatchShape, estimate_memory, optimizer_bytes
from glmspectra.tuning.memory.kernels import CudaKernels
from glmspectra.tuning.memory.tracking import Tracker, rounded
from glmspectra.tuning.model.precision import Precision
from glmspectra.tuning.settings.load import FinetuneArgs, LoraArgs, Settings
from glmspectra.tuning.settings.train_args import TrainArgs

FLOAT32 = Precision(torch.float32, torch.float32, None)
BFLOAT16 = Precision(torch.bfloat16, torch.bfloat16, None)
MIB = 2**20


def make_settings(method="lora", **keys):
    finetune = {"dataset_path": "data", "method": method}
    lora = {"r": 12, "lora_alpha": 24, "lora_dropout": 0.05}
    train = {}
    for key, value in keys.items():
        place = finetune if key in FinetuneArgs.model_fields else lora if key in LoraArgs.model_fields else train
        place[key] = value
    return Settings(finetune=FinetuneArgs(**finetune), lora=LoraArgs(**lora), train=TrainArgs(**train))


def chatglm(layers=2, hidden=64, vocabulary=128):
    return ChatGLMConfig(
        padded_vocab_size=vocabulary, hidden_size=hidden, num_layers=layers, ffn_hidden_size=3 * hidden, seq_length=512,
        kv_channels=hidden // 4, num_attention_heads=4, multi_query_group_num=2,
    )  # fmt: skip


def test_the_tracker_counts_storages_until_they_are_freed():
    known = torch.zeros(1000)
    with Tracker([known]) as tracker:
        made = torch.zeros(1000)  # 4000 bytes, 4096 as the allocator has it
        assert tracker.total == 4096
        views = (made.view(10, 100), made[3:], known.view(-1), known.t())
        assert tracker.total == 4096
        with tracker.labelled("other"):
            more = made + 1
        assert dict(tracker.live) == {"activations": 4096, "other": 4096}
        del more
        assert tracker.total == 4096
        del made
        assert tracker.total == 4096  # views keep it
        del views
        assert tracker.total == 0
    assert tracker.peak == 8192
    assert dict(tracker.at_peak) == {"activations": 4096, "other": 4096}
    assert [rounded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]


def saved_bytes(model, run):
    """Bytes of the distinct storages that autograd keeps, parameters aside, after `run` (which returns the loss)."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (rounded(storage.nbytes()), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


def test_what_is_counted_as_kept_is_what_autograd_keeps():
    """Real tensors on a CPU against fake ones: float32, eager attention, no dropout, where both keep the same."""
    from transformers import AutoModelForCausalLM

    from glmspectra.tuning.model.adapter import add_adapter

    settings = make_settings(attn_implementation="eager", lora_dropout=0.0)
    config = chatglm(layers=3)
    estimate = estimate_memory(settings, config, FLOAT32, BatchShape(4, 50, 120), loss_in_chunks=False)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(False)
    model = add_adapter(base, settings, 10).train()
    ids = torch.randint(0, 128, (4, 50))
    rows, positions, targets = (torch.randint(0, high, (120,)) for high in (4, 50, 128))

    def loss():
        logits = model(input_ids=ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits[rows, positions].float(), targets)

    assert estimate.kept == pytest.approx(saved_bytes(model, loss), rel=0.01)


def test_checkpointing_keeps_the_input_of_each_layer_and_no_more():
    shape = BatchShape(4, 64, 100)

    def kept(layers):
        settings = make_settings(gradient_checkpointing=True)
        return estimate_memory(settings, chatglm(layers), BFLOAT16, shape).kept

    a_layer = 4 * 64 * 64 * 2  # rows x tokens x hidden x two bytes
    two, four, six = kept(2), kept(4), kept(6)
    assert six - four == four - two == 2 * a_layer


def test_without_checkpointing_each_layer_adds_the_same():
    shape = BatchShape(4, 64, 8)
    sizes = [estimate_memory(make_settings(), chatglm(layers), BFLOAT16, shape).kept for layers in (2, 3, 4)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 5 * 4 * 64 * 64 * 2


@pytest.mark.parametrize("nested", [False, True])
def test_four_bit_weights_are_counted_as_bitsandbytes_stores_them(nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    config = chatglm(layers=2, hidden=128)
    settings = make_settings("qlora", bnb_4bit_use_double_quant=nested)
    parts = estimate_memory(settings, config, BFLOAT16, BatchShape(1, 8, 4)).parts
    expected = {"weights": 0, "scales": 0}
    shapes = [((4 + 4) * 32, 128), (128, 128), (6 * 128, 128), (128, 3 * 128)]  # of one layer
    for rows, cols in shapes:
        packed, state = functional.quantize_4bit(torch.randn(rows, cols), quant_type="nf4", compress_statistics=nested)
        expected["weights"] += rounded(packed.nbytes)
        held = [state.absmax, state.code]
        if nested:
            held += [state.state2.absmax, state.state2.code, state.offset]
        expected["scales"] += sum(rounded(tensor.nbytes) for tensor in held)
    assert parts["4-bit weights"] == 2 * expected["weights"]
    assert parts["scales of 4-bit blocks"] == 2 * expected["scales"]


def test_adapter_gradients_and_optimizer():
    config = chatglm(layers=2)
    parts = estimate_memory(make_settings(optim="adamw_torch"), config, BFLOAT16, BatchShape(1, 8, 4)).parts
    trainable = 2 * 12 * (64 + 128)  # r times (columns + rows) of query_key_value, two layers
    assert parts["adapter"] == parts["gradients"] == 4 * trainable
    assert parts["optimizer state"] == 8 * trainable
    assert [optimizer_bytes(name) for name in ("adamw_8bit", "paged_adamw_32bit", "sgd", "adamw_torch_fused")] == [
        2,
        0,
        0,
        8,
    ]


@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "qadalora"])
def test_every_method_and_packing_have_an_estimate(method):
    keys = {"target_r": 4, "init_r": 6} if "ada" in method else {}
    for packed in (False, True):
        estimate = estimate_memory(make_settings(method, **keys), chatglm(), BFLOAT16, BatchShape(2, 32, 20, packed))
        assert estimate.peak == sum(estimate.parts.values())
        assert ("4-bit weights" in estimate.parts and estimate.parts["4-bit weights"] > 0) == method.startswith("q")
        assert estimate.lines()[0].startswith("estimated peak memory of a step of 2 x 32 tokens: 0.0")


def test_the_loss_in_chunks_is_bounded():
    """With 8 times the tokens, whole logits take 8 times as much; chunks do not."""
    config = chatglm(vocabulary=65024)

    def logits(rows, chunks):
        parts = estimate_memory(
            make_settings(), config, BFLOAT16, BatchShape(rows, 256, rows * 255), loss_in_chunks=chunks
        )
        return parts.parts.get("logits and loss", 0)

    assert logits(32, True) < 2 * logits(4, True) < 900 * MIB  # a chunk is made while the last one is there
    assert logits(32, False) > 6 * logits(4, False)


def test_dropout_keeps_a_byte_an_element_and_norms_run_in_float32_under_autocast():
    x = torch.zeros(64, 1024, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.ones(1024, dtype=torch.bfloat16)
    with Tracker([x, weight]) as tracker, CudaKernels(set(), None, tracker):
        out = nn.functional.dropout(x, 0.1, True)
        assert tracker.total == 64 * 1024 * (2 + 1)
        assert nn.functional.dropout(out, 0.1, False) is out
        del out
        norm = nn.functional.rms_norm(x, (1024,), weight, 1e-5)
        assert (norm.dtype, tracker.total) == (torch.bfloat16, 64 * 1024 * 2 + rounded(64 * 4))
        del norm
    with Tracker([x, weight]) as tracker, CudaKernels(set(), torch.bfloat16, tracker):
        assert nn.functional.rms_norm(x, (1024,), weight, 1e-5).dtype == torch.float32


def plain_peft(monkeypatch):
    """GlmForCausalLM of ChatGLM2-6B's shape under plain PEFT: its own loss, float32 copies of the inputs."""
    from transformers import GlmConfig

    def whole_loss(model, base, inputs, labels, batch, tracker, in_chunks):
        target = torch.empty(batch.rows, batch.tokens, dtype=torch.long)
        logits = model(**inputs, use_cache=False).logits
        with tracker.labelled("logits and loss"):
            return base.loss_function(logits=logits, labels=target, vocab_size=65024)

    monkeypatch.setattr(memory, "_loss", whole_loss)
    monkeypatch.setattr("glmspectra.tuning.model.adapter_products.follow_input_dtype", lambda *_: 0)
    return GlmConfig(
        vocab_size=65024, hidden_size=4096, num_hidden_layers=28, intermediate_size=13696, head_dim=128,
        num_attention_heads=32, num_key_value_heads=2, attention_bias=True, pad_token_id=0, rms_norm_eps=1e-5,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rows", "checkpointing", "measured"),
    [("qlora", 8, False, 27.6), ("qlora", 8, True, 7.8), ("qlora", 1, True, 4.5), ("lora", 8, False, 35.5)],
)
def test_figures_measured_on_an_h100(monkeypatch, method, rows, checkpointing, measured):
    """Peaks that were measured with plain PEFT, r 12 on q, k, v, bf16 and sdpa, rows of 512 tokens, in GiB."""
    config = plain_peft(monkeypatch)
    settings = make_settings(
        method, gradient_checkpointing=checkpointing, target_modules=["q_proj", "k_proj", "v_proj"], lora_dropout=0.0
    )
    estimate = estimate_memory(settings, config, BFLOAT16, BatchShape(rows, 512, rows * 511))
    assert estimate.peak / GIB == pytest.approx(measured, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["lora", "qlora", "qadalora"])
def test_the_estimate_is_within_a_tenth_of_the_measured_peak(tmp_path, method, checkpointing):
    """A 12-layer ChatGLM2 of 2048 channels, 8 rows of some 500 tokens: loaded, one step, measured."""
    import json

    from transformers import AutoModelForCausalLM

    from glmspectra.tuning.memory.dry_run import dry_run
    from tests.tuning.data_tokenizers import character_tokenizer

    torch.manual_seed(0)
    config = ChatGLMConfig(
        padded_vocab_size=65024, hidden_size=2048, num_layers=12, ffn_hidden_size=6848, kv_channels=128,
        seq_length=2048, num_attention_heads=16, multi_query_group_num=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"context": f"{n:03d} " * 60, "target": "abcd " * 50} for n in range(32)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"target_r": 4, "init_r": 6} if "ada" in method else {}
    settings = make_settings(
        method,
        dataset_path=str(tmp_path / "train.jsonl"),
        cache_dir=str(tmp_path / "cache"),
        model_path=str(tmp_path / "model"),
        output_dir=str(tmp_path / "run"),
        gradient_checkpointing=checkpointing,
        **keys,
    )
    found = dry_run(settings, "cuda")
    assert found.memory.peak / GIB == pytest.approx(found.step["peak_memory_gib"], rel=0.1), found.lines()
