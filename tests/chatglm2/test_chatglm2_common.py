"""The tests transformers asks of its own models that apply to this one, written for it."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, StaticCache

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMModel
from glmspectra.chatglm2.layers import swiglu
from glmspectra.chatglm2.modeling import eager_attention_forward
from glmspectra.chatglm2.versions import CACHE

VOCABULARY = 61


def tiny(**changes) -> ChatGLMConfig:
    sizes = {
        "num_layers": 3,
        "hidden_size": 32,
        "ffn_hidden_size": 40,
        "kv_channels": 8,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "padded_vocab_size": VOCABULARY,
        "seq_length": 64,
        "initializer_range": 0.3,
    }
    return ChatGLMConfig(**{**sizes, **changes})


@pytest.fixture
def model() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(7)
    return ChatGLMForConditionalGeneration(tiny()).eval()


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(11))


def test_initialisation(model):
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    assert (model.transformer.encoder.final_layernorm.weight == 1).all()
    assert (model.transformer.encoder.layers[0].self_attention.query_key_value.bias == 0).all()
    assert 0.2 < model.transformer.output_layer.weight.std() < 0.4
    assert not model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["20GB", "10KB"])
def test_save_and_load(model, tmp_path, dtype, shard):
    model = model.to(dtype)
    ids = random_ids(2, 9)
    before = model(ids).logits
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "10KB")
    for auto in (AutoModelForCausalLM, AutoModel, AutoModelForSeq2SeqLM, ChatGLMForConditionalGeneration):
        loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is ChatGLMForConditionalGeneration
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert loaded.dtype == dtype
        assert torch.equal(loaded(ids).logits, before)


def test_loading_onto_a_device_map_and_without_the_buffer(model, tmp_path):
    """Built on the meta device: what the checkpoint lacks must be computed, never left as memory held it."""
    state = model.state_dict()
    del state["transformer.rotary_pos_emb.inv_freq"]
    model.save_pretrained(tmp_path, state_dict=state)
    for arguments in ({}, {"device_map": {"": "cpu"}}, {"low_cpu_mem_usage": True}):
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **arguments)
        assert not report["missing_keys"]
        assert torch.equal(loaded(random_ids(1, 30)).logits, model(random_ids(1, 30)).logits)
        frequencies = loaded.transformer.rotary_pos_emb.inv_freq
        assert torch.equal(frequencies, model.transformer.rotary_pos_emb.inv_freq)


def test_casting_the_model_leaves_the_angles_exact(model):
    cast = ChatGLMForConditionalGeneration(tiny())
    cast.load_state_dict(model.state_dict())
    cast.half().float()  # a buffer in use would now be rounded
    cos, sin = model.transformer.rotary_pos_emb(torch.tensor([[60]]), torch.float32)
    found = cast.transformer.rotary_pos_emb(torch.tensor([[60]]), torch.float32)
    assert torch.equal(found[0], cos)
    assert torch.equal(found[1], sin)


def test_resizing_the_embeddings(model):
    ids = random_ids(1, 8)
    before = model(ids).logits
    model.resize_token_embeddings(VOCABULARY + 6, mean_resizing=False)
    assert model.config.padded_vocab_size == model.config.vocab_size == VOCABULARY + 6
    after = model(ids, labels=ids)
    assert after.logits.shape[-1] == VOCABULARY + 6
    assert torch.allclose(after.logits[..., :VOCABULARY], before, atol=1e-6)
    assert torch.isfinite(after.loss)


def test_embeddings_in_place_of_ids(model):
    ids = random_ids(2, 8)
    assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits)
    for arguments in ({}, {"input_ids": ids, "inputs_embeds": model.get_input_embeddings()(ids)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**arguments)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_cache_changes_nothing(model, attention):
    model.set_attn_implementation(attention)
    ids = random_ids(2, 16)
    with torch.no_grad():
        whole = model(ids, use_cache=False)
        assert whole.get(CACHE) is None
        cache, steps = None, []
        for start, stop in ((0, 5), (5, 6), (6, 7), (7, 13), (13, 16)):
            output = model(ids[:, start:stop], use_cache=True, **{CACHE: cache})
            cache = output[CACHE]
            steps.append(output.logits)
        assert cache.get_seq_length() == 16
    assert torch.allclose(torch.cat(steps, dim=1), whole.logits, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("with_positions", [True, False])
def test_left_padding_changes_nothing(model, attention, with_positions):
    model.set_attn_implementation(attention)
    ids = random_ids(1, 7)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    arguments = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if with_positions else {}
    with torch.no_grad():
        logits = model(padded, attention_mask=mask, **arguments).logits
        assert torch.isfinite(logits).all()
        assert torch.allclose(logits[:, 5:], model(ids).logits, atol=1e-5)
        greedy = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
        alone = model.generate(ids, **greedy)[:, 7:]
        assert torch.equal(model.generate(padded, attention_mask=mask, **greedy)[:, 12:], alone)


def test_right_padding_changes_nothing(model):
    ids = random_ids(1, 7)
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    logits = model(padded, attention_mask=(padded != 0).long()).logits
    assert torch.allclose(logits[:, :7], model(ids).logits, atol=1e-5)


def test_attention_implementations_agree(model):
    ids = random_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, :9] = 0
    logits = {}
    with torch.no_grad():
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            logits[attention] = model(ids, attention_mask=mask).logits[mask.bool()]
    assert torch.allclose(logits["sdpa"], logits["eager"], atol=1e-5)


def test_eager_scores_stay_within_float16(model):
    """Products of query and key beyond 65504 that the scale brings back: the published code scales in the product."""
    attention = model.transformer.encoder.layers[0].self_attention
    torch.manual_seed(4)
    key = torch.randn(1, 2, 5, 8).half() + 95
    query = torch.randn(1, 4, 5, 8).half() + 95  # 8 x 95 x 95 is 72200, and 25500 once scaled
    value = torch.randn(1, 2, 5, 8).half()
    mixed, weights = eager_attention_forward(attention, query, key, value, None, attention.scaling)
    assert torch.isfinite(mixed).all()
    assert torch.allclose(weights.sum(-1), torch.ones(1, 4, 5).half(), atol=1e-2)


def test_attention_weights_and_hidden_states(model):
    model.set_attn_implementation("eager")
    ids = random_ids(2, 6)
    output = model(ids, output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 6, 6)] * 3
    for weights in output.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 6), atol=1e-6)
        assert (weights.triu(1) == 0).all()
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 6, 32)] * 4
    as_tuple = model(ids, return_dict=False)
    assert torch.equal(as_tuple[0], output.logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(model, reentrant):
    ids = random_ids(2, 10)
    model.train()
    model(ids, labels=ids).loss.backward()
    plain = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()  # what PEFT does before training on frozen weights
    calls = []
    layers = model.transformer.encoder.layers
    hooks = [layer.mlp.register_forward_pre_hook(lambda *args: calls.append(args[1])) for layer in layers]
    output = model(ids, labels=ids)
    output.loss.backward()
    for hook in hooks:
        hook.remove()
    assert output.get(CACHE) is None
    assert len(calls) == 6  # each layer once more in the backward pass
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, plain[name], atol=1e-6), name
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_sequences_packed_in_one_row_do_not_see_each_other(model):
    """By position ids alone, as a collator that flattens gives them; the default `use_cache` must not hide them."""
    first, second, third = random_ids(1, 5), random_ids(1, 9)[:, 2:], random_ids(1, 3)
    packed = torch.cat([first, second, third], dim=1)
    positions = torch.cat([torch.arange(part.shape[1]) for part in (first, second, third)])[None]
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            apart = torch.cat([model(part).logits for part in (first, second, third)], dim=1)
            for use_cache in (None, False):
                logits = model(packed, position_ids=positions, use_cache=use_cache).logits
                assert torch.allclose(logits, apart, atol=1e-5), (attention, use_cache)
            plain = model(packed).logits
    assert (plain - apart)[:, 6:].abs().max() > 0.1  # it is the position ids that part them

    labels = packed.clone()
    labels[:, [0, 5, 12]] = -100  # no sequence predicts the first token of the next
    model.set_attn_implementation("sdpa")
    model(packed, position_ids=positions, labels=labels).loss.backward()
    found = model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight.grad.clone()
    model.zero_grad()
    sum(model(part, labels=part).loss * (part.shape[1] - 1) for part in (first, second, third)).div(12).backward()
    expected = model.transformer.encoder.layers[0].mlp.dense_4h_to_h.weight.grad
    assert torch.allclose(found, expected, atol=1e-6)


def test_flex_attention(model):
    ids = random_ids(1, 12)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        expected = model(ids, position_ids=positions).logits
        model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"):  # its mask is what is ours; compiling it takes a minute
            assert torch.allclose(model(ids, position_ids=positions).logits, expected, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_four_dimensional_mask_is_taken_as_it_stands(model, attention):
    """Added to the scores, or of type bool and true where a key is seen; a row that sees nothing stays finite."""
    model.set_attn_implementation(attention)
    ids = random_ids(2, 6)
    mask = torch.full((1, 1, 6, 6), torch.finfo(torch.float32).min).triu(1)
    expected = model(ids).logits
    assert torch.allclose(model(ids, attention_mask=mask).logits, expected, atol=1e-6)
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    assert torch.allclose(model(ids, attention_mask=seen).logits, expected, atol=1e-6)
    seen[0, :, :3] = False
    found = model(ids, attention_mask=seen).logits
    assert torch.isfinite(found).all()
    assert torch.allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_padding_alone_harms_nothing(model, attention):
    """A batch filled up with empty rows: the others' logits, loss and gradients are theirs."""
    model.set_attn_implementation(attention)
    ids = random_ids(1, 7)
    batch = torch.cat([ids, torch.zeros_like(ids)])
    mask = torch.tensor([[1] * 7, [0] * 7])
    output = model(batch, attention_mask=mask, labels=torch.where(mask.bool(), batch, -100))
    output.loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    alone = model(ids, labels=ids)
    alone.loss.backward()
    assert torch.allclose(output.logits[:1], alone.logits, atol=1e-5)
    assert torch.allclose(output.loss, alone.loss, atol=1e-6)
    for name, weight in model.named_parameters():
        assert torch.allclose(found[name], weight.grad, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_swiglu_is_autograds_to_the_bit_and_keeps_its_input_alone(dtype):
    torch.manual_seed(2)
    x = torch.randn(2, 5, 24).to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = swiglu(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]
    twin = x.detach().clone().requires_grad_()
    gate, up = twin.chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up
    direction = torch.randn_like(y)
    y.backward(direction)
    expected.backward(direction)
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, twin.grad)
    with torch.no_grad():
        assert torch.equal(swiglu(x), expected)
    assert torch.autograd.gradcheck(swiglu, torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True))


