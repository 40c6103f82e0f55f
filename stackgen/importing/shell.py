"""Reads shell text as far as people start servers with it: words, quotes, variables, arrays, several commands.

Not a shell: nothing is run. `$(…)` stays as it is, loops and conditions are read through, redirections are separated.
docs/decisions/dependencies.md says why no library does this. Grammar: POSIX, "Shell Command Language", and bash arrays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from stackgen.importing.ledger import Item, Ledger, Word
from stackgen.importing.shell_words import Piece, WordReader
from stackgen.importing.variables import expand

__all__ = ["Command", "read_script"]

# words that stand before a command, and are none themselves
RESERVED = frozenset(
    [
        "if",
        "then",
        "else",
        "elif",
        "fi",
        "while",
        "until",
        "do",
        "done",
        "{",
        "}",
        "!",
        "time",
        "for",
        "case",
        "esac",
        "in",
        "select",
        "function",
    ]
)
OPERATORS = ("&&", "||", ";;", "\n", ";", "&", "|", "(", ")")
REDIRECTION = re.compile(r"(?:\d*|&)(?:>>|>\||>&|<<<|<<-?|<&|<|>)")
# `\\ ` or a comment before the line break is a common typo, and people mean a continuation
CONTINUED = re.compile(r"\\[ \t]*(?:[ \t]#[^\n]*)?\n")
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=", re.ASCII)
BRANCH = "a condition or loop of the script: the commands in it are read"
USED = "a variable or keyword of the shell, which takes effect where it is used"
UNUSED = "no imported command uses this part of the script"


@dataclass(slots=True)
class Command:
    """A simple command: its words, the variables before it (`A=1 program`), and those that `export` has set."""

    line: int
    words: list[Word] = field(default_factory=list)
    assignments: dict[str, Word] = field(default_factory=dict)
    exported: dict[str, Word] = field(default_factory=dict)

    def items(self) -> Iterator[Item]:
        """The items of all words."""
        for word in (*self.assignments.values(), *self.words):
            yield word.item


class _Reader(WordReader):
    def __init__(self, text: str, ledger: Ledger, values: dict[str, str], place: str) -> None:
        super().__init__(text)
        self.ledger, self.place = ledger, place
        # whether the text is the value of a variable
        self.nested = False
        self.values = dict(values)
        self.arrays: dict[str, list[Word]] = {}
        self.used: dict[str, list[Item]] = {}
        self.exported: dict[str, Word] = {}
        # how many `if`, `case` and loops are open
        self.depth = 0
        self.named: dict[str, Word] = {}

    def commands(self) -> Iterator[Command]:
        command = Command(self.line)
        heredocs: list[str] = []
        while self.at < len(self.text):
            if self._skip_blank():
                continue
            operator = next((one for one in OPERATORS if self.text.startswith(one, self.at)), "")
            if operator and not (operator == "&" and self.text.startswith("&>", self.at)):
                self.at += len(operator)
                if operator == ")" and self.depth:
                    # the pattern of a `case`
                    for item in command.items():
                        item.build_in(BRANCH)
                elif command.words or command.assignments:
                    yield command
                if operator == "\n":
                    self.line += 1
                    for end in heredocs:
                        self._skip_heredoc(end)
                    heredocs = []
                command = Command(self.line)
                continue
            if match := REDIRECTION.match(self.text, self.at):
                self.at = match.end()
                self._skip_spaces()
                pieces, raw = self.read_word()
                item = self.ledger.add(self._where(), f"{match[0]}{raw}")
                item.build_in("redirection: `docker compose logs` and `stackgen logs` show the output")
                if match[0].endswith(("<<", "<<-")):
                    heredocs.append("".join(piece.text for piece in pieces))
                continue
            self._take_word(command)
        if command.words or command.assignments:
            yield command

    def _take_word(self, command: Command) -> None:
        start = self.at
        assigned = ASSIGNMENT.match(self.text, self.at) if not command.words else None
        if assigned and self.text.startswith("(", assigned.end()):
            self._array(assigned)
            return
        pieces, raw = self.read_word()
        if self.at == start:
            # a stray closing brace or quote: one character at a time, so that reading ends
            self.at += 1
            return
        if assigned:
            name = assigned[1]
            value, unknown = self._join(pieces)
            word = self.ledger.word(self._where(), raw, value[assigned.end() - start :], unknown)
            command.assignments[name] = word
            return
        if not command.words and raw in RESERVED:
            self._take_reserved(raw)
            return
        command.words += self._split(pieces, raw)

    def _take_reserved(self, raw: str) -> None:
        self.ledger.add(self._where(), raw).build_in(BRANCH)
        self.depth += (raw in ("if", "case", "for", "while", "until", "select")) - (raw in ("fi", "esac", "done"))
        if raw in ("case", "for", "select"):
            # `case WORD in`, `for NAME in WORDS`: no command
            while self.at < len(self.text) and self.text[self.at] not in "\n;":
                if not self._skip_blank():
                    start = self.at
                    _, word = self.read_word()
                    self.ledger.add(self._where(), word).build_in(BRANCH)
                    self.at += self.at == start
                    if word == "in" and raw == "case":
                        break

    def _array(self, assigned: re.Match[str]) -> None:
        """Reads `NAME=( … )`. Its words get their outcome where `${NAME[@]}` is used."""
        head = self.ledger.add(self._where(), f"{assigned[0]}(")
        head.build_in(USED)
        self.at = assigned.end() + 1
        words: list[Word] = list(self.arrays.get(assigned[1], ())) if assigned[2] else []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "\n":
                self.at, self.line = self.at + 1, self.line + 1
            elif not self._skip_blank():
                start = self.at
                pieces, raw = self.read_word()
                words += self._split(pieces, raw)
                self.at += self.at == start
        self.at += 1
        self.ledger.add(self._where(), ")").build_in(USED)
        self.arrays[assigned[1]] = words

    def assign(self, command: Command) -> None:
        """Remembers the variables of a command without a program (`A=1`, `export A=1`)."""
        words = dict(command.assignments)
        for word in command.words[1:]:
            if match := ASSIGNMENT.match(word.text):
                words[match[1]] = Word(word.text[match.end() :], word.item, word.unknown)
        for name, word in words.items():
            if self.depth and name in self.values and self.values[name] != word.text:
                self.ledger.warn(
                    word.item.place, f"{name} is set in several branches of the script: the last value is used"
                )
                for item in self.used.pop(name, ()):
                    item.drop(f"another branch of the script sets {name}: the last value is used")
            self.used.setdefault(name, []).append(word.item)
            # `$(…)` and unknown variables stay visible in the value
            self.values[name] = word.text
            word.item.drop(UNUSED)
        if command.words and command.words[0].text in ("export", "declare"):
            # `export A` exports a variable that is set already
            names = {word.text for word in command.words[1:]}
            self.exported |= words | {name: self.named[name] for name in names if name in self.named}
        self.named |= words
        if command.words:
            for word in command.words:
                if word.item.outcome == "":
                    word.item.build_in(USED)

    def _where(self) -> str:
        return f"{self.place}line {self.line}"

    def _skip_spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def _skip_blank(self) -> bool:
        """Skips spaces, continued lines and comments."""
        start = self.at
        self._skip_spaces()
        if match := CONTINUED.match(self.text, self.at):
            self.at, self.line = match.end(), self.line + 1
        elif self.text.startswith("#", self.at):
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif self.text.startswith("\\", self.at) and self.at + 1 >= len(self.text):
            self.at += 1
        return self.at > start

    def _skip_heredoc(self, end: str) -> None:
        match = re.compile(rf"^\t*{re.escape(end)}[ \t]*$", re.M).search(self.text, self.at)
        body = self.text[self.at : match.start() if match else len(self.text)]
        if body.strip():
            self.ledger.add(self._where(), body.strip()).drop("a here-document, which stackgen does not read")
        self.line += body.count("\n") + 1
        self.at = min(len(self.text), (match.end() + 1) if match else len(self.text))

    def _join(self, pieces: list[Piece]) -> tuple[str, tuple[str, ...]]:
        out, unknown = "", list[str]()
        for piece in pieces:
            text, missing = self._expand(piece)
            out += text
            unknown += missing
        return out, tuple(dict.fromkeys(unknown))

    def _expand(self, piece: Piece) -> tuple[str, tuple[str, ...]]:
        if piece.text in ("$(pwd)", "`pwd`"):
            return ".", ()
        # `# …` inside backquotes is a way to write a comment in the middle of a command
        if re.match(r"`\s*#|\$\(\s*#", piece.text):
            return "", ()
        if not piece.expands:
            # `$(…)` is known only when the command runs
            return piece.text, (piece.text,) if piece.text.startswith(("$(", "`")) else ()
        text, missing = expand(piece.text.replace("$(pwd)", "."), self.values)
        substitutions = re.findall(r"\$\([^)]*\)", text)
        self._note_use(piece.text)
        return text, (*missing, *substitutions)

    def _note_use(self, text: str) -> None:
        for name in re.findall(r"\$\{?(\w+)", text):
            for item in self.used.get(name, ()):
                item.build_in(USED)

    def _split(self, pieces: list[Piece], raw: str) -> list[Word]:
        """The words that one word becomes: more than one if a variable outside quotes contains spaces."""
        if match := re.fullmatch(r"\$\{(\w+)\[[@*]\]\}", raw):
            self.ledger.add(self._where(), raw).build_in(USED)
            return list(self.arrays.get(match[1], ()))
        value, unknown = self._join(pieces)
        simple = [piece for piece in pieces if piece.text]
        # only variables split: the value of `$ARGS` may be a whole list of flags
        is_list = len(simple) == 1 and simple[0].split and simple[0].expands and re.search(r"\s", value) and "$" in raw
        # once: a value is not replaced again, as in a shell
        if is_list and not self.nested:
            self.ledger.add(self._where(), raw).build_in(USED)
            inner = _Reader(value, self.ledger, {}, f"{self._where()} ({raw}), ")
            inner.nested = True
            return [word for command in inner.commands() for word in command.words]
        if value == "" and simple and all(piece.split or piece.text.startswith("`") for piece in simple):
            # an empty variable outside quotes is no word at all
            self.ledger.add(self._where(), raw).build_in("an empty variable")
            return []
        return [self.ledger.word(self._where(), raw, value, unknown)]


def read_script(text: str, ledger: Ledger, values: dict[str, str] | None = None, place: str = "") -> list[Command]:
    """The commands in `text`, with variables of earlier lines replaced. `values` are variables that are set before.

    `place` is put before the line in the place of each item. Commands without a program only set variables.
    """
    reader = _Reader(text, ledger, values or {}, place)
    found = []
    for command in reader.commands():
        if not command.words or command.words[0].text in ("export", "declare", "local", "readonly", "typeset"):
            reader.assign(command)
        elif command.words[0].text == "set":
            for item in command.items():
                item.build_in("an option of the shell")
        else:
            command.exported = dict(reader.exported)
            found.append(command)
    return found
