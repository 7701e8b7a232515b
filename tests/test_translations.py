"""The Chinese pages hold what the English ones do: section by section the same commands, figures, names and links.

Who changes an English page finds here the section of the Chinese one that has to follow, and what differs in it. Words
are not compared; `markdown-it` reads both pages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("ascend", "conversion", "coming-from"))]
"""The English pages that are there in Chinese too, as `<name>_zh.md` beside them."""

UNITS = {
    "%": "%", "px": "px", "ms": "ms", "s": r"seconds?\b|s\b|秒", "minutes": r"minutes?\b|分钟",
    "hours": r"hours?\b|小时", "times": r"times\b|倍|次", "bits": r"bits?\b|位",
    "epochs": r"epochs?\b|个 epoch\b", "steps": r"steps?\b|步",
}  # fmt: skip
"""Units after a number, as either language writes them."""

WORD = re.compile(r"-{0,2}[A-Za-z0-9_]+(?:[-.,:/+][A-Za-z0-9_]+)*")
CHINESE = "[\u4e00-\u9fff]"
HALF_WIDTH = str.maketrans("，、；：（）。“”", ',,;:().""')


@dataclass(frozen=True)
class Part:
    """A heading, a paragraph, a list's item, a table's cell, a block of code or of HTML, with what has to be equal."""

    kind: str
    line: int
    text: str
    facts: dict[str, Counter[str]]

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, str({what: sorted(held.elements()) for what, held in self.facts.items()})


@dataclass
class Section:
    title: str
    level: str
    parts: list[Part] = field(default_factory=list)


def in_chinese(page: Path) -> Path:
    return page.with_name(f"{page.stem.removesuffix('_zh')}_zh.md")


def in_english(page: Path) -> Path:
    return page.with_name(f"{page.stem.removesuffix('_zh')}.md")


def tokens_of(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def figures(text: str) -> Counter[str]:
    """Numbers with their units, and words with a digit or an underscore in them, or with two dashes before them."""
    found: Counter[str] = Counter()
    text = re.sub(r"(?<=\d)-(?=bit)", " ", text)
    for match in WORD.finditer(text):
        word = match[0].lstrip("-") if match[0].lstrip("-")[0].isdigit() else match[0]
        if re.fullmatch(r"[\d.,]+", word):
            after = text[match.end() :]
            word += next(
                (f" {unit}" for unit, spelt in UNITS.items() if re.match(rf"\s*(?:{spelt})", after, re.ASCII)), ""
            )
        if re.search(r"[\d_]|^--", word):
            found[word] += 1
    return found


def aim(target: str, page: Path) -> str:
    """A link's target in words that do not depend on the language: the English file, and a heading's number in it."""
    if "://" in target:
        return target
    name, _, anchor = unquote(target).partition("#")
    file = page.parent / name if name else page
    number = ""
    if anchor:
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
        anchors = [re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles]
        number = f", heading {anchors.index(anchor) + 1}" if anchor in anchors else f"#{anchor}"
    return f"{in_english(file).name}{number}"


def inline_facts(token: Token, page: Path) -> dict[str, Counter[str]]:
    children = token.children or []
    targets = [str(child.attrs["href"]) for child in children if child.type == "link_open"]
    targets += [str(child.attrs["src"]) for child in children if child.type == "image"]
    return {
        "code": Counter(child.content for child in children if child.type == "code_inline"),
        "figures": figures(prose(token)),
        "links": Counter(aim(target, page) for target in targets),
        "bold": Counter(child.type for child in children if child.type == "strong_open"),
    }


def prose(token: Token) -> str:
    """The words of a paragraph, where code was a space. A link's text is words unless it names a file."""
    kept = {"softbreak": " ", "code_inline": " "}
    text = "".join(kept.get(child.type, child.content) for child in token.children or [])
    return re.sub(r"[\w/.-]+\.md\b", " ", text, flags=re.ASCII)


def code_facts(code: str) -> dict[str, Counter[str]]:
    """Commands in their order, without comments, whose words are free and whose figures are not."""
    lines = [re.match(r"(.*?)(?:(?:^|\s)\s*#(.*))?$", line) for line in code.splitlines()]
    plain = [(match[1].rstrip(), match[2] or "") for match in lines if match]
    return {
        "code": Counter(f"{number}: {line}" for number, line in enumerate(row for row, _ in plain if row)),
        "figures": sum((figures(comment) for _, comment in plain), Counter()),
    }


