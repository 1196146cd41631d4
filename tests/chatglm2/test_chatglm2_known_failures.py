"""What broke for others who trained ChatGLM2 with later libraries, one test each, with the thread it is from.

Padding side and special tokens of the tokenizer: `test_chatglm2_tokenizer.py`. Those of a training run (a first
gradient that is not finite, float32 adapters under AMP, learning rate) are tested where training is.
"""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from glmspectra.chatglm2.versions import CACHE

LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@pytest.fixture
def config() -> ChatGLMConfig:
    return ChatGLMConfig(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=64,
        kv_channels=16,
        num_attention_heads=4,
        multi_query_group_num=2,
        padded_vocab_size=97,
        seq_length=64,
        initializer_range=0.1,
    )


@pytest.fixture
def model(config) -> ChatGLMForConditionalGeneration:
    torch.manual_seed(5)
    return ChatGLMForConditionalGeneration(config)


@pytest.fixture
def folder(model, tmp_path):
    """A folder as published: its configuration names remote code, and there is none here to run."""
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    saved["auto_map"] = {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    }
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    return tmp_path


def test_loads_without_remote_code(folder):
    """ValueError `contains custom code` (transformers 5), stale modeling files (zai-org/ChatGLM2-6B#163)."""
    assert type(AutoConfig.from_pretrained(folder, trust_remote_code=False)) is ChatGLMConfig
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert type(loaded) is ChatGLMForConditionalGeneration
    loaded.save_pretrained(folder / "again")
    assert "auto_map" not in json.loads((folder / "again" / "config.json").read_text(encoding="utf-8"))


def test_tied_weights_are_declared(model):
    """`all_tied_weights_keys` missing (OpenBMB/MiniCPM-V#1087, LLaDA#130): `post_init()` was never called."""
    assert dict(model.all_tied_weights_keys) == {}
    assert dict(model.transformer.all_tied_weights_keys) == {}


def test_gradient_checkpointing_is_of_the_new_style(model):
    """`_set_gradient_checkpointing() got unexpected 'enable'` (MedicalGPT#307, ChatGLM3#1057, #406)."""
    assert model.supports_gradient_checkpointing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    model.train()
    ids = torch.arange(3, 13)[None]
    model(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_input_embeddings_can_require_gradients(model):
    """`enable_input_require_grads` needs `get_input_embeddings` (ChatGLM3#846)."""
    assert model.get_input_embeddings() is model.transformer.embedding.word_embeddings
    model.requires_grad_(False)
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(torch.tensor([1])).requires_grad


def test_lora_trains_every_matrix_under_checkpointing(model):
    """With a frozen base and checkpointing, gradients must reach the first layer."""
    lora = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=list(LINEAR), task_type="CAUSAL_LM"))
    lora.gradient_checkpointing_enable({"use_reentrant": True})
    lora.enable_input_require_grads()
    lora.train()
    ids = torch.arange(3, 13)[None]
    lora(input_ids=ids, labels=ids).loss.backward()
    factors = {name: weight for name, weight in lora.named_parameters() if "lora_B" in name}
    assert len(factors) == 8
    assert all(weight.grad.abs().max() > 0 for weight in factors.values())


def test_adapters_have_the_names_of_the_published_model(model, tmp_path):
    """Adapters move both ways between this model and ones that were trained on the published code."""
    get_peft_model(model, LoraConfig(r=2, target_modules=["query_key_value"])).save_pretrained(tmp_path)
    from safetensors.torch import load_file

    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    prefix = "base_model.model.transformer.encoder.layers"
    assert names == {
        f"{prefix}.{layer}.self_attention.query_key_value.lora_{factor}.weight" for layer in (0, 1) for factor in "AB"
    }
    again = PeftModel.from_pretrained(ChatGLMForConditionalGeneration(model.config), tmp_path)
    assert "query_key_value" in again.peft_config["default"].target_modules


def test_the_cache_is_a_cache_object(model):
    """`_extract_past_from_model_output ... standardize_cache_format`, tuple caches (LlamaFactory#6500)."""
    model.eval()
    output = model(torch.tensor([[3, 4, 5]]), use_cache=True)
    assert output[CACHE].get_seq_length() == 3
    assert output[CACHE].layers[0].keys.shape == (1, 2, 3, 16)
    for name in ("cache", "past_key_values"):  # the names of two ranges of versions
        more = model(torch.tensor([[6]]), **{name: model(torch.tensor([[3, 4, 5]]), use_cache=True)[CACHE]})
        whole = model(torch.tensor([[3, 4, 5, 6]])).logits[:, -1:]
        assert torch.allclose(more.logits, whole, atol=1e-5)
    with pytest.raises(ValueError, match="give the cache once"):
        model(torch.tensor([[6]]), cache=output[CACHE], past_key_values=output[CACHE])
    with pytest.raises(TypeError, match="must be a Cache of transformers, as DynamicCache, not tuple"):
        model(torch.tensor([[6]]), past_key_values=((torch.zeros(3, 1, 2, 16), torch.zeros(3, 1, 2, 16)),) * 2)


def test_masks_of_every_integer_type(model):
    """`get_masks` dtype and batch size (yongzhuo/ChatGLM2-SFT README, items 3 and 5)."""
    model.eval()
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = (ids != 0).long()
    expected = model(ids, attention_mask=mask).logits[mask.bool()]
    for dtype in (torch.bool, torch.int32, torch.uint8, torch.float32):
        assert torch.equal(model(ids, attention_mask=mask.to(dtype)).logits[mask.bool()], expected)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits[mask.bool()], expected)


