"""The same logits as transformers' own GlmForCausalLM, on random configurations."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmspectra.chatglm2.conversion import chatglm_config, correspondences, from_glm, glm_config, to_glm
from glmspectra.chatglm2.folder_conversion import convert_folder
from glmspectra.errors import CheckpointError, ConfigError, RequestError


def random_model(config: ChatGLMConfig, seed: int) -> ChatGLMForConditionalGeneration:
    """With weights far from their start: norms that differ from 1, biases that differ from 0."""
    model = ChatGLMForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.25 * noise if "layernorm" in name else 0.3 * noise if "bias" in name else 0.1 * noise)
    return model


@st.composite
def configurations(draw) -> ChatGLMConfig:
    groups = draw(st.integers(1, 3))
    return ChatGLMConfig(
        num_layers=draw(st.integers(1, 3)),
        multi_query_group_num=groups,
        num_attention_heads=groups * draw(st.integers(1, 4)),
        kv_channels=draw(st.sampled_from([4, 8, 16, 20])),
        hidden_size=draw(st.sampled_from([8, 20, 48])),
        ffn_hidden_size=draw(st.sampled_from([12, 40])),
        padded_vocab_size=draw(st.sampled_from([17, 64])),
        seq_length=draw(st.sampled_from([16, 4096])),
        layernorm_epsilon=draw(st.sampled_from([1e-5, 1.5625e-7])),
        add_qkv_bias=draw(st.booleans()),
        rope_ratio=draw(st.sampled_from([1.0, 1.0, 16, 50, 500])),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    config=configurations(),
    seed=st.integers(0, 2**20),
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    attention=st.sampled_from(["eager", "sdpa"]),
)
def test_logits_equal_glms(config, seed, lengths, attention):
    model = random_model(config, seed)
    glm = to_glm(model)
    assert isinstance(glm, GlmForCausalLM)
    for either in (model, glm):
        either.set_attn_implementation(attention)
    width = max(lengths)
    ids = torch.randint(config.padded_vocab_size, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for given_inputs in (
            {"input_ids": ids, "attention_mask": mask, "position_ids": positions},
            {"input_ids": ids, "attention_mask": mask},
            {"input_ids": ids},
        ):
            tokens = given_inputs.get("attention_mask", torch.ones_like(ids)).bool()
            ours, theirs = (either(**given_inputs).logits[tokens] for either in (model, glm))
            assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max().item())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=configurations(), seed=st.integers(0, 2**20))
def test_there_and_back_is_exact(config, seed):
    model = random_model(config, seed)
    again = from_glm(to_glm(model))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert again.config.rope_theta == model.config.rope_theta
    assert again.config.rope_position_divisor == model.config.rope_position_divisor
    ours, theirs = (glm_config(either.config).to_dict() for either in (model, again))
    assert ours.keys() == theirs.keys()
    # A model that was built and not loaded has no type in its configuration.
    assert {key for key in ours if ours[key] != theirs[key]} <= {"dtype"}


def tiny(**changes) -> ChatGLMConfig:
    sizes = {
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 24,
        "kv_channels": 8,
        "num_attention_heads": 4,
        "multi_query_group_num": 2,
        "padded_vocab_size": 50,
        "seq_length": 64,
    }
    return ChatGLMConfig(**{**sizes, **changes})


def test_every_weight_has_one_counterpart():
    config = tiny()
    model = ChatGLMForConditionalGeneration(config)
    items = list(correspondences(config))
    assert {item.name for item in items} == {name for name, _ in model.named_parameters()}
    glm_names = [name for item in items for name in item.glm_names]
    assert sorted(glm_names) == sorted(name for name, _ in to_glm(model).named_parameters())


def test_the_copy_is_a_copy_and_keeps_type_and_generation(tmp_path):
    model = random_model(tiny(), 3).to(torch.bfloat16)
    glm = to_glm(model)
    assert glm.dtype == torch.bfloat16
    assert not glm.training
    before = model.transformer.output_layer.weight.clone()
    with torch.no_grad():
        glm.lm_head.weight.zero_()
    assert torch.equal(model.transformer.output_layer.weight, before)

    ids = torch.tensor([[3, 4, 5]])
    glm = to_glm(model)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(glm.generate(ids, **greedy), model.generate(ids, **greedy))
    glm.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, glm(ids).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_way_of_generating_is_glms(attention):
    """A left-padded batch with and without position ids: greedy, beams, draws, a static cache, prompt lookup."""
    model = random_model(tiny(num_layers=3, hidden_size=40, kv_channels=12, num_attention_heads=6), 1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(3)  # logits far apart: no draw hangs on a rounding
    glm = to_glm(model)
    for either in (model, glm):
        either.set_attn_implementation(attention)
    ids = torch.randint(3, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0] * (11 - length) + [1] * length for length in (7, 11, 2)])
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    common = {"attention_mask": mask, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    for ways in (
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9},
        {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
        {"do_sample": False, "use_cache": False},
    ):
        outputs = []
        for either, further in ((glm, {}), (model, {}), (model, positions)):
            torch.manual_seed(0)
            outputs.append(either.generate(ids, **common, **ways, **further))
        assert torch.equal(outputs[0], outputs[1]), ways
        assert torch.equal(outputs[0], outputs[2]), ways
    one = {"input_ids": ids[1:2].repeat(1, 2), "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    expected = glm.generate(**one)
    assert torch.equal(model.generate(**one, prompt_lookup_num_tokens=3), expected)
    assert torch.equal(model.generate(**one, assistant_model=model), expected)
    embeds = model.get_input_embeddings()(ids)
    found = model.generate(inputs_embeds=embeds, **common, do_sample=False)
    assert torch.equal(found, glm.generate(ids, **common, do_sample=False)[:, 11:])


def test_gradients_agree():
    model = random_model(tiny(), 4)
    glm = to_glm(model)
    ids = torch.arange(2, 22).view(2, 10)
    for either in (model, glm):
        either(input_ids=ids, labels=ids).loss.backward()
    theirs = dict(glm.named_parameters())
    ours = dict(model.named_parameters())
    for item in correspondences(model.config):
        joined = torch.cat([theirs[name].grad for name in item.glm_names])
        found = ours[item.name].grad
        assert (found - joined).abs().max() <= 1e-5 * joined.abs().max(), item.name


def test_what_cannot_be_converted_says_so():
    with pytest.raises(ConfigError, match="add_bias_linear is true"):
        to_glm(ChatGLMForConditionalGeneration(tiny(add_bias_linear=True)))
    config = glm_config(tiny())
    config.hidden_act = "gelu"
    with pytest.raises(ConfigError, match="hidden_act is 'gelu'"):
        chatglm_config(config)
    config = glm_config(tiny())
    config.rope_parameters = {**config.rope_parameters, "rope_type": "yarn", "factor": 2.0}
    with pytest.raises(ConfigError, match="yarn"):
        chatglm_config(config)
    model = ChatGLMForConditionalGeneration(tiny())
    model.config.quantization_bit = 8
    with pytest.raises(RequestError, match="quantized"):
        to_glm(model)


@pytest.mark.parametrize("shard_bytes", [10**9, 5000])
@pytest.mark.parametrize("changes", [{}, {"add_qkv_bias": False, "rope_ratio": 50}])
def test_folders_there_and_back(tmp_path, changes, shard_bytes):
    model = random_model(tiny(**changes), 6).half()
    model.save_pretrained(tmp_path / "chatglm", max_shard_size="8KB")
    (tmp_path / "chatglm" / "tokenizer_config.json").write_text('{"auto_map": {}, "padding_side": "left"}')
    written = []
    convert_folder(tmp_path / "chatglm", tmp_path / "glm", shard_bytes, written.append)
    glm, report = GlmForCausalLM.from_pretrained(tmp_path / "glm", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "glm")) is GlmForCausalLM
    assert glm.dtype == torch.float16
    assert (len(list((tmp_path / "glm").glob("*.safetensors"))) > 1) == (shard_bytes == 5000)
    in_memory = dict(to_glm(model).named_parameters())
    assert all(torch.equal(weight, in_memory[name]) for name, weight in glm.named_parameters())
    assert sum(written) == 2 * sum(weight.numel() for weight in in_memory.values())
    assert (tmp_path / "glm" / "tokenizer_config.json").read_text() == '{\n  "padding_side": "left"\n}\n'

    convert_folder(tmp_path / "glm", tmp_path / "back", shard_bytes)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(back) is ChatGLMForConditionalGeneration
    for name, weight in model.named_parameters():
        assert torch.equal(weight, dict(back.named_parameters())[name]), name
    assert back.config.rope_theta == model.config.rope_theta


def test_the_command_converts_there_and_back(tmp_path, capsys, monkeypatch):
    """`glmspectra convert --to glm` on the embedded model: a folder that transformers reads alone, and its return."""
    from glmspectra.cli.main import main
    from glmspectra.embedded import EMBEDDED_MODEL

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["convert", *arguments])
        return int(ended.value.code or 0)

    monkeypatch.chdir(tmp_path)
    assert run("--model", "nano", "--to", "glm", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["to"], done["out"], list(done["shards"])) == ("glm", "nano-glm", ["model.safetensors"])
    nano = AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    glm = AutoModelForCausalLM.from_pretrained("nano-glm", dtype=torch.float32)
    assert type(glm) is GlmForCausalLM
    tokenizer = ChatGLMTokenizer.from_pretrained("nano-glm")
    inputs = tokenizer(["头晕怎么办？"], return_tensors="pt")
    assert inputs["input_ids"][0, :2].tolist() == tokenizer.convert_tokens_to_ids(["[gMASK]", "sop"])
    with torch.no_grad():
        expected = nano(**inputs).logits
        assert (glm(**inputs).logits - expected).abs().max() < 1e-5
    assert run("nano-glm", "--to", "chatglm", "--out", "back", "--quiet") == 0
    assert "gMASK" not in capsys.readouterr().out
    assert run("--model", "nano", "--to", "glm", "--out", "again", "--quiet") == 0
    assert "tokenizer.json puts [gMASK] sop before every text" in capsys.readouterr().out.replace("\n", " ")
    assert AutoTokenizer.from_pretrained("again")("头晕怎么办？")["input_ids"] == inputs["input_ids"][0].tolist()
    assert type(AutoTokenizer.from_pretrained("back")) is ChatGLMTokenizer
    shutil.rmtree("again")
    back = AutoModelForCausalLM.from_pretrained("back", dtype=torch.float32)
    assert all(torch.equal(weight, dict(back.named_parameters())[name]) for name, weight in nano.named_parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "nano-glm"]  # nothing unfinished beside them

    capsys.readouterr()
    for arguments, sentence in (
        (("--model", "nano", "--to", "gguf"), "--to gguf: write safetensors, glm, chatglm"),
        (("--model", "nano", "--to", "glm", "--dtype", "float16"), "--to glm keeps every value"),
        (("--model", "nano", "--to", "chatglm"), "--to chatglm takes a checkpoint of model_type glm"),
        (("--model", "nano", "--to", "glm"), "nano-glm is there already"),
    ):
        assert run(*arguments) == 2
        assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_folders_that_cannot_be_converted(tmp_path):
    model = random_model(tiny(), 6)
    model.save_pretrained(tmp_path / "chatglm")
    with pytest.raises(RequestError, match="is there already"):
        convert_folder(tmp_path / "chatglm", tmp_path)
    config = tmp_path / "chatglm" / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace('"chatglm"', '"llama"'), encoding="utf-8")
    with pytest.raises(RequestError, match="'llama': only chatglm and glm"):
        convert_folder(tmp_path / "chatglm", tmp_path / "out")
    config.write_text(text.replace('"num_layers": 2', '"num_layers": 3'), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"lacks transformer.encoder.layers.2"):
        convert_folder(tmp_path / "chatglm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