def sections(text: str, page: Path) -> list[Section]:
    """What is compared of a page, by its headings; the link to the page in the other language is not."""
    found = [Section("what precedes the first heading", "")]
    open_tags: list[str] = []
    line = 1
    for token in tokens_of(text):
        line = token.map[0] + 1 if token.map else line
        if token.type == "heading_open":
            found.append(Section("", token.tag))
        if token.nesting == 1:
            open_tags.append(token.tag)
        elif token.nesting == -1:
            open_tags.pop()
        elif token.type == "inline" and not leads_to_other_language(token, page):
            found[-1].title = token.content if open_tags == [found[-1].level] else found[-1].title
            found[-1].parts.append(Part(" ".join(open_tags), line, token.content, inline_facts(token, page)))
        elif token.type in ("fence", "code_block"):
            found[-1].parts.append(Part("code", line, token.content, code_facts(token.content)))
        elif token.type == "html_block":
            words = re.sub(r"<.*?>", "", token.content)
            tags = Counter(re.findall(r"</?\w+", token.content))
            found[-1].parts.append(Part("html", line, words, {"tags": tags, "figures": figures(words)}))
    return found


def leads_to_other_language(token: Token, page: Path) -> bool:
    other = in_english(page) if page == in_chinese(page) else in_chinese(page)
    children = token.children or []
    kinds = [child.type for child in children]
    return kinds == ["link_open", "text", "link_close"] and children[0].attrs["href"] == other.name


def differences(page: Path, english: str, chinese: str) -> list[str]:
    """What the Chinese page says otherwise than the English `page`: one line for each, with the section it is in."""
    here, there = sections(english, page), sections(chinese, in_chinese(page))
    if [section.level for section in here] != [section.level for section in there]:
        pairs = zip_longest(here, there, fillvalue=Section("nothing", ""))
        ours, theirs = next((a, b) for a, b in pairs if a.level != b.level)
        return [f"{page.name}: {len(here) - 1} headings, in Chinese {len(there) - 1}. The first that do not go "
                f"together: {ours.level} {ours.title!r} and {theirs.level} {theirs.title!r}"]  # fmt: skip
    return [
        f"{page.name}, section {ours.title!r} ({theirs.title!r} in {in_chinese(page).name}): {difference}"
        for ours, theirs in zip(here, there, strict=True)
        for difference in between(ours, theirs)
    ]


def between(ours: Section, theirs: Section) -> Iterator[str]:
    """Parts are laid beside each other by their kinds and facts, so that one part left out is named as that."""
    matcher = SequenceMatcher(None, *([part.key for part in section.parts] for section in (ours, theirs)), False)
    for _, start, end, their_start, their_end in matcher.get_opcodes():
        here, there = ours.parts[start:end], theirs.parts[their_start:their_end]
        if [part.kind for part in here] == [part.kind for part in there]:
            for pair in zip(here, there, strict=True):
                yield from differing(*pair)
            continue
        shown = [[f"line {part.line}: {part.text[:60]!r}" for part in parts] for parts in (here, there)]
        yield f"paragraphs, cells or code blocks only in English {shown[0]}, only in Chinese {shown[1]}"


def differing(ours: Part, theirs: Part) -> Iterator[str]:
    where = f"{ours.text[:60]!r} (line {ours.line}; {theirs.line} in Chinese)"
    for what, held in ours.facts.items():
        less, more = held - theirs.facts[what], theirs.facts[what] - held
        if less or more:
            yield f"{what} of {where}: only in English {[*less.elements()]}, only in Chinese {[*more.elements()]}"
    if ours.key == theirs.key and ours.kind != "code" and not_translated(ours.text, theirs.text):
        yield f"{where} is neither translated nor the English one: {theirs.text[:60]!r}"


def not_translated(english: str, chinese: str) -> bool:
    """Of a part without a Chinese word: a name that differs, or a whole sentence that is still English."""
    if re.search(CHINESE, chinese):
        return False
    plain = ["".join(text.translate(HALF_WIDTH).split()) for text in (english, chinese)]
    words = re.findall(r"(?<![\w-])[a-z]{2,}\b", re.sub(r"`.*?`|\]\(.*?\)|\S+ -> \S+", "", chinese))
    return plain[0] != plain[1] or len(words) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_chinese_page_holds_what_the_english_one_does(page: Path) -> None:
    found = differences(page, page.read_text(), in_chinese(page).read_text())
    assert found == [], "\n" + "\n".join(found)


