"""Scripts and documented commands run with the shell and the tools of macOS: bash 3.2 and BSD's commands."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT
from tools.test_demo import COMMANDS, FULL_COMMANDS, demo  # noqa: F401

SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"]
PAGES = [path for path in sorted(ROOT.rglob("*.md")) if not path.relative_to(ROOT).parts[0].startswith((".venv", "demo"))]
WORD = r"(?:^|[\s;|&(`])"  # what may stand before a command
ABSENT = {  # what bash 3.2 or macOS lack, and a text that has it
    r"\b(mapfile|readarray|coproc)\b": "mapfile -t scans < <(list)",
    r"\b(declare|local|typeset)\s+-\w*[Anglu]": "local -n other=$1",
    r"\$\{!?\w+(\[[^]]*\])?(,,?|\^\^?|@\w)": "echo ${name,,}",
    r"\$\{\w+(\[[^]]*\])?:[^}]*:\s*-\d": "echo ${name:0:-1}",
    r"\$\{\w+\[-\d+\]\}": "echo ${files[-1]}",
    r"(?<!\+)\"\$\{\w+\[[@*]\]\}\"": 'list "${files[@]}"',  # an empty array counts as unset; after a plus it is guarded
    r"&>>|\|&|;;?&(\s|$)": "make |& tee log",
    r"\bwait\s+-n\b|\bread\s+-\w*[Ni]\b": "wait -n",
    r"\$(EPOCHSECONDS|EPOCHREALTIME|SRANDOM)\b|%\(.*\)T": "printf '%(%F)T'",
    r"\bshopt\s+-s\s+(globstar|lastpipe|inherit_errexit)": "shopt -s globstar",
    WORD + r"(nproc|timeout|realpath|tac|md5sum|sha\d+sum|setsid|numfmt|shuf|free|ldd)\s": "nproc --all",
    WORD + r"readlink\s+-[fem]": "readlink -f x",
    WORD + r"sed\s+(-\w+\s+)*(-\w*i(\s|$)|-\w*[rz]\b|--)": "sed -i s/a/b/ x",
    WORD + r"date\s+(-d|--|-I)": "date -d tomorrow",
    WORD + r"grep\s+(-\w+\s+)*-\w*P": "grep -oP x",
    WORD + r"xargs\s+(-\w+\s+)*(-\w*[rd]\b|--)": "xargs -r rm",
    WORD + r"stat\s+(-c|--)": "stat -c %s x",
    WORD + r"(sort\s+-\w*[VhR]|du\s+-\w*b|head\s+-[nc]\s*-|ls\s+--|cp\s+(--|-\w*[tul])|ln\s+-\w*[rt]|tail\s+--)": "sort -V x",
    WORD + r"find\s.*-(printf|quit|readable|regextype|maxdepth=)": "find . -printf %s",
    WORD + r"find\s+-": "find -name x",  # BSD's find needs a folder
    WORD + r"mktemp\s+(--|-p|\S*X)": "mktemp --suffix .gz",
    WORD + r"base64\s+-\w*w": "base64 -w0 x",
    WORD + r"(mkdir|rm|mv|touch|chmod|tar|cat|wc|cut|tee|basename)\s+--\w": "mkdir --parents x",
}
# Options of the commands that a demo runs, as POSIX or all of BSD, macOS and GNU know them.
OPTIONS = {
    **{"awk": "Fv", "basename": "", "cat": "", "cksum": "", "cmp": "s", "cp": "fpRr", "dirname": "", "find": "", "head": "n"},
    **{"ls": "A", "mkdir": "p", "mktemp": "d", "mv": "f", "rm": "fr", "sort": "u", "tee": "a", "touch": "", "tr": "d"},
}
GUARD = """#!/bin/sh
for word; do
    case "$word" in
        --*) echo "{name} $word is not portable" >&2; exit 99 ;;
        -*[!{options}-]*) [ {name} = find ] || {{ echo "{name} $word is not portable" >&2; exit 99; }} ;;
    esac
done
exec {path} "$@"
"""


def shell_blocks(page):
    """Commands of a page: blocks of code, and code in lines of a table or of text."""
    text = page.read_text()
    return re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)


def code(script):
    """Lines of a script without comments."""
    return [re.sub(r"(^|\s)#.*", "", line) for line in script.read_text().splitlines()]


@pytest.mark.parametrize("name", ["demo.sh", "test.sh", "start_monailabel.sh", "vendor_niivue.sh"])
def test_another_shell_is_told_to_use_bash(name):
    """The last line was: set: Illegal option -o pipefail."""
    if "BASH_VERSION" in subprocess.run(["sh", "-c", "set"], capture_output=True, text=True).stdout:
        pytest.skip("sh is bash here")
    path = str(ROOT / "scripts" / name)
    process = subprocess.run(["sh", path], capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr == f"This script needs bash. Run: bash {path}\n"


def test_a_virtual_environment_that_is_gone_is_named(monkeypatch, tmp_path):
    """pip installed into another Python before an error of the shell."""
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    process = subprocess.run(["bash", str(ROOT / "scripts" / "test.sh")], capture_output=True, text=True)
    assert process.returncode == 1 and f"VIRTUAL_ENV is {tmp_path / 'gone'}" in process.stderr.splitlines()[-1]


@pytest.mark.parametrize("absent, example", ABSENT.items())
def test_no_script_and_no_documented_command_uses_what_macos_lacks(absent, example):
    assert re.search(absent, example)
    found = [f"{path.name}: {line.strip()}" for path in SCRIPTS for line in code(path) if re.search(absent, line)]
    found += [
        f"{page.name}: {line}" for page in PAGES for block in shell_blocks(page) for line in block.splitlines()
        if re.search(absent, line)
    ]  # fmt: skip
    assert found == []


def test_the_demo_runs_without_new_builtins_and_without_options_of_gnu(demo, tmp_path, monkeypatch):  # noqa: F811
    """Only the commands in OPTIONS exist here, and each refuses other options; bash has no builtin that is newer than 3.2."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name, options in OPTIONS.items():
        guard = GUARD.format(name=name, options=options, path=shutil.which(name))
        (folder / name).write_text(guard)
        (folder / name).chmod(0o755)
    for name in ("bash", "env"):
        (folder / name).symlink_to(shutil.which(name))
    start = tmp_path / "start.sh"
    start.write_text("enable -n mapfile readarray\nBASH_COMPAT=3.2\n")
    monkeypatch.setenv("BASH_ENV", str(start))
    monkeypatch.setenv("PATH", str(folder))
    refused = subprocess.run(["sort", "-V"], capture_output=True, text=True, env=os.environ)
    assert refused.returncode == 99
    for options, expected in (["--full"], FULL_COMMANDS), ([], COMMANDS):
        process, commands = demo("--output", tmp_path / f"my demo{len(options)}", *options)
        assert process.returncode == 0, process.stderr
        assert len(commands) == len(expected) and "not found" not in process.stderr
