"""Write the text that nano is trained on, {"text": ...} a line: `data/corpus/train.jsonl` and `heldout.jsonl`.

The facts (`illnesses.jsonl`, `foods.jsonl`) and the sentence forms below were written by hand for this project. A
document draws its subject, its sentences and their order from a seeded generator, so both files come out the same
bytes each time. No held-out document stands in the training text; what a model must know to predict one (which symptoms
go with which illness, who of two people went where, what seven and five make) has to be carried over more than three
tokens, which is what a trigram model cannot do.

    python scripts/nano/write_corpus.py
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[2] / "data" / "corpus"
SEED = 20261125
TRAIN_DOCUMENTS, HELDOUT_DOCUMENTS = 7000, 500

PEOPLE = [
    "小王",
    "小李",
    "小张",
    "小陈",
    "小周",
    "小林",
    "老赵",
    "老刘",
    "老马",
    "阿明",
    "阿芳",
    "阿强",
    "王老师",
    "李老师",
    "陈奶奶",
    "周爷爷",
    "张叔叔",
    "林阿姨",
]
JOBS = ["老师", "司机", "厨师", "农民", "工人", "护士", "会计", "学生", "画家", "邮递员", "木匠", "程序员"]
PLACES = ["公园", "图书馆", "菜市场", "医院", "学校", "火车站", "河边", "超市", "邮局", "体育馆", "茶馆", "博物馆"]
VEHICLES = ["走路", "骑自行车", "坐公交车", "坐地铁", "坐出租车", "开车"]
WEATHER = {
    "晴天": "太阳很好",
    "阴天": "云很厚",
    "下雨": "路上很湿",
    "下雪": "地上很白",
    "刮风": "树叶乱飞",
    "有雾": "看不清远处",
}
THINGS = ["一本书", "一把伞", "一袋米", "一封信", "一个苹果", "一盒茶叶", "一双鞋", "一支笔", "一条鱼", "一束花"]
FEELINGS = ["高兴", "着急", "安静", "疲倦", "放心", "好奇"]
DIGITS = "零一二三四五六七八九"


def chinese_number(number: int) -> str:
    """Chinese numeral of 0..99."""
    tens, ones = divmod(number, 10)
    if tens == 0:
        return DIGITS[ones]
    return ("" if tens == 1 else DIGITS[tens]) + "十" + (DIGITS[ones] if ones else "")


def joined(items: list[str]) -> str:
    return "、".join(items)


class Writer:
    """Draws documents; each public method writes one subject."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.illnesses = [json.loads(line) for line in (CORPUS / "illnesses.jsonl").read_text("utf-8").splitlines()]
        self.foods = [json.loads(line) for line in (CORPUS / "foods.jsonl").read_text("utf-8").splitlines()]

    def some(self, items: list[str], least: int = 2) -> list[str]:
        return self.random.sample(items, self.random.randint(min(least, len(items)), len(items)))

    def illness_article(self) -> str:
        pick, ill = self.random.choice, self.random.choice(self.illnesses)
        name = ill["name"]
        sentences = [
            pick(
                [
                    f"{name}常见的表现有{joined(self.some(ill['symptoms']))}。",
                    f"得了{name}，会出现{joined(self.some(ill['symptoms']))}。",
                ]
            ),
            pick([f"{name}的原因多半是{ill['cause']}。", f"引起{name}的是{ill['cause']}。"]),
            pick([f"要确诊{name}，{ill['test']}。", f"检查方面，{name}：{ill['test']}。"]),
            pick(
                [
                    f"得了{name}要{joined(self.some(ill['care']))}。",
                    f"平时应当{joined(self.some(ill['care']))}，这样{name}好得快。",
                ]
            ),
            pick([f"{name}最忌{ill['avoid']}。", f"患{name}的人不要{ill['avoid']}。"]),
            f"{name}的病程：{ill['days']}。",
        ]
        opening = pick(
            [
                f"{name}是{ill['department']}的病，问题出在{ill['part']}。",
                f"说到{ill['part']}，不能不说{name}，它归{ill['department']}看。",
            ]
        )
        return opening + "".join(self.random.sample(sentences, self.random.randint(3, 6)))

    def clinic(self) -> str:
        """A visit in the published prompt form, one to three rounds."""
        pick, ill = self.random.choice, self.random.choice(self.illnesses)
        symptoms = joined(self.some(ill["symptoms"]))
        rounds = [
            (
                pick(
                    [
                        f"我{symptoms}，可能是什么病？",
                        f"医生，这几天{symptoms}，怎么回事？",
                        f"{symptoms}应该看什么科？",
                    ]
                ),
                f"根据{symptoms}，可能是{ill['name']}，建议去{ill['department']}。",
            ),
            (
                pick([f"{ill['name']}要做什么检查？", "需要做什么检查？"]),
                f"{ill['name']}的检查：{ill['test']}。原因多半是{ill['cause']}。",
            ),
            (
                pick([f"得了{ill['name']}平时注意什么？", "平时要注意什么？"]),
                f"{ill['name']}要{joined(self.some(ill['care']))}，不要{ill['avoid']}。",
            ),
        ]
        kept = rounds[: self.random.randint(1, 3)]
        return "\n\n".join(f"[Round {n}]\n\n问：{ask}\n\n答：{answer}" for n, (ask, answer) in enumerate(kept, start=1))

    def food_article(self) -> str:
        pick, food = self.random.choice, self.random.choice(self.foods)
        name = food["name"]
        same = [other["name"] for other in self.foods if other["kind"] == food["kind"] and other is not food]
        sentences = [
            f"{name}是{food['color']}的，味道{food['taste']}。",
            f"{name}里{food['rich']}比较多。",
            f"{food['season']}的{name}最好。" if food["season"] != "全年" else f"{name}一年四季都有。",
        ]
        if same:
            sentences.append(f"和{name}同是{food['kind']}的还有{pick(same)}。")
        return f"{name}是一种{food['kind']}。" + "".join(
            self.random.sample(sentences, self.random.randint(2, len(sentences)))
        )

    def story(self) -> str:
        """Two people go out; the last sentences can only be told by who went where with what."""
        pick = self.random.choice
        (first, second), (here, there) = self.random.sample(PEOPLE, 2), self.random.sample(PLACES, 2)
        (thing, other_thing), (how, other_how) = self.random.sample(THINGS, 2), self.random.sample(VEHICLES, 2)
        sky, sight = pick(list(WEATHER.items()))
        body = (
            f"那天{sky}，{sight}。{first}是{pick(JOBS)}，{how}去了{here}，带着{thing}。"
            f"{second}却{other_how}去了{there}，带着{other_thing}。"
        )
        ends = [
            f"晚上回家，{first}说{here}里人很多，觉得很{pick(FEELINGS)}。",
            f"后来{second}把{other_thing}留在了{there}。",
            f"问：谁去了{here}？答：{first}。",
            f"问：{second}带着什么？答：{other_thing}。",
            f"因为{sky}，{first}{how}用了{chinese_number(self.random.randint(11, 59))}分钟。",
        ]
        return body + "".join(self.random.sample(ends, self.random.randint(2, 4)))

    def sums(self) -> str:
        lines = []
        for _ in range(self.random.randint(3, 6)):
            a, b = self.random.randint(1, 9), self.random.randint(1, 9)
            lines.append(
                self.random.choice(
                    [
                        f"{chinese_number(a)}加{chinese_number(b)}等于{chinese_number(a + b)}",
                        f"{chinese_number(a + b)}减{chinese_number(b)}等于{chinese_number(a)}",
                        f"{chinese_number(a)}乘{chinese_number(b)}等于{chinese_number(a * b)}",
                    ]
                )
            )
        return "，".join(lines) + "。"

    def document(self) -> str:
        writers: list[Callable[[], str]] = [self.illness_article, self.clinic, self.food_article, self.story, self.sums]
        return self.random.choices(writers, weights=[6, 6, 2, 4, 1])[0]()


def documents() -> tuple[list[str], list[str]]:
    """Training and held-out documents, none in both."""
    writer = Writer(SEED)
    training = list(dict.fromkeys(writer.document() for _ in range(TRAIN_DOCUMENTS)))
    seen, heldout = set(training), []
    while len(heldout) < HELDOUT_DOCUMENTS:
        document = writer.document()
        if document not in seen:
            seen.add(document)
            heldout.append(document)
    return training, heldout


def main() -> None:
    for name, texts in zip(("train.jsonl", "heldout.jsonl"), documents(), strict=True):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (CORPUS / name).write_text("".join(lines), encoding="utf-8")
        print(f"{CORPUS / name}: {len(texts)} documents, {sum(map(len, texts))} characters")


if __name__ == "__main__":
    main()
