"""What differs between the supported versions of transformers, in one place."""

import inspect

from transformers.masking_utils import create_causal_mask

# The argument and output field that holds keys and values: `past_key_values` up to 5.23, `cache` from 5.24 on
# (which still takes the old name, with a warning, until 5.40).
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
