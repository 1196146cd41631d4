"""The native ChatGLM2: configuration, modeling, tokenizer, int4/int8 format, chat.

Importing this package registers it with transformers' Auto classes, so that a folder whose config.json says
`model_type: chatglm` loads with no remote code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from glmspectra.chatglm2.configuration import ChatGLMConfig
from glmspectra.chatglm2.conversion import from_glm, to_glm
from glmspectra.chatglm2.folder_conversion import convert_folder
from glmspectra.chatglm2.modeling import ChatGLMForConditionalGeneration, ChatGLMModel, ChatGLMPreTrainedModel
from glmspectra.chatglm2.tokenization import ChatGLMTokenizer

AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
# As the published auto_map has it: each of the three gives the model that chats.
for _auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
    _auto.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(ChatGLMConfig, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)

__all__ = [
    "ChatGLMConfig",
    "ChatGLMForConditionalGeneration",
    "ChatGLMModel",
    "ChatGLMPreTrainedModel",
    "ChatGLMTokenizer",
    "convert_folder",
    "from_glm",
    "to_glm",
]