def test_every_chinese_page_is_compared() -> None:
    present = {*ROOT.glob("*_zh.md"), *(ROOT / "docs").rglob("*_zh.md")}
    assert present == {in_chinese(page) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_lead_to_each_other_and_chinese_ones_to_chinese_ones(page: Path) -> None:
    for here, there in ((page, in_chinese(page)), (in_chinese(page), page)):
        assert f"]({there.name})" in "".join(here.read_text().splitlines(True)[:4]), f"{here.name} has no link on top"
    targets = re.findall(r"\]\(([^)\s:]+\.md)(?:#[^)]*)?\)", in_chinese(page).read_text())
    targets.remove(page.name)
    files = [page.parent / target for target in targets]
    english = [file.name for file in files if file != in_chinese(file) and in_chinese(file).exists()]
    assert english == [], f"{in_chinese(page).name} leads to English pages that are there in Chinese"


def badly_set(text: str) -> list[str]:
    """Where Chinese would be shown with a gap or with Markdown's marks in it, or is not set as in the other pages."""
    found = []
    for token in tokens_of(text):
        if token.type != "inline":
            continue
        words = "".join("\n" if child.type == "softbreak" else child.content for child in token.children or []
                        if child.type != "code_inline")  # fmt: skip
        bare = re.sub(r"`[^`]*`", "`", re.sub(r"\*\*|\]\([^)]*\)", "", token.content))
        for pattern, string in {
            r"\*\*|`|\]\(": words,
            rf"({CHINESE}|[，。；：、（）])\n({CHINESE}|[，。；：、（）])": words,
            rf"{CHINESE}[,;:?!()]|[,;:?!()]{CHINESE}": bare,
            rf"{CHINESE}[A-Za-z0-9`]|[A-Za-z0-9`%]{CHINESE}": bare,
            r" [，。；：、（）]|[，。；：、（）] ": bare,
        }.items():
            found += [f"{match[0]!r} in {token.content[:60]!r}" for match in re.finditer(pattern, string)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_chinese_page_is_set_well(page: Path) -> None:
    assert badly_set(in_chinese(page).read_text()) == []


ENGLISH = """# Cards

Use **8 cards** for `train`: see [weights](conversion.md#layouts), 2.5 times as fast after 30 minutes.

| flag | default |
|---|---|
| `--lr` | 0.045 |
| names | torch-npu |

```
inception-v4 train --lr 0.1  # 2 cards
```

- An 8-bit export of BatchNorm's float32
"""

TRANSLATED = """# 卡

`train` 使用 **8 张卡**：30 分钟后速度为 2.5 倍，见[权重](conversion_zh.md#格式)。

| 参数 | 默认值 |
|---|---|
| `--lr` | 0.045 |
| 名称 | torch-npu |

```
inception-v4 train --lr 0.1  # 2 张卡
```

- 把 BatchNorm 的 float32 导出为 8 位
"""


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    (tmp_path / "conversion.md").write_text("# Weights\n## Layouts\n")
    (tmp_path / "conversion_zh.md").write_text("# 权重\n## 格式\n")
    return tmp_path / "cards.md"


FAULTS: dict[str, tuple[str, str, str]] = {
    "a command": ("--lr 0.1", "--lr 0.2", "0: inception-v4 train --lr 0.1"),
    "a figure in a comment": ("# 2 张", "# 3 张", "'2'"),
    "a figure in a sentence": ("**8 张", "**9 张", "'8'"),
    "a unit": ("30 分钟", "30 小时", "30 minutes"),
    "a figure's unit left out": ("2.5 倍", "2.5", "2.5 times"),
    "a cell": ("| 0.045 |", "| 0.45 |", "0.045"),
    "a name in a cell": ("| torch-npu |", "| torch-cpu |", "neither translated"),
    "a row": ("| 名称 | torch-npu |\n", "", "only in English [\"line 8: 'names'\""),
    "code in a sentence": ("`train`", "`validate`", "'train'"),
    "a link": ("_zh.md#格式", "_zh.md#权重", "conversion.md, heading 2"),
    "emphasis": ("**8 张卡**", "8 张卡", "strong_open"),
    "a list's item": ("8 位\n", "8 位\n- 其他\n", "only in Chinese [\"line 15: '其他'\"]"),
    "a heading": ("```\ni", "## 训练\n```\ni", "1 headings, in Chinese 2"),
    "English left": ("把 BatchNorm 的 float32 导出为 8 位", "8-bit export of BatchNorm and float32", "neither"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, cards: Path) -> None:
    right, wrong, said = FAULTS[fault]
    assert differences(cards, ENGLISH, TRANSLATED) == []
    assert TRANSLATED.count(right) == 1
    found = differences(cards, ENGLISH, TRANSLATED.replace(right, wrong))
    assert len(found) == 1 and said in found[0] and "cards.md" in found[0], found
    assert fault == "a heading" or "section 'Cards' ('卡' in cards_zh.md)" in found[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_change_of_a_real_page_is_seen(page: Path) -> None:
    """In the English page: another digit or another flag, at the first and the last place of each."""
    english, chinese = page.read_text(), in_chinese(page).read_text()
    for pattern, other in ((r"(?<![\w.#-])\d(?=[\d.]* )", lambda old: str(9 - int(old))), (r" --\w+", "{}x".format)):
        places = [*re.finditer(pattern, english)]
        for match in (places[0], places[-1]):
            changed = english[: match.start()] + other(match[0]) + english[match.end() :]
            assert len(differences(page, changed, chinese)) == 1, changed[match.start() - 60 : match.end() + 20]


@pytest.mark.parametrize(
    "line", ["共**8 张。**之后", "换行\n之后", "训练,验证", "使用8 卡", "用`train`", "8%以上", "之后 ，再"]
)
def test_bad_setting_is_seen(line: str) -> None:
    assert badly_set(f"好的：用 `train` 训练 **8 张卡**，见[权重](weights.md)。\n第二行 ABC\n不算，{line}") != []
    assert badly_set("好的：用 `train` 训练 **8 张卡**，见[权重](weights.md)，99.8 % 以上。") == []
