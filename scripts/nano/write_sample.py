"""Write the sample that `glmspectra train` runs on at once: `data/train.jsonl` and `data/valid.jsonl`.

Questions to a doctor and answers, {"context": ..., "target": ...} a line, in the frame that the original study's data
has (an instruction, a question, the word 回答). The facts are those of `data/corpus/`, the sentences below were
written by hand for this project; nano has read the facts, but never asked or answered in these words. The same bytes
come out each time, and no context of valid stands in train.

    python scripts/nano/write_sample.py
"""

import json
import random
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "data"
PACKAGED = REPOSITORY / "glmspectra" / "tuning" / "settings" / "presets" / "data"  # what `glmspectra init` writes
SEED = 20261125
TRAIN_ROWS, VALID_ROWS = 480, 96

INSTRUCTION = "下面是一个关于身体的问题，认真回答。\n问题：{question}\n回答："
WHO = ["一个病人", "我", "我家里人", "一个同事"]


def joined(items: list[str]) -> str:
    return "、".join(items)


def illness_rows(ill: dict, chance: random.Random) -> list[tuple[str, str]]:
    """Questions and answers about one illness."""
    name, department, care, avoid = ill["name"], ill["department"], ill["care"], ill["avoid"]
    symptoms = ill["symptoms"]
    rows = []
    for _ in range(3):
        some = joined(chance.sample(symptoms, chance.randint(2, len(symptoms))))
        question = chance.choice(
            [
                f"{chance.choice(WHO)}有这样的表现：{some}，几天了还不好，可能是什么病？",
                f"{chance.choice(WHO)}最近{some}，该看什么科？",
            ]
        )
        rows.append((question, f"从{some}看，多半是{name}，建议去{department}。要做的检查：{ill['test']}。"))
    everyday = f"平时要{care[0]}、{care[1]}，不要{avoid}。"
    steps = f"在家里要{care[0]}、{care[1]}，还要{care[2]}。记住，不要{avoid}。"
    signs = f"{name}的问题出在{ill['part']}，常见的表现是{joined(symptoms)}。有这样的表现，建议去{department}。"
    cause = f"{name}的原因：{ill['cause']}。{everyday}"
    course = f"{name}的病程：{ill['days']}。病程里要{care[0]}，不要{avoid}。"
    test = f"{name}的检查：{ill['test']}。检查好了，听{department}医生的话。"
    never = f"不能，这样对{name}没有好处。应当{care[0]}，{care[-1]}。"
    return [
        *rows,
        (f"{name}有什么表现？", signs),
        (f"怎样看出是不是得了{name}？", signs),
        (f"为什么会得{name}？", cause),
        (f"{name}是什么引起的？", cause),
        (f"得了{name}，在家里怎么做？", steps),
        (f"医生，{name}要注意什么？", steps),
        (f"{name}多久能好？", course),
        (f"得了{name}要几天？", course),
        (f"可能是{name}，要做什么检查？", test),
        (f"得了{name}能不能{avoid}？", never),
    ]


def food_rows(food: dict) -> list[tuple[str, str]]:
    """Questions and answers about one food."""
    name, rich = food["name"], food["rich"]
    when = f"{name}一年四季都有" if food["season"] == "全年" else f"{food['season']}的{name}最好"
    answer = f"{name}是一种{food['kind']}，味道{food['taste']}，里面{rich}比较多。{when}。"
    return [(f"{name}里什么比较多？", answer), (f"医生，能不能吃{name}？", f"能吃。{answer}")]


def main() -> None:
    chance = random.Random(SEED)
    corpus = DATA / "corpus"
    pairs: dict[str, str] = {}
    for line in (corpus / "illnesses.jsonl").read_text("utf-8").splitlines():
        pairs.update(illness_rows(json.loads(line), chance))
    for line in (corpus / "foods.jsonl").read_text("utf-8").splitlines():
        pairs.update(food_rows(json.loads(line)))
    rows = [(INSTRUCTION.format(question=question), answer) for question, answer in pairs.items()]
    chance.shuffle(rows)
    parts = {"train": rows[:TRAIN_ROWS], "valid": rows[TRAIN_ROWS : TRAIN_ROWS + VALID_ROWS]}
    for name, part in parts.items():
        lines = [json.dumps({"context": c, "target": t}, ensure_ascii=False) for c, t in part]
        for folder in (DATA, PACKAGED):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(part)} rows")
    print(f"{len(rows)} in all")


if __name__ == "__main__":
    main()