def test_loss(model):
    ids = random_ids(2, 8)
    labels = ids.clone()
    labels[0, :5] = -100
    output = model(ids, labels=labels)
    shifted = labels[:, 1:].reshape(-1)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].reshape(-1, VOCABULARY), shifted)
    assert torch.allclose(output.loss, expected)
    # under gradient accumulation the Trainer gives the number of supervised tokens of all its micro batches
    counted = model(ids, labels=labels, num_items_in_batch=torch.tensor(40)).loss
    assert torch.allclose(counted * 40, expected * (shifted != -100).sum(), rtol=1e-5)


def test_logits_to_keep(model):
    ids = random_ids(2, 8)
    logits = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=0).logits, logits)
    assert torch.allclose(model(ids, logits_to_keep=3).logits, logits[:, -3:], atol=1e-6)
    assert torch.allclose(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]], atol=1e-6)


def test_ways_of_generating(model):
    ids = random_ids(2, 6)
    greedy = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **greedy)
    assert torch.equal(model.generate(ids, use_cache=False, **greedy), expected)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **greedy), expected)
    cache = StaticCache(config=model.config, max_cache_len=16)
    assert torch.equal(model.generate(ids, disable_compile=True, **{CACHE: cache}, **greedy), expected)
    beams = model.generate(ids, num_beams=3, return_dict_in_generate=True, output_scores=True, **greedy)
    assert beams.sequences.shape == (2, 16)

    def log_probability(sequence):  # beam search must find something at least as likely as the greedy path
        scores = model(sequence).logits[:, 5:-1].log_softmax(-1)
        return scores.gather(-1, sequence[:, 6:, None]).sum((1, 2))

    assert (log_probability(beams.sequences) >= log_probability(expected) - 1e-4).all()
    torch.manual_seed(0)
    sampled = model.generate(ids, do_sample=True, top_p=0.9, max_new_tokens=5, eos_token_id=None)
    assert sampled.shape == (2, 11)


