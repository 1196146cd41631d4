"""Write docs/trainer_keys.md, the table of the Trainer's arguments, from the code that checks them."""

from pathlib import Path

from glmspectra.tuning.settings.explain import trainer_keys_page

PAGE = Path(__file__).parents[1] / "docs" / "trainer_keys.md"

if __name__ == "__main__":
    PAGE.write_text(trainer_keys_page(), encoding="utf-8")
