"""One vocabulary: what docs/options.md says of every option is what the commands' parsers have."""

from __future__ import annotations

import pytest

from benchmarks import evaluation
from sslight import cli
from sslight.core.arguments import OPTIONS, Parser, words_of
from sslight.core.errors import InputError
from tests.docs.pages import ROOT

PARSERS = {
    **{name: command.arguments() for name, command in cli.COMMANDS.items() if name != "bench"},
    **{f"bench {name}": command.arguments() for name, command in evaluation.commands().items()},
}


def spellings(parser: Parser) -> list[list[str]]:
    return [action.option_strings for action in parser._actions if action.option_strings]


def row(option: str) -> str:
    others, key, text = OPTIONS[option]
    commands = [name for name, parser in PARSERS.items() if any(option in same for same in spellings(parser))]
    also, key = ", ".join(f"`{other}`" for other in others), f"`{key}`" if key else ""
    return " ".join(f"| `{option}` | {also} | {key} | {text} | {', '.join(commands)} |".split())


def test_the_page_has_a_row_for_every_option():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `--")]
    assert rows == [row(option) for option in OPTIONS]


@pytest.mark.parametrize("name", PARSERS)
def test_an_option_has_all_its_spellings_in_every_command(name):
    for same in spellings(PARSERS[name]):
        for option, (others, _, _) in OPTIONS.items():
            if {option, *others} & set(same):
                assert {option, *others} <= set(same), same


@pytest.mark.parametrize("method", ["parse_args", "parse_intermixed_args"])
def test_a_place_is_an_argument_or_an_option(method):
    parse = getattr(PARSERS["pack"], method)
    expected = vars(parse(["a", "b", "--to", "h5"]))
    assert vars(parse(["--data", "a", "--to", "h5", "-o", "b"])) == expected
    with pytest.raises(InputError, match="the following arguments are required: DST"):
        parse(["a", "--to", "h5"])
    with pytest.raises(InputError, match="SRC is given twice, as 'a' and 'b'"):
        parse(["a", "c", "--to", "h5", "--data", "b"])
    networks = getattr(PARSERS["bench cost"], method)
    assert networks(["a", "--out", "o", "--weights", "b", "--arch", "c"]).networks == ["a", "b", "c"]
    assert len(networks(["--out", "o"]).networks) == 5


@pytest.mark.parametrize("spelling", ["--cfg", "--config", "--config-file"])
def test_every_spelling_sets_the_same(spelling):
    assert PARSERS["pretrain"].parse_intermixed_args([spelling, "a.yaml"]).cfg == "a.yaml"
    assert (
        PARSERS["bench coco"].parse_intermixed_args(["--framework", "mmdet", "--task", "det", spelling, "a.py"]).config
        == "a.py"
    )


def test_keyword_arguments_are_the_words_of_a_command():
    given = {
        "num_gpus": 2,
        "loo": True,
        "amp": False,
        "trials": None,
        "set": ["a=1", "b=2"],
        "KNN.K": [1, 2],
        "train_cfg.max_epochs": 3,
    }
    assert words_of(given, out="x y") == [
        *("--out=x y", "--num-gpus=2", "--loo", "--set=a=1", "--set=b=2"),
        *("KNN.K", "[1, 2]", "train_cfg.max_epochs", "3"),
    ]
