"""Decoding through a recorded CUDA graph says what decoding step by step says."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, StaticCache

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration, decode_graph
from glmspectra.chatglm2.decode_graph import LONGEST, DecodeGraph, can_be_recorded, graph_settings
from glmspectra.chatglm2.versions import CACHE

GREEDY = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}


@pytest.fixture
def model() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(1)
    config = ChatGLMConfig(
        num_layers=3,
        hidden_size=64,
        ffn_hidden_size=64,
        kv_channels=16,
        num_attention_heads=4,
        padded_vocab_size=97,
        initializer_range=0.2,
    )
    return ChatGLMForConditionalGeneration(config).eval()


def test_only_a_static_cache_on_a_gpu_is_recorded(model):
    static = StaticCache(config=model.config, max_cache_len=8)
    assert can_be_recorded(torch.device("cuda"), static)
    assert not can_be_recorded(torch.device("cpu"), static)
    assert not can_be_recorded(torch.device("cuda"), DynamicCache(config=model.config))
    assert not can_be_recorded(torch.device("cuda"), None)


def test_other_calls_go_to_the_model(model):
    """On a CPU, and for prompts of several tokens, the graph is never recorded."""
    graph = DecodeGraph(model)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(graph(input_ids=ids).logits, model(input_ids=ids).logits)
    cache = StaticCache(config=model.config, max_cache_len=8)
    mask = torch.ones(1, 1, 1, 8, dtype=torch.bool)
    graph(input_ids=ids[:, :1], attention_mask=mask, **{CACHE: cache})
    assert graph.graph is None


def test_generation_on_a_cpu_neither_compiles_nor_records(model):
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), expected)


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(model, monkeypatch):
    """The recording fails after it has stored keys once: nothing of that is left, and no second try is made."""
    tries = []

    def fails(self, tensors, rest):
        tries.append(1)
        self.model(**tensors, **rest)  # the pass before the recording
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(decode_graph, "can_be_recorded", lambda device, cache: isinstance(cache, StaticCache))
    monkeypatch.setattr(DecodeGraph, "_record", fails)
    found, expected = [], []
    for call, logits in ((DecodeGraph(model), found), (model, expected)):
        cache = StaticCache(config=model.config, max_cache_len=8)
        for position, token in enumerate((5, 6, 7)):
            seen = (torch.arange(8) <= position).view(1, 1, 1, 8)
            logits.append(call(input_ids=torch.tensor([[token]]), attention_mask=seen, **{CACHE: cache}).logits)
        assert cache.get_seq_length() == 3
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert tries == [1]


def test_where_a_conversation_decodes_through_a_graph(model):
    assert graph_settings(model, 100) == {}  # on a CPU

    class OnCuda(ChatGLMForConditionalGeneration):
        device = torch.device("cuda")

    on_cuda = OnCuda(model.config)
    assert graph_settings(on_cuda, LONGEST) == {"cache_implementation": "static"}
    assert graph_settings(on_cuda, LONGEST + 1) == {}
    assert graph_settings(get_peft_model(on_cuda, LoraConfig(r=2, target_modules=["dense"])), 100) != {}
    on_cuda.hf_device_map = {"transformer.embedding": 0, "transformer.encoder": 1}
    assert graph_settings(on_cuda, 100) == {}


@pytest.mark.gpu
def test_a_model_that_waits_for_the_device_generates_too(model):
    model = model.cuda()
    ids = torch.arange(5, 14)[None].cuda()
    expected = model.generate(ids, **GREEDY)
    model.transformer.encoder.layers[1].register_forward_pre_hook(lambda _, inputs: inputs[0].sum().item() and None)
    for _ in range(2):  # and what comes after is not harmed
        assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_graph_and_steps_agree(model, attention):
    model = model.cuda()
    model.set_attn_implementation(attention)
    for seed in (0, 1):  # the second call of generate may reuse the first one's cache
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 97, (2, 9), generator=generator).cuda()
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        expected = model.generate(ids, attention_mask=mask, **GREEDY)
        recorded = model.generate(ids, attention_mask=mask, cache_implementation="static", **GREEDY)
        assert torch.equal(recorded, expected)


@pytest.mark.gpu
def test_adapters_switched_between_calls_are_not_missed(model):
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["query_key_value", "dense_h_to_4h"])).cuda().eval()
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    ids = torch.arange(5, 14)[None].cuda()
    static = {"cache_implementation": "static", **GREEDY}
    with_adapter = lora.generate(input_ids=ids, **GREEDY)
    assert torch.equal(lora.generate(input_ids=ids, **static), with_adapter)
    with lora.disable_adapter():
        plain = lora.generate(input_ids=ids, **GREEDY)
        assert torch.equal(lora.generate(input_ids=ids, **static), plain)
    assert not torch.equal(plain, with_adapter)
    assert torch.equal(lora.generate(input_ids=ids, **static), with_adapter)


@pytest.mark.gpu
def test_outputs_that_are_kept_are_not_overwritten(model):
    model = model.cuda()
    ids = torch.arange(5, 14)[None].cuda()
    kept = {"output_hidden_states": True, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    expected = model.generate(ids, **kept)
    found = model.generate(ids, cache_implementation="static", **kept)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(ours[-1], theirs[-1], atol=1e-4)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_recorded_too(model, bits):
    model = model.cuda()
    model.quantize(bits)
    ids = torch.arange(5, 14)[None].cuda()
    recorded = model.generate(ids, cache_implementation="static", **GREEDY)
    assert torch.equal(recorded, model.generate(ids, **GREEDY))