def test_labels_are_shifted_once_and_by_the_model(model):
    """Labels shifted twice, or a mask off by one (ChatGLM3#184)."""
    model.eval()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    log_probabilities = model(ids).logits.log_softmax(-1)
    for position in range(1, 5):
        labels = torch.full_like(ids, -100)
        labels[0, position] = ids[0, position]
        loss = model(ids, labels=labels).loss
        assert torch.allclose(loss, -log_probabilities[0, position - 1, ids[0, position]], atol=1e-6)
    labels = torch.full_like(ids, -100)
    labels[0, 0] = 3  # nothing comes before the first token: it is never predicted
    assert torch.isnan(model(ids, labels=labels).loss)


def test_eos_is_a_label_like_any_other(model):
    """EOS never learnt, since it was taken for padding (mymusise/ChatGLM-Tuning#60)."""
    ids = torch.tensor([[3, 4, 2]])
    labels = torch.tensor([[-100, -100, 2]])
    before = model(ids, labels=labels).loss
    before.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= 0.1 * weight.grad
    assert model(ids, labels=labels).loss < before
    assert model.config.pad_token_id != model.config.eos_token_id


def test_left_padding_leaves_the_loss_as_it_is(model):
    """Left padding with a mask by length gives a loss of zero (trl#550); by span it changes nothing."""
    model.eval()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    labels = torch.tensor([[-100, -100, 5, 6, 7]])
    padded = torch.nn.functional.pad(ids, (4, 0))
    padded_labels = torch.nn.functional.pad(labels, (4, 0), value=-100)
    loss = model(padded, attention_mask=(padded != 0).long(), labels=padded_labels).loss
    assert torch.allclose(loss, model(ids, labels=labels).loss, atol=1e-6)
    assert loss > 0


@pytest.mark.gpu
def test_labels_on_another_device(model):
    """Evaluation under a device map (ms-swift moves labels to the logits' device)."""
    model = model.cuda()
    ids = torch.tensor([[3, 4, 5]])
    on_device = model(ids.cuda(), labels=ids.cuda()).loss
    assert torch.allclose(model(ids.cuda(), labels=ids).loss, on_device)


def test_labels_are_moved_to_the_logits(model, monkeypatch):
    """The same without a GPU: the loss is handed labels of the logits' device."""
    seen = []

    def watched(source, target, **kwargs):
        seen.append((source.device, target.device))
        return source.sum()

    ids = torch.tensor([[3, 4, 5]])
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    model.to("meta")(ids.to("meta"), labels=ids)
    assert seen == [(torch.device("meta"), torch.device("meta"))]


def test_four_bit_loading_quantizes_every_matrix(folder):
    """NF4 that finds no linear modules and stays float16 (ChatGLM2-6B#163, chatGLM-6B-QLoRA#14, #29)."""
    bnb = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantized = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        device_map={"": "cpu"},
    )
    four_bit = [name for name, module in quantized.named_modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(four_bit) == 4 * quantized.config.num_layers  # 112 of them in the published model
    assert {name.rsplit(".", 1)[1] for name in four_bit} == set(LINEAR)
    assert type(quantized.transformer.output_layer) is torch.nn.Linear
    ids = torch.arange(3, 13)[None]
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        quantized.train()  # in eval mode bitsandbytes repacks the weights on some CPUs
        assert (
            torch.nn.functional.cosine_similarity(quantized(ids).logits.flatten(), plain(ids).logits.flatten(), dim=0)
            > 0.9
        )

    trainable = prepare_model_for_kbit_training(quantized, use_gradient_checkpointing=True)
    lora = get_peft_model(trainable, LoraConfig(r=2, target_modules=list(LINEAR), task_type="CAUSAL_LM"))
    lora.train()
    lora(input_ids=ids, labels=ids).loss.backward()
    factors = [weight for name, weight in lora.named_parameters() if "lora_B" in name]
    assert len(factors) == 8
    assert all(weight.grad.abs().max() > 0 for weight in factors)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_types_meet_under_autocast(model, amp):
    """`expected scalar type Half but found Float` (ChatGLM-Efficient-Tuning#357, #260)."""
    model = model.to(torch.bfloat16)
    for name, weight in model.named_parameters():
        if "layernorm" in name:
            weight.data = weight.data.float()  # as prepare_model_for_kbit_training does
    ids = torch.arange(3, 13)[None]
    with torch.autocast("cpu", dtype=amp):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    assert torch.isfinite(model(ids, labels=ids).loss)  # and without autocast, with the norms in float32


def test_the_trainer_trains_evaluates_and_saves(model, tmp_path):
    """The Trainer's own way through: labels, accumulation, checkpointing, evaluation, saving."""
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 97, (8, 12)).tolist()]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=4,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved").transformer.output_layer.weight,
        model.transformer.output_layer.weight,
    )


@pytest.mark.shared
def test_the_sentencepiece_model_is_there_before_the_base_class_asks(shared, tmp_path):
    """`ChatGLMTokenizer has no attribute 'tokenizer' / 'sp_tokenizer'` (Langchain-Chatchat#1835, #1679)."""
    tokenizer = ChatGLMTokenizer(str(shared / "tokenizer" / "chatglm2" / "tokenizer.model"))
    tokenizer.eos_token = "</s>"  # read-only properties clashed with trainers that set them
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == 2
    assert type(AutoTokenizer.from_pretrained(shared / "tokenizer" / "chatglm2")) is ChatGLMTokenizer


@pytest.mark.shared
def test_the_prompt_starts_with_gmask_sop_and_round_one(shared):
    """A wrong prompt (ChatGLM2-SFT README, items 7 and 8)."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer" / "chatglm2")
    prompt = tokenizer.build_prompt("头晕怎么办？")
    assert prompt == "[Round 1]\n\n问：头晕怎么办？\n\n答："
    assert tokenizer(prompt)["input_ids"][:2] == [tokenizer.get_command("[gMASK]"), tokenizer.get_command("sop")]
