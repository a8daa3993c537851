"""README in two languages, licence, citation, references: in step, and true to the project."""

import hashlib
import re

import pytest
import yaml
from code_names import is_known, quoted
from conftest import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PAIRS = {
    name: tuple((ROOT / f"{name}{end}").read_text("utf-8") for end in (".md", ".zh-TW.md"))
    for name in ("README", "docs/kan_and_mlp", "docs/training")
}
both = pytest.mark.parametrize(("english", "chinese"), PAIRS.values(), ids=PAIRS)
OF_TORCHRUN = {"--nproc-per-node", "--nnodes", "--node-rank", "--rdzv-endpoint"}


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def headings(text):
    return re.findall(r"^(#+) (.+)$", without_code(text), re.MULTILINE)


def links(text):
    """The targets of links and pictures in their order."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def commands(text):
    """The lines of code blocks without what is said about them."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    lines = [(kind, line) for kind, block in blocks for line in block.splitlines()]
    return [(kind, re.sub(r"\s*#.*", "", line).strip()) for kind, line in lines]


def formulas(text):
    return re.findall(r"\$([^$]+)\$", without_code(text))


def anchor(heading):
    """What GitHub makes of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.lower())
    return plain.replace(" ", "-")


# --- both languages -------------------------------------------------------------------------------


@both
def test_both_languages_have_the_same_headings(english, chinese):
    assert [level for level, _ in headings(chinese)] == [level for level, _ in headings(english)]


@both
def test_headings_are_translated(english, chinese):
    assert not {text for _, text in headings(english)} & {text for _, text in headings(chinese)}


@both
def test_both_languages_have_the_same_commands(english, chinese):
    assert commands(chinese) == commands(english)


@pytest.mark.parametrize("name", PAIRS)
def test_both_languages_have_the_same_links(name):
    english, chinese = PAIRS[name]
    file = name.rpartition("/")[2]

    def common(text):  # each names the other, and Chinese pages where there are some
        return [t for t in links(text) if not t.endswith(".zh-TW.md") and t != f"{file}.md"]

    assert common(chinese) == common(english)
    assert f"{file}.zh-TW.md" in links(english)
    assert f"{file}.md" in links(chinese)


@both
def test_both_languages_name_the_same_things_of_the_code(english, chinese):
    def names(text):
        words = quoted(without_code(text))
        return sorted(word for word in words if re.fullmatch(r"[\w./*<>-]+", word))

    assert names(chinese) == names(english)


@both
def test_both_languages_have_the_same_formulas_and_rows(english, chinese):
    assert formulas(chinese) == formulas(english)

    def rows(text):
        return [line.count("|") for line in text.splitlines() if line.startswith("|")]

    assert rows(chinese) == rows(english)


@both
def test_chinese_is_written_as_in_taiwan(english, chinese):
    for character in set(re.findall(r"[\u4e00-\u9fff]", chinese)):
        character.encode("big5")  # Taiwan's own encoding lacks the simplified characters
    for elsewhere in ("數據集", "文件夾", "默認", "視頻", "軟件", "命令行", "網絡", "卷積", "信息"):
        assert elsewhere not in chinese


@both
def test_only_flags_are_named_that_there_are(english, chinese):
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", english)) - OF_TORCHRUN
    assert not {flag for flag in flags if not is_known(flag)}


def test_the_readme_fits_three_screens():
    for text in PAIRS["README"]:
        assert len(text.splitlines()) <= 150


@pytest.mark.parametrize("text", PAIRS["docs/kan_and_mlp"], ids=["en", "zh"])
def test_formulas_survive_githubs_markdown(text):
    assert formulas(text)
    for formula in formulas(text):
        assert "|" not in formula, "would end the table's cell"
        assert not re.search(r"\\[^a-zA-Z]", formula), "Markdown takes such a backslash away"
        assert formula.count("{") == formula.count("}")
        assert formula == formula.strip()
    around = re.findall(r"(.)\$[^$]+\$(.)", without_code(text))
    assert all(before == " " and after in " ,;:." for before, after in around), around


# --- every document -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in links(path.read_text("utf-8")):
        if re.match(r"https?:", target):
            continue
        file, _, place = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), f"{path.name} links to {target}"
        if place:
            places = [anchor(text) for _, text in headings(found.read_text("utf-8"))]
            assert place in places, f"{path.name} links to {target}"


def test_contributing_names_only_what_the_code_has():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    files = list(ROOT.glob("tests/**/test_*.py"))
    tests = "\n".join(path.read_text("utf-8") for path in files)
    example = {"tests/test_X.py", "X.py", "ValueError", "FileNotFoundError", "half", "imagenet"}
    for word in set(quoted(without_code(text))) - example:
        if " " in word or word.startswith("weights_only"):
            continue
        known = is_known(word) or word in {path.name for path in files}
        assert known or f"def {word}(" in tests or word == "slow", word
    for _, command in commands(text):
        for file in re.findall(r"[\w/]+\.py", command):
            assert (ROOT / file).exists(), file


# --- licence and citation -------------------------------------------------------------------------


def test_the_licence_is_apache_2_word_for_word():
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_citation_has_what_the_format_demands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"


def test_references_hold_an_entry_for_each_paper():
    text = (ROOT / "docs" / "references.md").read_text("utf-8")
    (entries,) = re.findall(r"```bibtex\n(.*?)```", text, re.DOTALL)
    kinds = re.findall(r"^@(\w+)\{(\w+),$", entries, re.MULTILINE)
    wanted = "liu2025kan dosovitskiy2021vit vaswani2017attention wolf2020transformers he2019bag"
    assert {key for _, key in kinds} >= set(f"{wanted} touvron2021deit yang2025kat".split())
    for entry in re.split(r"\n\n", entries.strip()):
        assert entry.count("{") == entry.count("}")
        assert all(re.search(rf"^  {field}\s+= \{{", entry, re.M) for field in ("title", "author"))