def test_generation_stops_at_eos(model):
    ids = random_ids(1, 6)
    free = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 6:].tolist()
    end = free[4]
    stopped = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=end)[0, 6:].tolist()
    assert stopped == free[: free.index(end) + 1]
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 0


def test_the_base_model_alone(model, tmp_path):
    model.save_pretrained(tmp_path)
    base = ChatGLMModel.from_pretrained(tmp_path)
    ids = random_ids(1, 5)
    states = base(ids).last_hidden_state
    assert torch.allclose(base.output_layer(states), model(ids).logits, atol=1e-6)


def test_one_graph_without_a_break(model):
    """One graph without a break, and the same logits: what a static cache on a GPU compiles."""
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = random_ids(2, 8)
    with torch.no_grad():
        assert torch.allclose(compiled(ids, use_cache=False).logits, model(ids).logits, atol=1e-5)
    compiled(ids, labels=ids, use_cache=False).loss.backward()  # and with its way back
    found = model.transformer.encoder.layers[0].mlp.dense_h_to_4h.weight.grad.clone()
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    assert torch.allclose(model.transformer.encoder.layers[0].mlp.dense_h_to_4h.weight.grad, found, atol=1e-5)


def test_biases_in_all_linear_layers(tmp_path):
    torch.manual_seed(3)
    model = ChatGLMForConditionalGeneration(tiny(add_bias_linear=True, add_qkv_bias=False)).eval()
    names = dict(model.named_parameters())
    for matrix in ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"):
        assert f"transformer.encoder.layers.2.{matrix}.bias" in names
    without = ChatGLMForConditionalGeneration(tiny(add_qkv_bias=False))
    assert not [name for name, _ in without.named_parameters() if name.endswith("bias")]


def test_dropout_acts_in_training_only():
    torch.manual_seed(3)
    model = ChatGLMForConditionalGeneration(tiny(hidden_dropout=0.5, attention_dropout=0.5))
    ids = random_ids(1, 8)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
