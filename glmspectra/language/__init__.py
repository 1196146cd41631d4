"""Every word that people read, in English and Chinese, from one catalogue: `en/*.ftl` and `zh/*.ftl`.

The catalogue is Project Fluent's (https://projectfluent.org): messages have names, plurals are written in the file by
the rules of the language (CLDR, through Babel), and nothing has to be compiled. Words of table columns stand with the
columns in `store.columns`. `tests/language` holds that no message is missing in either language.
"""

from glmspectra.language.catalogue import (
    LANGUAGES,
    Words,
    both,
    choose,
    clauses,
    current,
    known,
    listed,
    plain_messages,
    text,
)

__all__ = ["LANGUAGES", "Words", "both", "choose", "clauses", "current", "known", "listed", "plain_messages", "text"]
