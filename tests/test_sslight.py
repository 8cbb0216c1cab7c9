"""The umbrella command: dispatch, help and completion without heavy imports, nearest names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import evaluation
from sslight import cli
from sslight.core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
ALL = {
    **{f"{name}": command for name, command in cli.COMMANDS.items() if name != "bench"},
    **{f"bench {name}": command for name, command in evaluation.commands().items()},
}


def test_no_help_imports_torch(run):
    calls = [["--help"], ["bench", "--help"], *([*name.split(), "--help"] for name in ALL)]
    done = run(
        "-c",
        f"import sys\nfrom sslight import cli\nsys.modules['torch'] = None  # an import of it would fail\n"
        f"for call in {calls}: assert cli.dispatch(call) == 0",
    )
    for name in ("pretrain", "convert", "bench", "report", "pack", "demo"):
        assert f"  {name} " in done.stdout
    assert done.stdout.count("\nexample:\n") == len(calls)


@pytest.mark.parametrize("name", ALL)
def test_examples_of_a_help_parse_and_name_known_keys_and_files(name):
    """That they work is shown where they are run: tests/docs/test_commands.py finds each on a page."""
    parser = ALL[name].arguments()
    examples = parser.epilog.partition("example:\n")[2].partition("\n\n")[0].replace("\\\n", " ").splitlines()
    examples = [line.split() for line in examples if line.startswith(("  sslight ", "  torchrun "))]
    assert examples
    for words in examples:
        at = words.index(name.split()[-1])  # `sslight bench knn ...`, `torchrun ... -m pretrain ...`
        args = parser.parse_intermixed_args(words[at + 1 :])
        if getattr(args, "cfg", None):
            assert (ROOT / args.cfg).is_file()
        assert {key.removeprefix("coco.") for key in getattr(args, "overrides", [])[::2]} <= set(parser.keys), words


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pretrian"], "did you mean 'pretrain'?"),
        (["bench", "liner"], "did you mean 'linear'?"),
        (["report", "--diff", "a", "b", "--tilte", "x"], "did you mean '--title'?"),
        (["report", "a", "--tit", "x"], "unknown argument '--tit"),
        (["bench", "knn", "--protocol", "mine"], "unknown argument '--protocol': write PROTOCOL VALUE"),
        (["convert", "a.pth", "--to", "mmdett", "-o", "b"], "did you mean 'mmdet'?"),
        (["convert", "a.pth", "--to", "mmdet", "--family", "moko", "-o", "b"], "did you mean 'moco'?"),
        (["bench", "coco", "--framwork", "mmdet"], "--framework"),
        (["pack", "a", "b", "--to", "hdf5"], "did you mean 'h5'?"),
    ],
)
def test_wrong_names_are_answered_with_the_nearest(arguments, expected, capsys):
    """One line, exit code 2; `main` of the command is never reached where an option is wrong."""
    with pytest.raises(SystemExit) as ended:
        sys.argv, kept = ["sslight", *arguments], sys.argv
        try:
            cli.main()
        finally:
            sys.argv = kept
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and expected in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("sslight b", {"bench"}),
        ("sslight bench ", {"knn", "linear", "semisup", "coco", "cost"}),
        ("sslight bench knn --l", {"--loo"}),
        ("sslight convert x.pth --to t", {"timm", "torchvision"}),
        ("sslight bench knn KNN.H", {"KNN.HEADLINE_K"}),
        ("sslight pretrain TRAIN.COMPILE T", {"True"}),
        ("sslight bench linear --cfg configs/pre", {"configs/pretrain/"}),
        ("sslight bench linear WEIGHTS READ", {"README.md"}),
    ],
)
def test_completion_offers_commands_options_keys_and_files_without_torch(run, typed, offered, tmp_path):
    pytest.importorskip("argcomplete")
    code = f"import os, sys; from sslight import cli; sys.modules['torch'] = None; os.chdir({str(ROOT)!r}); cli.main()"
    run(
        "-c",
        code,
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_SUPPRESS_SPACE="1",
        _ARGCOMPLETE_IFS="\n",
        COMP_LINE=typed,
        COMP_POINT=str(len(typed)),
        COMP_TYPE="9",
        _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path / "out"),
    )
    found = set((tmp_path / "out").read_text().split("\n"))
    assert offered <= found and (typed.endswith(" ") or found == offered)


def test_bash_completes_by_itself(tmp_path):
    """The line of the README, in a real bash: the function that it registers fills COMPREPLY."""
    integration = pytest.importorskip("argcomplete.shell_integration")
    program = tmp_path / "sslight"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sslight "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(
        integration.shellcode(["sslight"])
        + """
COMP_LINE='sslight ben' COMP_POINT=11 COMP_WORDS=(sslight ben) COMP_CWORD=1 COMP_TYPE=9
complete -p sslight
_python_argcomplete sslight
echo "offered: ${COMPREPLY[@]}"
"""
    )
    done = subprocess.run(
        ["bash", str(tmp_path / "script")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert "_python_argcomplete sslight" in done.stdout and "offered: bench" in done.stdout


def test_an_option_without_its_value_is_one_line():
    with pytest.raises(InputError, match="argument --title: expected one argument; see sslight report --help"):
        cli.COMMANDS["report"].arguments().parse_args(["a", "--title"])
