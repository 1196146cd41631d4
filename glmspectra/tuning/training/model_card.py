"""The README.md of a checkpoint folder: what lies there and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import peft
import transformers

from glmspectra import __version__
from glmspectra.files import write_text

if TYPE_CHECKING:
    from transformers import TrainerState

_CARD = """---
library_name: peft
base_model: {base}
tags:
- lora
- glmspectra
---
# Adapter of {base}, step {step} of {total}

{results}

- `{adapter}/`: the adapter, in PEFT's format
- `optimizer.pt`, `scheduler.pt`, `rng_state*.pth`, `trainer_state.json`, `progress.json`: what training goes
  on from
- `training_args.bin`: the Trainer's arguments, a pickle that nothing here opens

```python
import glmspectra.chatglm2  # for ChatGLM2 bases
from peft import PeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

base = "{base}"
model = PeftModelForCausalLM.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "{adapter}")
tokenizer = AutoTokenizer.from_pretrained(base)
```

glmspectra {version}, transformers {transformers}, peft {peft}.
"""


def write_card(path: Path, base: str, adapter: str, state: TrainerState) -> None:
    """Write the card of a checkpoint; `state` is the Trainer's."""
    rows = []
    for key, label in (("loss", "training loss"), ("eval_loss", "evaluation loss"), ("eval_perplexity", "perplexity")):
        entry = next((entry for entry in reversed(state.log_history) if key in entry), None)
        if entry is not None:
            rows.append(f"| {label} | {entry[key]:.4f} | {entry['step']} |")
    results = "\n".join(["| | last value | at step |", "|---|---|---|", *rows]) if rows else "Nothing was logged yet."
    write_text(
        path,
        _CARD.format(
            base=base,
            adapter=adapter,
            step=state.global_step,
            total=state.max_steps,
            results=results,
            version=__version__,
            transformers=transformers.__version__,
            peft=peft.__version__,
        ),
    )
